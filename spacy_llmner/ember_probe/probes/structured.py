"""The default probe: it combines several layers with a small recurrent encoder and a semi-Markov decoder.

The encoder reads the words from left to right. The scores of a word depend on the next word, but on nothing
after that, so while streaming, the probe lags only one word. With `look_right`, the encoder reads in both
directions, for finished text only.
"""

from dataclasses import dataclass
from typing import Any, List, Optional, Sequence, Tuple

import numpy as np
import torch
import torch.nn.functional as F
from thinc.api import Model
from torch import nn

from ...errors import is_at_least, wrong
from ...pipeline.base import settings_model
from ..features.batch import SURFACE, GoldSpans, WordBatch
from ..features.words import WordFeatures, WordReader
from .base import Dims, check_sizes
from .segmentation import IMPOSSIBLE, Decoded, mask_blank, mask_crossing
from .semi_markov import SemiMarkovDecoder, decode_texts, loss_and_gradient
from .standardize import Standardize
from .structured_stream import NORM_EPS, StreamWeights, StructuredStream

# Without a prefix, the LLM's states of the first words of a text are less informative
# (benchmarks/RESULTS.md).
PREFIX = "Find the names of people, organizations, places and other things in this text:\n"


@dataclass(frozen=True)
class StructuredSettings:
    """See make_ember_probe."""

    layers: Optional[Tuple[int, ...]]
    width: int
    max_words: int
    look_right: bool
    read_twice: bool = False
    prefix: str = ""
    surface_width: int = 64
    surface_rows: int = 4096

    @property
    def streams(self) -> bool:
        return not (self.look_right or self.read_twice)

    def reader(self, dims: Dims, max_batch_tokens: int = 2048) -> WordReader:
        """RETURNS (WordReader): Reads hidden states only, so the LLM can stop after the last layer."""
        layers = self.layers
        if layers is None:
            # The middle layers, which are best for finding and typing names (benchmarks/RESULTS.md).
            layers = tuple(sorted({round(dims.n_layers * part / 30) for part in (8, 12, 16, 20)}))
        return WordReader(
            layers,
            read_twice=self.read_twice,
            prefix=self.prefix,
            max_batch_tokens=max_batch_tokens,
        )

    def build(self, dims: Dims) -> "StructuredProbe":
        return StructuredProbe(self, dims, len(self.reader(dims).layers))


def make_ember_probe(
    layers: Optional[List[int]] = None,
    width: int = 160,
    max_words: int = 8,
    look_right: bool = False,
    read_twice: bool = False,
    prefix: str = PREFIX,
) -> Model:
    """Create the settings of the default probe.

    Registered as `spacy_llmner.EmberProbe.v1` in `@architectures`.

    layers (Optional[List[int]]): Layers of the LLM that are read (0 is the embeddings); None uses four
        layers from a quarter to two thirds of its depth.
    width (int): Width of the probe's own layers.
    max_words (int): Longest mention in words.
    look_right (bool): Read finished text in both directions. Can't stream.
    read_twice (bool): Let the LLM read the text twice in a row, and use the states of the second copy, for
        which it has seen the whole text. More accurate on finished text, at twice the cost. Can't stream.
    prefix (str): Text that the LLM reads before every finished text, to know what to look for; "" for none.
        It is encoded once. In a stream, the LLM's prompt takes its place.
    RETURNS (Model): Carries the settings.
    RAISES (LLMNERError): If a setting is invalid.
    """
    check_sizes(width=(width, 2), max_words=(max_words, 1))
    if layers is not None and not (layers and all(is_at_least(0, layer) for layer in layers)):
        raise wrong(
            "model.layers", "ember_probe", layers, "numbers of layers, 0 for the embeddings"
        )
    chosen = None if layers is None else tuple(layers)
    return settings_model(
        "ember_probe", StructuredSettings(chosen, width, max_words, look_right, read_twice, prefix)
    )


class StructuredProbe(nn.Module):
    """Scores every span of up to max_words words for every label.

    settings (StructuredSettings): Sizes and direction.
    dims (Dims): Sizes of the LLM, and the number of labels.
    n_layers (int): Number of layers that are read.
    """

    def __init__(self, settings: StructuredSettings, dims: Dims, n_layers: int) -> None:
        super().__init__()
        self.settings = settings
        width, n_rows = settings.width, settings.surface_rows
        self.scale = Standardize((n_layers, dims.width))
        self.project = nn.Linear(n_layers * dims.width, width)
        tables = [nn.Embedding(n_rows, settings.surface_width) for _ in SURFACE]
        for table in tables:
            nn.init.normal_(table.weight, std=0.3)
        self.embed = nn.ModuleList(tables)
        self.embed_project = nn.Linear(len(SURFACE) * settings.surface_width, width)
        self.norm = nn.LayerNorm(width, eps=NORM_EPS)
        self.forwards = nn.GRU(width, width, batch_first=True)
        self.backwards = nn.GRU(width, width, batch_first=True) if settings.look_right else None
        head = 5 * width // 8
        encoded = (3 if settings.look_right else 2) * width
        self.start = nn.Linear(encoded, head)
        self.end = nn.Linear(encoded, head)
        self.before = nn.Linear(width, head)
        self.after = nn.Linear(width, head)
        self.inside = nn.Linear(width, head)
        self.length = nn.Parameter(torch.zeros(settings.max_words, head))
        self.output = nn.Linear(head, dims.n_labels)
        self.drop = 0.0
        # The weights of the last stream, with their addresses and versions.
        self._streamed: Optional[Tuple[List[Tuple[int, int]], Any, StreamWeights]] = None

    def set_dropout(self, drop: float) -> None:
        """drop (float): Rate between the layers. A quarter of it applies to the hidden states. Surface
        features are dropped for whole words: the lower-case form at 1.25 times the rate, so that the
        probe does not memorize names, and the others at 0.375 times the rate.
        """
        self.drop = drop

    def fit_scale(self, sample: WordFeatures) -> None:
        """Estimate mean and standard deviation of the hidden states from a sample of words."""
        self.scale.fit(sample.hidden.to(self.scale.mean))

    def forward(self, batch: WordBatch) -> Tuple[torch.Tensor, ...]:
        """RETURNS (Tuple[Tensor]): One tensor, shape (texts, words, max_words, labels): cell [b, e, k, c]
        is the score of label c for the span of k + 1 words that ends with word e. It is compared with 0,
        the score of words outside mentions.
        """
        spans, impossible = self.spans(batch)
        return (self.output(spans).masked_fill(impossible[..., None], IMPOSSIBLE),)

    def spans(self, batch: WordBatch) -> Tuple[torch.Tensor, torch.Tensor]:
        """RETURNS (Tuple[Tensor, Tensor]): A vector for each span, in the order of the scores of `forward`,
        shape (texts, words, max_words, head); and whether each span is impossible because it would cross an
        end of the text, shape (texts, words, max_words).
        """
        mask = batch.mask
        z = self.words(batch) * mask[..., None]
        after = _shift(z, 1)
        r = self._encode(z, batch.lengths)
        starts = self.start(r) + self.before(_shift(z, -1))
        ends = self.end(r) + self.after(after)
        n_words = z.shape[1]
        sums = F.pad(self.inside(z).cumsum(1), (0, 0, 1, 0))
        spans = []
        for k in range(self.settings.max_words):
            # The mean over the words e - k to e is the difference of two sums.
            first = torch.add(starts, sums[:, :-1], alpha=-1 / (k + 1))
            last = torch.add(ends, sums[:, 1:], alpha=1 / (k + 1)) + self.length[k]
            last[:, k:] += first[:, : max(n_words - k, 0)]
            spans.append(last)
        positions = torch.arange(n_words, device=z.device)
        lengths = torch.arange(self.settings.max_words, device=z.device)
        impossible = (positions[:, None] < lengths)[None] | ~mask[..., None]
        return self._activate(torch.stack(spans, 2)), impossible

    def words(self, batch: WordBatch) -> torch.Tensor:
        """RETURNS (Tensor): Shape (texts, words, width): a vector for each word, without context from the
        encoder.
        """
        x = self.scale(batch.hidden).flatten(2)
        z = self.project(_drop_features(x, self.drop / 4, self.training))
        ids = batch.surface % self.settings.surface_rows
        parts = []
        for k, table in enumerate(self.embed):
            part = table(ids[..., k])
            if self.training:
                rate = self.drop * (1.25 if k == 0 else 0.375)
                part = part * (torch.rand(part.shape[:2], device=part.device) > rate)[..., None]
            parts.append(part)
        z = self.norm(z + self.embed_project(torch.cat(parts, -1)))
        return F.dropout(F.gelu(z), self.drop, self.training)

    def _encode(self, z: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
        """RETURNS (Tensor): Shape (texts, words, 2 or 3 times width). For each word, the state of the
        forward encoder is taken after the next word (after a word of zeros at the end of the text).
        """
        encoded, _ = self.forwards(F.pad(z, (0, 0, 0, 1)))
        parts = [F.dropout(encoded[:, 1:], self.drop, self.training), z]
        if self.backwards is not None:
            positions = torch.arange(z.shape[1], device=z.device)[None]
            mirror = torch.where(
                positions < lengths[:, None], lengths[:, None] - 1 - positions, positions
            )
            mirror = mirror[..., None].expand(-1, -1, z.shape[2])
            encoded, _ = self.backwards(z.gather(1, mirror))
            encoded = encoded.gather(1, mirror)
            parts.append(F.dropout(encoded, self.drop, self.training))
        return torch.cat(parts, -1)

    def _activate(self, spans: torch.Tensor) -> torch.Tensor:
        hidden = F.gelu(spans)
        if self.training and self.drop:
            # All spans that end with a word share a mask, since they compete with one another.
            shape = (*hidden.shape[:-2], 1, hidden.shape[-1])
            kept = torch.rand(shape, device=hidden.device) > self.drop
            hidden = hidden * kept / (1 - self.drop)
        return hidden

    def loss(
        self, scores: Tuple[torch.Tensor, ...], gold: Sequence[GoldSpans]
    ) -> Tuple[float, Tuple[torch.Tensor, ...]]:
        """Compute the negative log-likelihood per word.

        gold (Sequence[GoldSpans]): For each text its mentions, and the words without annotation.
        RETURNS (Tuple[float, Tuple[Tensor]]): The loss, and its gradient with respect to the scores.
        """
        values = scores[0].detach().cpu().numpy()
        max_words = self.settings.max_words
        kept = [[m for m in mentions if m[1] - m[0] <= max_words] for mentions, _ in gold]
        loss, gradient = loss_and_gradient(values, kept)
        for row, (_, unknown) in enumerate(gold):
            for start, end in unknown:
                # It is not known whether spans that contain a word without annotation are correct.
                for k in range(max_words):
                    gradient[row, start : end + k, k] = 0.0
        n_words = max(int((values[:, :, 0, 0] > IMPOSSIBLE).sum()), 1)
        d_scores = torch.from_numpy(gradient / n_words).to(scores[0])
        return loss / n_words, (d_scores,)

    def rows(self, scores: Tuple[torch.Tensor, ...], text: int, n_words: int) -> np.ndarray:
        """RETURNS (ndarray): One row per word of a text, for `decoder`."""
        return scores[0][text, :n_words].float().cpu().numpy()

    def decoder(self, threshold: float) -> SemiMarkovDecoder:
        return SemiMarkovDecoder(self.settings.max_words, threshold)

    def within_sentences(self, rows: np.ndarray, starts: Sequence[bool]) -> np.ndarray:
        """Rule out mentions that cross a sentence boundary.

        starts (Sequence[bool]): Whether each word starts a sentence.
        RETURNS (ndarray): A copy of the rows.
        """
        return mask_crossing(rows, starts)

    def decode(
        self, texts: Sequence[np.ndarray], blank: Sequence[Sequence[bool]], threshold: float
    ) -> List[Decoded]:
        """RETURNS (List[Decoded]): See Probe. All texts are decoded together."""
        return decode_texts([mask_blank(*text) for text in zip(texts, blank)], threshold)

    def stream(self) -> StructuredStream:
        return StructuredStream(self.stream_weights())

    def stream_weights(self) -> StreamWeights:
        """RETURNS (StreamWeights): The weights for streams."""
        weights = self.state_dict()
        # The stacked weights are used again until a weight changes. The old weights are kept, so that no
        # new ones get their addresses.
        versions = [(w.data_ptr(), w._version) for w in weights.values()]
        if self._streamed is None or self._streamed[0] != versions:
            self._streamed = versions, weights, StreamWeights(weights)
        return self._streamed[2]


def _shift(x: torch.Tensor, by: int) -> torch.Tensor:
    """Move row i + by to row i. Rows beyond the ends are zeros."""
    zero = torch.zeros_like(x[:, :1])
    return torch.cat([x[:, 1:], zero], 1) if by > 0 else torch.cat([zero, x[:, :-1]], 1)


def _drop_features(x: torch.Tensor, rate: float, training: bool) -> torch.Tensor:
    """Drop the same features in all words of a text.

    If only some words lacked a feature, the probe could guess it from the others.
    """
    if not training or not rate:
        return x
    kept = torch.rand((x.shape[0], 1, x.shape[2]), device=x.device) > rate
    return x * kept / (1 - rate)
