"""The paper's own probes: hidden states of one layer give the type, attention weights give the span.

EMBER (arXiv 2403.11747) has two small networks, whose outputs it combines by label propagation. Here they
work on words instead of tokens: the last token of a mention carries its type, and the span probe gets the
attention weights between the last token of a mention (or the token after it) and its first token. Unlike in
the authors' code, a span can't start before the text, end before it starts, cut a word, or be longer than
`max_words`.
"""

from dataclasses import dataclass
from typing import List, Optional, Sequence, Tuple

import numpy as np
import torch
import torch.nn.functional as F
from thinc.api import Model
from torch import nn

from ...errors import Errors, LLMNERError
from ...pipeline.base import settings_model
from ..features.batch import GoldSpans, WordBatch, one_word
from ..features.words import ATTENTION_KINDS, WordFeatures, WordReader
from .base import Dims, check_sizes, decode_each
from .segmentation import (
    IMPOSSIBLE,
    Chain,
    Decoded,
    ScoredSpan,
    mask_blank_row,
    mask_crossing,
)
from .standardize import Standardize


@dataclass(frozen=True)
class PaperSettings:
    """See make_ember_paper."""

    layer: Optional[int]
    attention: str
    width: int
    max_words: int

    @property
    def streams(self) -> bool:
        return True

    def reader(self, dims: Dims, max_batch_tokens: int = 2048) -> WordReader:
        """RETURNS (WordReader): Reads hidden states of one layer, and attention weights of all layers."""
        layer = round(dims.n_layers * 16 / 30) if self.layer is None else self.layer
        return WordReader(
            (layer,),
            self.attention,
            max_words=self.max_words,
            max_batch_tokens=max_batch_tokens,
        )

    def build(self, dims: Dims) -> "PaperProbe":
        return PaperProbe(self, dims)


def make_ember_paper(
    layer: Optional[int] = None,
    attention: str = "both",
    width: int = 256,
    max_words: int = 8,
) -> Model:
    """Create the settings of the paper's probes.

    Registered as `spacy_llmner.EmberPaper.v1` in `@architectures`.

    layer (Optional[int]): Layer whose hidden states are classified; None for a layer just above the middle.
        `spacy llmner layers` finds the best one.
    attention (str): Attention weights that the span probe gets: "current", "next", "both" or "adjacency",
        see WordFeatures.
    width (int): Hidden units of each probe (4096 in the paper).
    max_words (int): Longest mention in words.
    RETURNS (Model): Carries the settings.
    RAISES (LLMNERError): If a setting is invalid.
    """
    if attention not in ATTENTION_KINDS:
        known = ", ".join(ATTENTION_KINDS)
        raise LLMNERError(Errors.E006.format(value=attention, what="attention", known=known))
    check_sizes(layer=(layer or 0, 0), width=(width, 1), max_words=(max_words, 1))
    return settings_model("ember_paper", PaperSettings(layer, attention, width, max_words))


class PaperProbe(nn.Module):
    """A token-type probe and a span probe. Each of them consists of Linear, ReLU, Linear.

    settings (PaperSettings): Sizes and variant.
    dims (Dims): Sizes of the LLM (the span probe has layers * heads inputs), and the number of labels.
    """

    def __init__(self, settings: PaperSettings, dims: Dims) -> None:
        super().__init__()
        self.settings = settings
        n_weights = dims.n_layers * dims.n_heads * (2 if settings.attention == "both" else 1)
        width = settings.width
        # Standardizing the inputs does not change what the first layer can represent. But attention weights
        # are so small that the paper's networks would need many more training steps otherwise.
        self.hidden_scale = Standardize((dims.width,))
        self.attention_scale = Standardize((n_weights,))
        self.n_types = dims.n_labels + 1
        self.types = nn.Sequential(
            nn.Linear(dims.width, width), nn.ReLU(), nn.Linear(width, dims.n_labels + 1)
        )
        self.spans = nn.Sequential(nn.Linear(n_weights, width), nn.ReLU(), nn.Linear(width, 1))
        self.max_words = 1 if settings.attention == "adjacency" else settings.max_words
        self.drop = 0.0

    def set_dropout(self, drop: float) -> None:
        """Ignored: the paper's probes have no dropout."""

    def fit_scale(self, sample: WordFeatures) -> None:
        """Estimate mean and standard deviation of states and attention weights from a sample of words."""
        assert sample.attention is not None
        self.hidden_scale.fit(sample.hidden[:, 0].to(self.hidden_scale.mean))
        cells = sample.attention.flatten(2).flatten(0, 1).to(self.hidden_scale.mean)
        self.attention_scale.fit(cells[cells.any(1)])

    def margins(self, attention: torch.Tensor) -> torch.Tensor:
        """RETURNS (Tensor): Shape (texts, words, max_words): logits of the span probe."""
        return self.spans(self.attention_scale(attention.flatten(3)))[..., 0]

    def forward(self, batch: WordBatch) -> Tuple[torch.Tensor, ...]:
        """RETURNS (Tuple[Tensor, Tensor]): Type logits, shape (texts, words, labels + 1), with "outside"
        last; and span logits, shape (texts, words, max_words): logit k is above 0 if the span of k + 1
        words that ends with the word is a mention. For "adjacency", the only logit is above 0 if the
        word continues the mention of the word before.
        """
        assert batch.attention is not None
        types = self.types(self.hidden_scale(batch.hidden[:, :, 0]))
        margins = self.margins(batch.attention)
        positions = torch.arange(margins.shape[1], device=margins.device)[:, None]
        lengths = torch.arange(self.max_words, device=margins.device)
        impossible = (positions < lengths)[None] | ~batch.mask[..., None]
        return types, margins.masked_fill(impossible, IMPOSSIBLE)

    def loss(
        self, scores: Tuple[torch.Tensor, ...], gold: Sequence[GoldSpans]
    ) -> Tuple[float, Tuple[torch.Tensor, ...]]:
        """Compute the cross-entropy of both probes per word.

        The type probe is trained on all words, and the span probe on all spans. With "adjacency", the span
        probe is trained only on the words of mentions and the word after each, as in the code of EMBER's
        authors. Words without annotation don't count.

        RETURNS (Tuple[float, Tuple[Tensor, Tensor]]): The loss and the gradients.
        """
        types, margins = (s.detach().cpu().float().requires_grad_() for s in scores)
        types_gold = torch.full(types.shape[:2], types.shape[2] - 1)
        spans_gold = torch.zeros(margins.shape)
        cells = margins.detach() > IMPOSSIBLE
        words = cells[..., 0].clone()
        if self.adjacency:
            cells[:] = False
        for row, (mentions, unknown) in enumerate(gold):
            for start, end, label in mentions:
                types_gold[row, start:end] = label
                if self.adjacency:
                    spans_gold[row, start + 1 : end] = 1.0
                    cells[row, start : end + 1] = words[row, start : end + 1, None]
                elif end - start <= self.max_words:
                    spans_gold[row, end - 1, end - start - 1] = 1.0
            for start, end in unknown:
                words[row, start:end] = False
                cells[row, start:end] = False
        type_loss = F.cross_entropy(types[words], types_gold[words], reduction="sum")
        span_loss = F.binary_cross_entropy_with_logits(
            margins[cells], spans_gold[cells], reduction="sum"
        )
        loss = (type_loss + span_loss) / max(int(words.sum()), 1)
        gradients = torch.autograd.grad(loss, (types, margins))
        return float(loss.detach()), tuple(g.to(s) for g, s in zip(gradients, scores))

    @property
    def adjacency(self) -> bool:
        return self.settings.attention == "adjacency"

    def rows(self, scores: Tuple[torch.Tensor, ...], text: int, n_words: int) -> np.ndarray:
        """RETURNS (ndarray): For each word the log-probabilities of the types, then its span logits."""
        types = torch.log_softmax(scores[0][text, :n_words].float(), -1)
        return torch.cat([types, scores[1][text, :n_words].float()], -1).cpu().numpy()

    def decoder(self, threshold: float) -> "PaperDecoder":
        if self.adjacency:
            return AdjacencyDecoder(self.n_types, self.settings.max_words, threshold)
        return PaperDecoder(self.n_types, self.settings.max_words, threshold)

    def within_sentences(self, rows: np.ndarray, starts: Sequence[bool]) -> np.ndarray:
        """RETURNS (ndarray): A copy of the rows in which no mention can cross a sentence boundary."""
        n_types = self.n_types
        if self.adjacency:
            joins = np.where(np.array(starts)[:, None], IMPOSSIBLE, rows[:, n_types:])
        else:
            joins = mask_crossing(rows[:, n_types:], starts)
        return np.concatenate([rows[:, :n_types], joins], axis=1)

    def decode(
        self, texts: Sequence[np.ndarray], blank: Sequence[Sequence[bool]], threshold: float
    ) -> List[Decoded]:
        """RETURNS (List[Decoded]): See Probe."""
        return decode_each(self, texts, blank, threshold)

    def all_mentions(
        self, rows: np.ndarray, blank: Sequence[bool], min_score: float
    ) -> List[ScoredSpan]:
        """RETURNS (List[ScoredSpan]): All mentions with at least this probability. They can be nested."""
        decoder = self.decoder(0.5)
        out = []
        for e, row in enumerate(rows):
            decoder.push(row, blank[e])
            label = decoder.type_of(e)
            if label is not None:
                for k in range(min(e + 1, self.settings.max_words)):
                    score = decoder.score(e - k, e + 1, label)
                    if score >= min_score and not blank[e - k]:
                        out.append(ScoredSpan(e - k, e + 1, label, score))
        return out

    def stream(self) -> "PaperStream":
        return PaperStream(self)


class PaperDecoder:
    """Label propagation with the span probe, as in EMBER (arXiv 2403.11747).

    The span probe proposes the best start for each last word. The type of the last word gives the label, or
    vetoes the mention if it is "outside". Decoding goes from right to left.

    n_types (int): Number of labels, plus 1 for "outside".
    max_words (int): Longest mention.
    threshold (float): Probability at which a span of the span probe is accepted.
    """

    def __init__(self, n_types: int, max_words: int, threshold: float = 0.5) -> None:
        self.chain = Chain(max_words)
        self.n_types = n_types
        self.margin = float(np.log(threshold) - np.log1p(-threshold))
        self.rows: List[np.ndarray] = []
        self.blank: List[bool] = []

    def push(self, row: np.ndarray, blank: bool = False) -> None:
        """row (ndarray): From PaperProbe.rows.
        blank (bool): Whether the word is blank.
        """
        self.rows.append(row)
        self.blank.append(blank)
        e = len(self.rows) - 1
        label = self.type_of(e)
        length = 0 if label is None else self.length_of(e, label)
        if length:
            self.chain.push(length, label)
        else:
            self.chain.push(1, None)

    def length_of(self, word: int, label: int) -> int:
        """RETURNS (int): Number of words of the mention that ends with this word; 0 if there is none."""
        spans = mask_blank_row(self.rows[word][self.n_types :], self.blank[: word + 1])
        best = int(spans.argmax())
        return 0 if spans[best] < self.margin else best + 1

    def type_of(self, word: int) -> Optional[int]:
        """RETURNS (Optional[int]): The type of a mention that ends with this word; None if the word is
        blank, or "outside".
        """
        return None if self.blank[word] else self.probable_type(word)

    def probable_type(self, word: int) -> Optional[int]:
        """RETURNS (Optional[int]): The most probable type of a word; None is "outside"."""
        best = int(self.rows[word][: self.n_types].argmax())
        return None if best == self.n_types - 1 else best

    def without_leading_blanks(self, word: int, length: int) -> int:
        """RETURNS (int): Number of words of a mention that ends with this word, without the blank words
        that it begins with.
        """
        while self.blank[word - length + 1]:
            length -= 1
        return length

    def score(self, start: int, end: int, label: int) -> float:
        """RETURNS (float): Probability of the span, times that of the type at its last word."""
        row = self.rows[end - 1]
        return float(np.exp(row[label]) * _sigmoid(row[self.n_types + end - start - 1]))


class AdjacencyDecoder(PaperDecoder):
    """Adjacency propagation: extend a mention to the left while each word continues the word before."""

    def length_of(self, word: int, label: int) -> int:
        length = 1
        while length < min(self.chain.max_words, word + 1):
            if self.rows[word - length + 1][self.n_types] < self.margin:
                break
            length += 1
        return self.without_leading_blanks(word, length)

    def score(self, start: int, end: int, label: int) -> float:
        """RETURNS (float): Probability that the first word continues no mention and each other word
        continues the word before, times that of the type at the last word.
        """
        joins = [_sigmoid(self.rows[i][self.n_types]) for i in range(start + 1, end)]
        opens = 1.0 if start == 0 else 1.0 - _sigmoid(self.rows[start][self.n_types])
        return float(np.exp(self.rows[end - 1][label]) * np.prod(joins) * opens)


class PaperStream:
    """Scores a text word by word. The row of a word is complete when the word is added.

    probe (PaperProbe): Any variant.
    """

    def __init__(self, probe: PaperProbe) -> None:
        self.probe = probe
        self.n_words = 0

    @torch.no_grad()
    def push(self, word: WordFeatures, surface: np.ndarray) -> Optional[np.ndarray]:
        """Add the next word.

        RETURNS (Optional[ndarray]): Its row.
        """
        batch = one_word(word, surface)
        row = self.probe.rows(self.probe(batch), 0, 1)[0]
        # Since the word is alone in its batch, it was scored like the first word of a text, and its longer
        # spans were masked. So score its spans again.
        assert batch.attention is not None
        margins = self.probe.margins(batch.attention)[0, 0].float().cpu().numpy()
        self.n_words += 1
        margins[self.n_words :] = IMPOSSIBLE
        row[-len(margins) :] = margins
        return row

    def end(self) -> Optional[np.ndarray]:
        """RETURNS (Optional[ndarray]): None, since `push` has returned all rows."""
        return None


def _sigmoid(x: float) -> float:
    return float(1.0 / (1.0 + np.exp(-np.clip(x, -30, 30))))
