"""What the architectures of `ember_probe` have in common."""

from dataclasses import dataclass
from typing import Protocol

from torch import nn

from .words import WordReader


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
