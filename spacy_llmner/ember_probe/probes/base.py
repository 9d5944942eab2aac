"""The interface of a probe, and what all probes have in common."""

from dataclasses import dataclass
from typing import Any, List, Optional, Protocol, Sequence, Tuple

import numpy as np
import torch

from ...errors import check_values
from ..features.batch import GoldSpans, WordBatch
from ..features.words import WordFeatures, WordReader
from .segmentation import ScoredSpan, SegmentDecoder


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
    """The settings of an architecture, as its `model` carries them. A frozen dataclass."""

    @property
    def streams(self) -> bool:
        """RETURNS (bool): Whether the probe can follow a text that is still being written."""

    def reader(self, dims: Dims, max_batch_tokens: int = 2048) -> WordReader:
        """RETURNS (WordReader): Reads from the LLM what the probe needs."""

    def build(self, dims: Dims) -> Any:
        """RETURNS (Probe): A new probe, not trained yet."""


class Probe(Protocol):
    """Scores the words of texts, and turns scores into mentions. A torch.nn.Module.

    What a row holds is the probe's own business: only its decoder reads it.
    """

    def __call__(self, batch: WordBatch) -> Tuple[torch.Tensor, ...]:
        """RETURNS (Tuple[Tensor, ...]): The scores of a batch; each tensor begins with the dimensions
        (texts, words)."""

    def train(self, mode: bool = True) -> Any:
        """As that of torch.nn.Module."""

    def eval(self) -> Any:
        """As that of torch.nn.Module."""

    def set_dropout(self, drop: float) -> None:
        """drop (float): The rate while training."""

    def fit_scale(self, sample: WordFeatures) -> None:
        """Take the mean and spread of the features from a sample of words."""

    def loss(
        self, scores: Tuple[torch.Tensor, ...], gold: Sequence[GoldSpans]
    ) -> Tuple[float, Tuple[torch.Tensor, ...]]:
        """RETURNS (Tuple[float, Tuple[Tensor, ...]]): The loss per word, and the gradients of the scores."""

    def rows(self, scores: Tuple[torch.Tensor, ...], text: int, n_words: int) -> np.ndarray:
        """RETURNS (ndarray): The scores of one text of the batch: one row per word."""

    def decoder(self, threshold: float) -> SegmentDecoder:
        """threshold (float): Probability at which a mention wins over no mention.
        RETURNS (SegmentDecoder): Takes the rows of a text, one after the other."""

    def within_sentences(self, rows: np.ndarray, starts: Sequence[bool]) -> np.ndarray:
        """starts (Sequence[bool]): Whether each word starts a sentence.
        RETURNS (ndarray): A copy of the rows in which no mention can cross a sentence boundary."""

    def all_mentions(self, rows: np.ndarray, least: float) -> List[ScoredSpan]:
        """RETURNS (List[ScoredSpan]): Every mention at least that probable, overlapping ones too."""

    def stream(self) -> "ProbeStream":
        """RETURNS (ProbeStream): Follows one text word by word."""


class ProbeStream(Protocol):
    """Scores a text word by word. Each row equals that of the finished text."""

    def push(self, word: WordFeatures, surface: np.ndarray) -> Optional[np.ndarray]:
        """Add the next word.

        word (WordFeatures): One word.
        surface (ndarray): Its row of `batch.surface`.
        RETURNS (Optional[ndarray]): The next row that is complete, if there is one.
        """

    def end(self) -> Optional[np.ndarray]:
        """End the text. RETURNS (Optional[ndarray]): The last row, if it is still missing."""


def check_sizes(**sizes: Tuple[int, int]) -> None:
    """Validate the settings of an architecture.

    sizes (Tuple[int, int]): The value of each, and the least it may be.
    RAISES (LLMNERError): If a value is below the least, or is not a whole number.
    """
    settings = {f"model.{setting}": value for setting, (value, _) in sizes.items()}
    least = {f"model.{setting}": least for setting, (_, least) in sizes.items()}
    check_values("ember_probe", settings, least=least)
