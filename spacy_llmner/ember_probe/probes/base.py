"""The interface of a probe."""

from dataclasses import dataclass
from typing import Any, List, Optional, Protocol, Sequence, Tuple

import numpy as np
import torch

from ...errors import check_values
from ..features.batch import GoldSpans, WordBatch
from ..features.words import WordFeatures, WordReader
from .segmentation import Decoded, ScoredSpan, SegmentDecoder


@dataclass(frozen=True)
class Dims:
    """Sizes that a probe depends on.

    n_layers (int): Layers of the LLM.
    width (int): Width of its hidden states.
    n_heads (int): Attention heads per layer.
    n_labels (int): Labels of the component.
    """

    n_layers: int
    width: int
    n_heads: int
    n_labels: int


class ProbeSettings(Protocol):
    """Settings of an architecture: a frozen dataclass, which a component's `model` carries."""

    @property
    def streams(self) -> bool:
        """RETURNS (bool): Whether the probe can follow a text while it is being written."""

    def reader(self, dims: Dims, max_batch_tokens: int = 2048) -> WordReader:
        """RETURNS (WordReader): Reads what the probe needs from the LLM."""

    def build(self, dims: Dims) -> Any:
        """RETURNS (Probe): A new, untrained probe."""


class Probe(Protocol):
    """A torch.nn.Module that scores the words of texts, and converts the scores to mentions.

    The format of a row of scores is private to the probe: only its own decoder reads it.
    """

    def __call__(self, batch: WordBatch) -> Tuple[torch.Tensor, ...]:
        """Score the words of a batch.

        RETURNS (Tuple[Tensor, ...]): The scores; the first dimensions of each tensor are (texts, words).
        """

    def train(self, mode: bool = True) -> Any:
        """See torch.nn.Module."""

    def eval(self) -> Any:
        """See torch.nn.Module."""

    def set_dropout(self, drop: float) -> None:
        """drop (float): Dropout rate for training."""

    def fit_scale(self, sample: WordFeatures) -> None:
        """Estimate the mean and the standard deviation of the features from a sample of words."""

    def loss(
        self, scores: Tuple[torch.Tensor, ...], gold: Sequence[GoldSpans]
    ) -> Tuple[float, Tuple[torch.Tensor, ...]]:
        """Compute the loss and its gradient.

        scores (Tuple[Tensor, ...]): From a call of the probe.
        gold (Sequence[GoldSpans]): The annotation of each text.
        RETURNS (Tuple[float, Tuple[Tensor, ...]]): The loss per word, and the gradients with respect to the
            scores.
        """

    def rows(self, scores: Tuple[torch.Tensor, ...], text: int, n_words: int) -> np.ndarray:
        """scores (Tuple[Tensor, ...]): From a call of the probe.
        text (int): Index of a text in the batch.
        n_words (int): Number of words of the text.
        RETURNS (ndarray): The scores of the text, one row per word.
        """

    def decoder(self, threshold: float) -> SegmentDecoder:
        """threshold (float): Probability at which a mention is preferred over no mention.
        RETURNS (SegmentDecoder): Takes the rows of a text, one by one.
        """

    def within_sentences(self, rows: np.ndarray, starts: Sequence[bool]) -> np.ndarray:
        """starts (Sequence[bool]): Whether each word starts a sentence.
        RETURNS (ndarray): A copy of the rows in which no mention can cross a sentence boundary.
        """

    def decode(
        self, texts: Sequence[np.ndarray], blank: Sequence[Sequence[bool]], threshold: float
    ) -> List[Decoded]:
        """Convert scores to mentions.

        texts (Sequence[ndarray]): The rows of each text.
        blank (Sequence[Sequence[bool]]): For each text, whether each word is blank. No mention begins or
            ends with such a word.
        threshold (float): Probability at which a mention is preferred over no mention.
        RETURNS (List[Decoded]): For each text, the mentions that `decoder` finds, and all mentions that are
            at least as probable as the threshold. The latter can overlap.
        """

    def stream(self) -> "ProbeStream":
        """RETURNS (ProbeStream): Scores one text word by word."""


class ProbeStream(Protocol):
    """Scores a text word by word. The rows are the same as those of `Probe.rows` for the finished text."""

    def push(self, word: WordFeatures, surface: np.ndarray) -> Optional[np.ndarray]:
        """Add the next word.

        word (WordFeatures): Features of one word.
        surface (ndarray): The word's row of `batch.surface`.
        RETURNS (Optional[ndarray]): The next complete row, if there is one.
        """

    def end(self) -> Optional[np.ndarray]:
        """End the text.

        RETURNS (Optional[ndarray]): The last row, unless `push` has returned it already.
        """


class ScoringProbe(Protocol):
    """A probe that decodes each text by itself. See `decode_each`."""

    def decoder(self, threshold: float) -> SegmentDecoder:
        """See Probe."""

    def all_mentions(
        self, rows: np.ndarray, blank: Sequence[bool], min_score: float
    ) -> List[ScoredSpan]:
        """rows (ndarray): The rows of a text.
        blank (Sequence[bool]): Whether each word is blank. No mention begins or ends with such a word.
        min_score (float): The lowest probability of a mention.
        RETURNS (List[ScoredSpan]): All mentions that are probable enough. They can overlap.
        """


def decode_each(
    probe: ScoringProbe,
    texts: Sequence[np.ndarray],
    blank: Sequence[Sequence[bool]],
    threshold: float,
) -> List[Decoded]:
    """Implement `Probe.decode` for a probe whose decoder works word by word."""
    out: List[Decoded] = []
    for rows, is_blank in zip(texts, blank):
        decoder = probe.decoder(threshold)
        for row, is_blank_word in zip(rows, is_blank):
            decoder.push(row, is_blank_word)
        chosen = decoder.chain.trace()
        mentions = probe.all_mentions(rows, is_blank, threshold)
        found = {(m.start, m.end, m.label): m.score for m in mentions}
        missing = [m for m in chosen if m not in found]
        if missing:
            posterior = probe.all_mentions(rows, is_blank, 0.0)
            scores = {(m.start, m.end, m.label): m.score for m in posterior}
            found.update({m: scores.get(m, 0.0) for m in missing})
        out.append((chosen, [ScoredSpan(*key, score) for key, score in sorted(found.items())]))
    return out


def check_sizes(**sizes: Tuple[int, int]) -> None:
    """Validate settings of an architecture.

    sizes (Tuple[int, int]): The value and the minimum of each setting.
    RAISES (LLMNERError): If a value is not an integer, or is less than the minimum.
    """
    settings = {f"model.{setting}": value for setting, (value, _) in sizes.items()}
    least = {f"model.{setting}": least for setting, (_, least) in sizes.items()}
    check_values("ember_probe", settings, least=least)
