"""The default probe: layers mixed, a small recurrent encoder, span scores, a semi-Markov decoder.

It reads the words from left to right, one word behind the LLM: what it says about a word needs the
word after it and nothing more, so it streams. With `look_right` the encoder reads in both directions, for
text that is already finished.
"""

from dataclasses import dataclass
from typing import List, Optional, Sequence, Tuple

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
from .segmentation import IMPOSSIBLE, ScoredSpan, mask_crossing
from .semi_markov import NEVER, SemiMarkovDecoder, loss_and_gradient, probabilities
from .standardize import Standardize
from .structured_stream import NORM_EPS, StructuredStream

# Without words in front, the LLM is at a loss for the first ones of a text (benchmarks/RESULTS.md).
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
        """RETURNS (WordReader): Reads hidden states only, so the LLM can stop at the last layer."""
        layers = self.layers
        if layers is None:
            # The middle of the LLM, where names and types are clearest (benchmarks/RESULTS.md).
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
    """Registered as `spacy_llmner.EmberProbe.v1` in `@architectures`.

    layers (Optional[List[int]]): Layers of the LLM that are read (0 are the embeddings); None takes four
        from a quarter to two thirds of its depth.
    width (int): Width of the probe's own layers.
    max_words (int): Longest mention in words.
    look_right (bool): The probe reads finished text in both directions. It can't stream.
    read_twice (bool): The LLM reads the text two times in a row, and is probed in the second copy, where
        it knows the whole text. Better on finished text, at twice the cost; can't stream.
    prefix (str): What the LLM reads in front of every finished text, so that it knows what matters in
        it; "" for nothing. It is encoded once. While the LLM writes, its prompt stands there instead.
    RETURNS (Model): Carries the settings.
    RAISES (LLMNERError): If one of them makes no sense.
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
    dims (Dims): Of the LLM, and the number of labels.
    n_layers (int): Layers read.
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

    def set_dropout(self, drop: float) -> None:
        """drop (float): Rate between the layers; the inputs get a quarter of it, whole words
        more, so that names aren't learnt by heart."""
        self.drop = drop

    def fit_scale(self, sample: WordFeatures) -> None:
        """Take mean and spread of each state from a sample of words."""
        self.scale.fit(sample.hidden.to(self.scale.mean))

    def forward(self, batch: WordBatch) -> Tuple[torch.Tensor, ...]:
        """RETURNS (Tuple[Tensor]): One tensor, shape (texts, words, max_words, labels): cell [b, e, k]
        scores the span of k + 1 words that ends with word e against no mention."""
        mask = batch.mask
        z = self.words(batch) * mask[..., None]
        after = _shift(z, 1)
        r = self._encode(z, batch.lengths)
        starts = self.start(r) + self.before(_shift(z, -1))
        ends = self.end(r) + self.after(after)
        sums = F.pad(self.inside(z).cumsum(1), (0, 0, 1, 0))
        n_words = z.shape[1]
        back = torch.arange(n_words, device=z.device)[:, None] - torch.arange(
            self.settings.max_words, device=z.device
        )
        first = back.clamp(min=0)
        lengths = torch.arange(1, self.settings.max_words + 1, device=z.device)
        means = (sums[:, 1:, None] - sums[:, first]) / lengths[:, None]
        scores = self._score(starts[:, first], ends[:, :, None], means)
        impossible = (back < 0)[None] | ~mask[..., None]
        return (scores.masked_fill(impossible[..., None], IMPOSSIBLE),)

    def words(self, batch: WordBatch) -> torch.Tensor:
        """RETURNS (Tensor): Shape (texts, words, width): each word on its own."""
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
        """RETURNS (Tensor): Shape (texts, words, 2 or 3 times width). The state of the forward encoder
        is that after the next word (or after a word of zeros at the end of the text)."""
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

    def _score(self, starts: torch.Tensor, ends: torch.Tensor, means: torch.Tensor) -> torch.Tensor:
        hidden = F.gelu(starts + ends + means + self.length)
        if self.training and self.drop:
            # One mask for all spans of a word: they compete with each other.
            shape = (*hidden.shape[:-2], 1, hidden.shape[-1])
            kept = torch.rand(shape, device=hidden.device) > self.drop
            hidden = hidden * kept / (1 - self.drop)
        return self.output(hidden)

    def loss(
        self, scores: Tuple[torch.Tensor, ...], gold: Sequence[GoldSpans]
    ) -> Tuple[float, Tuple[torch.Tensor, ...]]:
        """Negative log-likelihood per word.

        gold (Sequence[GoldSpans]): For each text its mentions, and the words nothing is known about.
        RETURNS (Tuple[float, Tuple[Tensor]]): The loss, and the gradient of the scores.
        """
        values = scores[0].detach().cpu().numpy()
        max_words = self.settings.max_words
        kept = [[m for m in mentions if m[1] - m[0] <= max_words] for mentions, _ in gold]
        loss, gradient = loss_and_gradient(values, kept)
        for row, (_, unknown) in enumerate(gold):
            for start, end in unknown:
                # No span that touches an unknown word is right or wrong.
                for k in range(max_words):
                    gradient[row, start : end + k, k] = 0.0
        n_words = max(int((values[:, :, 0, 0] > IMPOSSIBLE).sum()), 1)
        d_scores = torch.from_numpy(gradient / n_words).to(scores[0])
        return loss / n_words, (d_scores,)

    def rows(self, scores: Tuple[torch.Tensor, ...], text: int, n_words: int) -> np.ndarray:
        """RETURNS (ndarray): One row for each word of a text, for `decoder`."""
        return scores[0][text, :n_words].float().cpu().numpy()

    def decoder(self, threshold: float) -> SemiMarkovDecoder:
        return SemiMarkovDecoder(self.settings.max_words, threshold)

    def within_sentences(self, rows: np.ndarray, starts: Sequence[bool]) -> np.ndarray:
        """Rule out mentions that cross a sentence boundary.

        starts (Sequence[bool]): Whether each word starts a sentence.
        RETURNS (ndarray): A changed copy of the rows.
        """
        return mask_crossing(rows, starts)

    def all_mentions(self, rows: np.ndarray, least: float) -> List[ScoredSpan]:
        """RETURNS (List[ScoredSpan]): Every span at least that probable, overlapping ones too."""
        scores = np.where(rows <= IMPOSSIBLE, NEVER, rows.astype(np.float64))
        posterior = probabilities(scores[None])[0][0]
        return [
            ScoredSpan(int(e - k), int(e) + 1, int(c), float(posterior[e, k, c]))
            for e, k, c in zip(*np.nonzero(posterior >= least))
        ]

    def stream(self) -> StructuredStream:
        return StructuredStream(self.state_dict())


def _shift(x: torch.Tensor, by: int) -> torch.Tensor:
    """Row i gets what stands at i + by; zeros beyond the ends."""
    zero = torch.zeros_like(x[:, :1])
    return torch.cat([x[:, 1:], zero], 1) if by > 0 else torch.cat([zero, x[:, :-1]], 1)


def _drop_features(x: torch.Tensor, rate: float, training: bool) -> torch.Tensor:
    """Drop whole features of a text, since a state that is missing in one word only is guessed."""
    if not training or not rate:
        return x
    kept = torch.rand((x.shape[0], 1, x.shape[2]), device=x.device) > rate
    return x * kept / (1 - rate)
