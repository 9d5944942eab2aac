"""What the architectures of `ember_probe` have in common."""

from dataclasses import dataclass
from typing import Protocol

from torch import nn

from ..errors import Errors, LLMNERError
from .words import WordReader

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


class ProbeSettings(Protocol):
    """What the architectures of `ember_probe` hand to the component."""

    @property
    def streams(self) -> bool:
        """RETURNS (bool): Whether the probe works on a text that is still being written."""

    def reader(self, dims: Dims, max_batch_tokens: int = 2048) -> WordReader:
        """RETURNS (WordReader): What the probe reads from an LLM of that size."""

    def build(self, dims: Dims) -> nn.Module:
        """RETURNS (Module): The probe, with random weights."""


def check_settings(name: str, threshold: float, max_batch_tokens: int) -> None:
    """RAISES (LLMNERError): If a setting of the component has a value that makes no sense."""
    if not 0.0 <= threshold <= 1.0:
        raise LLMNERError(
            Errors.E027.format(
                setting="threshold", name=name, value=threshold, must="between 0 and 1"
            )
        )
    if max_batch_tokens < 1:
        raise LLMNERError(
            Errors.E027.format(
                setting="max_batch_tokens", name=name, value=max_batch_tokens, must="positive"
            )
        )
