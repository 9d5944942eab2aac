"""The paper's own probes: one layer's hidden states say what type, attention weights say what span.

EMBER, arXiv 2403.11747. Two small networks and label propagation, at the level of words: the last
token of a mention carries its type, the span probe sees the cells of a mention's last token (or the one
after) and its first. What the authors' code lacks is here by construction: no span starts before
the text, ends before it starts, crosses a word's border or exceeds `max_words`.
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
from .base import Dims, check_sizes
from .segmentation import IMPOSSIBLE, Chain, ScoredSpan, mask_crossing
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
        """RETURNS (WordReader): Reads one layer, and attention on all of them."""
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
    """Registered as `spacy_llmner.EmberPaper.v1` in `@architectures`.

    layer (Optional[int]): Layer whose hidden states are typed; None is a little above the middle.
        `spacy llmner layers` finds the best one.
    attention (str): "current", "next", "both" or "adjacency": which attention tells spans.
    width (int): Hidden units of both probes (4096 in the paper).
    max_words (int): Longest mention in words.
    RETURNS (Model): Carries the settings.
    """
    if attention not in ATTENTION_KINDS:
        known = ", ".join(ATTENTION_KINDS)
        raise LLMNERError(Errors.E006.format(value=attention, what="attention", known=known))
    check_sizes(layer=(layer or 0, 0), width=(width, 1), max_words=(max_words, 1))
    return settings_model("ember_paper", PaperSettings(layer, attention, width, max_words))


class PaperProbe(nn.Module):
    """Token-type probe and span probe, each Linear, ReLU, Linear.

    settings (PaperSettings): Sizes and variant.
    dims (Dims): Of the LLM (the span probe takes layers * heads weights), and the number of labels.
    """

    def __init__(self, settings: PaperSettings, dims: Dims) -> None:
        super().__init__()
        self.settings = settings
        n_weights = dims.n_layers * dims.n_heads * (2 if settings.attention == "both" else 1)
        width = settings.width
        # Inputs are standardised: another way to write the first layer, but attention weights are so
        # small that the paper's networks would need many more steps without it.
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
        """The paper's probes have none; the rate is ignored."""

    def fit_scale(self, sample: WordFeatures) -> None:
        """Take mean and spread of hidden states and attention weights from a sample of words."""
        assert sample.attention is not None
        self.hidden_scale.fit(sample.hidden[:, 0].to(self.hidden_scale.mean))
        cells = sample.attention.flatten(2).flatten(0, 1).to(self.hidden_scale.mean)
        self.attention_scale.fit(cells[cells.any(1)])

    def margins(self, attention: torch.Tensor) -> torch.Tensor:
        """RETURNS (Tensor): Shape (texts, words, max_words): what the span probe says of each cell."""
        return self.spans(self.attention_scale(attention.flatten(3)))[..., 0]

    def forward(self, batch: WordBatch) -> Tuple[torch.Tensor, ...]:
        """RETURNS (Tuple[Tensor, Tensor]): Type logits, shape (texts, words, labels + 1), "outside" last;
        and span margins, shape (texts, words, max_words): above 0 where the span of k + 1 words that
        ends here is a mention ("adjacency": where the word continues the one before)."""
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
        """Cross-entropy of both probes per word: of all words, and of all causal cells (for
        "adjacency", of the words inside mentions and the one behind: methods.md 1a.3).

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
        """RETURNS (ndarray): For each word its types' log-probabilities, then its spans' margins."""
        types = torch.log_softmax(scores[0][text, :n_words].float(), -1)
        return torch.cat([types, scores[1][text, :n_words].float()], -1).cpu().numpy()

    def decoder(self, threshold: float) -> "PaperDecoder":
        if self.adjacency:
            return AdjacencyDecoder(self.n_types, self.settings.max_words, threshold)
        return PaperDecoder(self.n_types, self.settings.max_words, threshold)

    def within_sentences(self, rows: np.ndarray, starts: Sequence[bool]) -> np.ndarray:
        """Rule out mentions that cross a sentence boundary. RETURNS (ndarray): A changed copy."""
        n_types = self.n_types
        if self.adjacency:
            joins = np.where(np.array(starts)[:, None], IMPOSSIBLE, rows[:, n_types:])
        else:
            joins = mask_crossing(rows[:, n_types:], starts)
        return np.concatenate([rows[:, :n_types], joins], axis=1)

    def all_mentions(self, rows: np.ndarray, least: float) -> List[ScoredSpan]:
        """RETURNS (List[ScoredSpan]): Every typed span at least that probable, nested ones too."""
        decoder = self.decoder(0.5)
        out = []
        for e, row in enumerate(rows):
            decoder.push(row)
            label = decoder.type_of(e)
            if label is not None:
                for k in range(min(e + 1, self.settings.max_words)):
                    score = decoder.score(e - k, e + 1, label)
                    if score >= least:
                        out.append(ScoredSpan(e - k, e + 1, label, score))
        return out

    def stream(self) -> "PaperStream":
        return PaperStream(self)


class PaperDecoder:
    """Label propagation with the span probe (methods.md 1a.4): the span probe proposes the best start for
    each end, the type at the end vetoes or labels, and ends further right go first.

    n_types (int): Labels and "outside".
    max_words (int): Longest mention.
    threshold (float): Probability at which the span probe's proposal counts.
    """

    def __init__(self, n_types: int, max_words: int, threshold: float = 0.5) -> None:
        self.chain = Chain(max_words)
        self.n_types = n_types
        self.margin = float(np.log(threshold) - np.log1p(-threshold))
        self.rows: List[np.ndarray] = []

    def push(self, row: np.ndarray) -> None:
        """row (ndarray): From PaperProbe.rows."""
        self.rows.append(row)
        label = self.type_of(len(self.rows) - 1)
        best = int(row[self.n_types :].argmax())
        if label is None or row[self.n_types + best] < self.margin:
            self.chain.push(1, None)
        else:
            self.chain.push(best + 1, label)

    def type_of(self, word: int) -> Optional[int]:
        """RETURNS (Optional[int]): The most probable type of a word; None is outside."""
        best = int(self.rows[word][: self.n_types].argmax())
        return None if best == self.n_types - 1 else best

    def score(self, start: int, end: int, label: int) -> float:
        """Probability of the span times that of its type, as the two probes see them."""
        row = self.rows[end - 1]
        return float(np.exp(row[label]) * _sigmoid(row[self.n_types + end - start - 1]))


class AdjacencyDecoder(PaperDecoder):
    """Adjacency propagation: a mention goes left as long as each word continues the one before."""

    def push(self, row: np.ndarray) -> None:
        """row (ndarray): From PaperProbe.rows, with one margin."""
        self.rows.append(row)
        e = len(self.rows) - 1
        label = self.type_of(e)
        if label is None:
            self.chain.push(1, None)
            return
        length = 1
        while length < min(self.chain.max_words, e + 1):
            if self.rows[e - length + 1][self.n_types] < self.margin:
                break
            length += 1
        self.chain.push(length, label)

    def score(self, start: int, end: int, label: int) -> float:
        """Probability that all words continue, and the first one doesn't, times that of the type."""
        joins = [_sigmoid(self.rows[i][self.n_types]) for i in range(start + 1, end)]
        opens = 1.0 if start == 0 else 1.0 - _sigmoid(self.rows[start][self.n_types])
        return float(np.exp(self.rows[end - 1][label]) * np.prod(joins) * opens)


class PaperStream:
    """The paper's probes word by word: a word's cells are all there when it comes.

    probe (PaperProbe): Any variant.
    """

    def __init__(self, probe: PaperProbe) -> None:
        self.probe = probe
        self.n_words = 0

    @torch.no_grad()
    def push(self, word: WordFeatures, surface: np.ndarray) -> Optional[np.ndarray]:
        """Add the next word. RETURNS (Optional[ndarray]): Its row."""
        batch = one_word(word, surface)
        row = self.probe.rows(self.probe(batch), 0, 1)[0]
        # Alone in its batch, the word looks like the first of a text.
        assert batch.attention is not None
        margins = self.probe.margins(batch.attention)[0, 0].float().cpu().numpy()
        self.n_words += 1
        margins[self.n_words :] = IMPOSSIBLE
        row[-len(margins) :] = margins
        return row

    def end(self) -> Optional[np.ndarray]:
        """RETURNS (Optional[ndarray]): Nothing is left."""
        return None


def _sigmoid(x: float) -> float:
    return float(1.0 / (1.0 + np.exp(-np.clip(x, -30, 30))))
