"""What the architectures of `ember_probe` have in common."""

from dataclasses import dataclass
from typing import Any, Tuple

from ...errors import check_values

# As probable an entity must be, and its opposite, whatever the threshold is.
LEAST_THRESHOLD = 0.001


@dataclass(frozen=True)
class Dims:
    """Sizes that a probe depends on.

    n_layers (int): Layers of the LLM.
    width (int): Width of its hidden states.
    n_heads (int): Attention heads of a layer.
    n_labels (int): Labels of the component.
    """

    n_layers: int
    width: int
    n_heads: int
    n_labels: int


def check_settings(name: str, **settings: Any) -> None:
    """RAISES (LLMNERError): About the first setting with a value that makes no sense."""
    check_values(name, settings, shares=("threshold",), least={"max_batch_tokens": 1})


def check_model(**sizes: Tuple[int, int]) -> None:
    """Check the settings of an architecture.

    sizes (Tuple[int, int]): The value of each, and the least it may be.
    RAISES (LLMNERError): About the first one with a value that makes no sense.
    """
    settings = {f"model.{setting}": value for setting, (value, _) in sizes.items()}
    least = {f"model.{setting}": least for setting, (_, least) in sizes.items()}
    check_values("ember_probe", settings, least=least)
