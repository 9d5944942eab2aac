"""Few-shot mode: a few labelled sentences, no training. Words get the type of their nearest neighbours.

EMBER, arXiv 2403.11747 (methods.md 1a.7). The paper takes the type of the one stored word with the
largest cosine. Here the states are brought to one scale first, a word is compared together with the words
beside it, and the mean over the five nearest of each type counts. With five sentences for each label that
more than doubles the F1.
"""

from dataclasses import dataclass
from typing import (
    Any,
    Dict,
    Iterable,
    List,
    Mapping,
    Optional,
    Sequence,
    Tuple,
    Union,
)

import numpy as np
import torch
import torch.nn.functional as F
from spacy.training import Example
from thinc.api import Model
from torch import nn

from ...errors import Errors, LLMNERError, wrong
from ...pipeline.base import settings_model
from ...pipeline.gold import aligned_entities
from ..features.batch import GoldSpans, WordBatch, one_word
from ..features.words import WordFeatures, WordReader
from .base import Dims, check_sizes
from .fewshot_decoders import FewShotDecoder, JoinDecoder
from .segmentation import IMPOSSIBLE, ScoredSpan, mask_crossing

# Stored words of a type, and stored spans, whose mean cosine counts.
NEIGHBOURS = 5
# Weight of the words on both sides of a word.
NEIGHBOUR_WEIGHT = 0.5
# From cosines to log-probabilities, so that scores are near to the share of right entities.
SHARPNESS = 15.0
CLIP = 8.0
# Words compared at once.
CHUNK = 1024

Annotated = Union[Example, Tuple[str, Dict[str, Any]]]


@dataclass(frozen=True)
class FewShotSettings:
    """See make_ember_few_shot."""

    layer: Optional[int]
    k: int
    attention: Optional[str]
    read_twice: bool
    max_words: int

    @property
    def streams(self) -> bool:
        return not self.read_twice

    def reader(self, dims: Dims, max_batch_tokens: int = 2048) -> WordReader:
        """RETURNS (WordReader): Reads one layer, and attention if spans are told by it."""
        layer = round(dims.n_layers * 16 / 30) if self.layer is None else self.layer
        return WordReader(
            (layer,),
            self.attention,
            max_words=self.max_words,
            max_batch_tokens=max_batch_tokens,
            read_twice=self.read_twice,
        )

    def build(self, dims: Dims) -> "FewShotProbe":
        return FewShotProbe(self, dims)


def make_ember_few_shot(
    layer: Optional[int] = None,
    k: int = 5,
    attention: Optional[str] = None,
    read_twice: bool = False,
    max_words: int = 8,
) -> Model:
    """Registered as `spacy_llmner.EmberFewShot.v1` in `@architectures`.

    layer (Optional[int]): Layer whose hidden states are compared; None is a little above the middle.
    k (int): Sentences kept for each label, and sentences kept without any entity.
    attention (Optional[str]): None joins adjacent words of the same type; "next" finds where a mention
        starts by the attention of the token behind it, as the paper does.
    read_twice (bool): The LLM reads the text two times in a row, and is probed in the second copy, where
        it knows the whole text. Better on finished text, at twice the cost; can't stream. Not with
        attention.
    max_words (int): Longest mention in words.
    RETURNS (Model): Carries the settings.
    """
    if attention not in (None, "next"):
        known = "null, next"
        raise LLMNERError(Errors.E006.format(value=attention, what="attention", known=known))
    if attention and read_twice:
        raise wrong("model.attention", "ember_probe", attention, "null with read_twice")
    check_sizes(layer=(layer or 0, 0), k=(k, 1), max_words=(max_words, 1))
    return settings_model(
        "ember_few_shot", FewShotSettings(layer, k, attention, read_twice, max_words)
    )


def as_example(name: str, given: Annotated, tokenizer: Any) -> Example:
    """Make an Example of a text with its annotation.

    name (str): Name of the component, for messages.
    tokenizer (Tokenizer): That of the pipeline.
    RAISES (LLMNERError): If it is neither an Example nor (text, {"entities": [(start, end, label)]}).
    """
    if isinstance(given, Example):
        return given
    try:
        text, annotation = given
        return Example.from_dict(tokenizer(text), annotation)
    except (AttributeError, KeyError, TypeError, ValueError) as e:
        must = (
            f"Examples, or (text, {{'entities': [(start, end, label)]}}) ({type(e).__name__}: {e})"
        )
        raise wrong("examples", name, given, must) from e


Chosen = Tuple[Example, List[Tuple[int, int, str]], List[Tuple[int, int]]]


def choose(examples: Iterable[Example], k: int) -> List[Chosen]:
    """Keep the first k sentences of each label, and the first k without any.

    RETURNS (List[Tuple[Example, List, List]]): Each with its entities, and the words to leave out: those
        without annotation, and the mentions of a label that has k sentences already.
    """
    counts: Dict[str, int] = {}
    chosen: List[Chosen] = []
    for eg in examples:
        if not len(eg.predicted):
            continue
        entities, unknown = aligned_entities(eg)
        # A text that nothing is known about says nothing, also not that it has no entity.
        known = sum(end - start for start, end in unknown) < len(eg.predicted)
        labels = {label for _, _, label in entities} or ({""} if known else set())
        wanted = {label for label in labels if counts.get(label, 0) < k}
        if not wanted:
            continue
        for label in wanted:
            counts[label] = counts.get(label, 0) + 1
        unknown = unknown + [(s, e) for s, e, label in entities if label not in wanted]
        chosen.append((eg, [ent for ent in entities if ent[2] in wanted], unknown))
    return chosen


class FewShotProbe(nn.Module):
    """Nearest neighbours in buffers: nothing in it is trained.

    settings (FewShotSettings): Variant and sizes.
    dims (Dims): Of the LLM, and the number of labels.

    Buffers: `mean` and `std` of a state over the stored words; `vectors`, shape (stored words,
    3 * width), of length 1, and their `types`; `cells`, shape (stored mentions, layers * heads), of
    length 1: the attention between the ends of mentions, if it is used.
    """

    mean: torch.Tensor
    std: torch.Tensor
    vectors: torch.Tensor
    types: torch.Tensor
    cells: torch.Tensor

    def __init__(self, settings: FewShotSettings, dims: Dims) -> None:
        super().__init__()
        self.settings = settings
        self.n_types = dims.n_labels + 1
        self.register_buffer("mean", torch.zeros(dims.width))
        self.register_buffer("std", torch.ones(dims.width))
        self.register_buffer("vectors", torch.zeros(0, 3 * dims.width))
        self.register_buffer("types", torch.zeros(0, dtype=torch.long))
        self.register_buffer("cells", torch.zeros(0, dims.n_layers * dims.n_heads))

    def store(self, batch: WordBatch, gold: Sequence[GoldSpans]) -> None:
        """Keep the words of annotated texts.

        gold (Sequence[GoldSpans]): For each text its mentions, and the words to leave out.
        """
        types = torch.where(batch.mask, self.n_types - 1, -1)
        cells = []
        for row, (mentions, unknown) in enumerate(gold):
            for start, end in unknown:
                types[row, start:end] = -1
            for start, end, label in mentions:
                types[row, start:end] = label
                if batch.attention is not None and end - start <= self.settings.max_words:
                    cells.append(batch.attention[row, end - 1, end - start - 1].flatten())
        states = batch.hidden[batch.mask][:, 0]
        self.mean = states.mean(0)
        self.std = states.std(0, unbiased=False) + 1e-3
        kept = types >= 0
        self.vectors = self.with_neighbours(self.scaled(batch) * batch.mask[..., None])[kept]
        self.types = types[kept]
        if cells:
            self.cells = F.normalize(torch.stack(cells), dim=-1)

    def load_state_dict(self, state_dict: Mapping[str, Any], *args: Any, **kwargs: Any) -> Any:
        """How many words are stored is not known before."""
        for name in ("vectors", "types", "cells"):
            setattr(self, name, torch.empty_like(state_dict[name]))
        return super().load_state_dict(state_dict, *args, **kwargs)

    def forward(self, batch: WordBatch) -> Tuple[torch.Tensor, ...]:
        """RETURNS (Tuple[Tensor, Tensor]): Log-probabilities of the types, shape (texts, words,
        labels + 1), "outside" last; and of a mention's length, shape (texts, words, max_words). Without
        attention that is one zero per word."""
        z = self.scaled(batch) * batch.mask[..., None]
        types = self.type_scores(self.with_neighbours(z))
        if batch.attention is None:
            return types, types.new_zeros(*types.shape[:2], 1)
        return types, self.length_scores(batch.attention)

    def scaled(self, batch: WordBatch) -> torch.Tensor:
        """RETURNS (Tensor): Shape (texts, words, width), each word's state on one scale and of length 1."""
        z = (batch.hidden[:, :, 0] - self.mean) / self.std
        return F.normalize(z.clamp(-CLIP, CLIP), dim=-1)

    def with_neighbours(self, z: torch.Tensor) -> torch.Tensor:
        """Put each word's state together with those of the words beside it, zeros at the ends."""
        before = F.pad(z, (0, 0, 1, 0))[:, :-1]
        after = F.pad(z, (0, 0, 0, 1))[:, 1:]
        return F.normalize(
            torch.cat([z, NEIGHBOUR_WEIGHT * before, NEIGHBOUR_WEIGHT * after], -1), dim=-1
        )

    def type_scores(self, vectors: torch.Tensor) -> torch.Tensor:
        """vectors (Tensor): Shape (..., 3 * width). RETURNS (Tensor): Shape (..., labels + 1)."""
        flat = vectors.flatten(0, -2)
        scores = flat.new_full((len(flat), self.n_types), -1.0)
        for label in range(self.n_types):
            stored = self.vectors[self.types == label]
            if len(stored):
                parts = [_nearest(part, stored) for part in flat.split(CHUNK)]
                scores[:, label] = torch.cat(parts)
        return torch.log_softmax(SHARPNESS * scores, -1).view(*vectors.shape[:-1], -1)

    def length_scores(self, attention: torch.Tensor, first: int = 0) -> torch.Tensor:
        """attention (Tensor): Shape (texts, words, max_words, kinds, layers * heads).
        first (int): Place of the first of the words in its text.
        RETURNS (Tensor): Shape (texts, words, max_words)."""
        cells = F.normalize(attention.flatten(3), dim=-1)
        scores = cells.new_zeros(cells.shape[:-1])
        if len(self.cells):
            parts = [_nearest(part, self.cells) for part in cells.flatten(0, -2).split(CHUNK)]
            scores = SHARPNESS * torch.cat(parts).view(scores.shape)
        positions = first + torch.arange(scores.shape[1], device=scores.device)[:, None]
        lengths = torch.arange(scores.shape[2], device=scores.device)
        return torch.log_softmax(scores.masked_fill(positions < lengths, IMPOSSIBLE), -1)

    def loss(self, scores: Tuple[torch.Tensor, ...], gold: Sequence[GoldSpans]) -> Any:
        """RAISES (LLMNERError): Always: nothing is trained."""
        raise LLMNERError(Errors.E032)

    def set_dropout(self, drop: float) -> None:
        """Nothing is dropped."""

    def fit_scale(self, sample: WordFeatures) -> None:
        """The scale is that of the stored words."""

    def rows(self, scores: Tuple[torch.Tensor, ...], text: int, n_words: int) -> np.ndarray:
        """RETURNS (ndarray): For each word the types' log-probabilities, then those of the lengths."""
        return torch.cat([s[text, :n_words].float() for s in scores], -1).cpu().numpy()

    def decoder(self, threshold: float) -> "FewShotDecoder":
        kind = JoinDecoder if self.settings.attention is None else FewShotDecoder
        return kind(self.n_types, self.settings.max_words, threshold)

    def within_sentences(self, rows: np.ndarray, starts: Sequence[bool]) -> np.ndarray:
        """Rule out mentions that cross a sentence boundary. RETURNS (ndarray): A changed copy."""
        types, lengths = rows[:, : self.n_types], rows[:, self.n_types :]
        if self.settings.attention is None:
            lengths = np.where(np.array(starts)[:, None], IMPOSSIBLE, lengths)
        else:
            lengths = mask_crossing(lengths, starts)
        return np.concatenate([types, lengths], axis=1)

    def all_mentions(self, rows: np.ndarray, least: float) -> List[ScoredSpan]:
        """RETURNS (List[ScoredSpan]): The mentions that win against no mention with that threshold; with
        attention also every other start that is at least that probable."""
        decoder = self.decoder(max(least, 1e-6))
        for row in rows:
            decoder.push(row)
        found = set(decoder.chain.trace())
        if self.settings.attention is not None:
            for e in range(len(rows)):
                label = decoder.type_of(e)
                if label is None:
                    continue
                for k in range(min(e + 1, self.settings.max_words)):
                    if decoder.score(e - k, e + 1, label) >= least:
                        found.add((e - k, e + 1, label))
        return [ScoredSpan(*key, decoder.score(*key)) for key in sorted(found)]

    def stream(self) -> "FewShotStream":
        return FewShotStream(self)


class FewShotStream:
    """The probe word by word: each word's row comes when the word after it is known.

    probe (FewShotProbe): Any variant.
    """

    def __init__(self, probe: FewShotProbe) -> None:
        self.probe = probe
        self.nothing = torch.zeros_like(probe.mean)
        self.before = self.nothing
        self.waiting: Optional[torch.Tensor] = None
        self.attention: Optional[torch.Tensor] = None
        self.n_words = 0

    @torch.no_grad()
    def push(self, word: WordFeatures, surface: np.ndarray) -> Optional[np.ndarray]:
        """Add the next word. RETURNS (Optional[ndarray]): The row of the word before it, if any."""
        batch = one_word(word, surface)
        z = self.probe.scaled(batch)[0, 0]
        row = self._row(z)
        self.waiting, self.attention = z, batch.attention
        return row

    @torch.no_grad()
    def end(self) -> Optional[np.ndarray]:
        """RETURNS (Optional[ndarray]): The row of the last word, behind which the text ends."""
        row = self._row(self.nothing)
        self.waiting = None
        return row

    def _row(self, after: torch.Tensor) -> Optional[np.ndarray]:
        if self.waiting is None:
            return None
        near = torch.stack([self.before, self.waiting, after])
        types = self.probe.type_scores(self.probe.with_neighbours(near[None])[:, 1:2])
        lengths = types.new_zeros(1, 1, 1)
        if self.attention is not None:
            lengths = self.probe.length_scores(self.attention, self.n_words)
        self.before = self.waiting
        self.n_words += 1
        return self.probe.rows((types, lengths), 0, 1)[0]


def _nearest(vectors: torch.Tensor, stored: torch.Tensor) -> torch.Tensor:
    """RETURNS (Tensor): Shape (vectors,): mean cosine to the nearest stored ones."""
    cosines = vectors @ stored.T
    return cosines.topk(min(NEIGHBOURS, len(stored)), dim=-1).values.mean(-1)
