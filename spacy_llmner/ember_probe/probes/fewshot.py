"""The few-shot probe: it stores a few labeled sentences, and compares words with them. Nothing is trained.

EMBER's few-shot mode (arXiv 2403.11747) takes the type of the stored word with the largest cosine. This
probe standardizes the hidden states first, compares a word along with the words next to it, and averages
the cosines of the five nearest stored words of each type. With five sentences per label, this more than
doubles the F1.
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
from ...pipeline.gold import gold_mentions
from ..features.batch import GoldSpans, WordBatch, one_word
from ..features.words import WordFeatures, WordReader
from .base import Dims, check_sizes, decode_each
from .fewshot_decoders import FewShotDecoder, JoinDecoder
from .segmentation import IMPOSSIBLE, Decoded, ScoredSpan, mask_crossing
from .structured import PREFIX

# Number of nearest stored words of a type (or of nearest stored mentions) whose cosines are averaged.
NEIGHBOURS = 5
# Weight of the words before and after a word, relative to the word itself.
NEIGHBOUR_WEIGHT = 0.5
# Factor from cosines to logits, chosen so that scores are close to the fraction of correct entities.
SHARPNESS = 15.0
# Standardized states are clipped to -CLIP and CLIP.
CLIP = 8.0
# Words per matrix product with the stored words.
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
    prefix: str = ""

    @property
    def streams(self) -> bool:
        return not self.read_twice

    def reader(self, dims: Dims, max_batch_tokens: int = 2048) -> WordReader:
        """RETURNS (WordReader): Reads one layer, and the attention weights if they determine the spans."""
        layer = round(dims.n_layers * 16 / 30) if self.layer is None else self.layer
        return WordReader(
            (layer,),
            self.attention,
            max_words=self.max_words,
            max_batch_tokens=max_batch_tokens,
            read_twice=self.read_twice,
            prefix=self.prefix,
        )

    def build(self, dims: Dims) -> "FewShotProbe":
        return FewShotProbe(self, dims)


def make_ember_few_shot(
    layer: Optional[int] = None,
    k: int = 5,
    attention: Optional[str] = None,
    read_twice: bool = False,
    max_words: int = 8,
    prefix: Optional[str] = None,
) -> Model:
    """Create the settings of a few-shot probe.

    Registered as `spacy_llmner.EmberFewShot.v2` in `@architectures`.

    layer (Optional[int]): Layer whose hidden states are compared; None for a layer just above the middle.
    k (int): Sentences stored per label, and sentences stored without any entity.
    attention (Optional[str]): None joins adjacent words of the same type; "next" finds the start of a
        mention with the attention weights of the token after it, as in the paper.
    read_twice (bool): Let the LLM read the text twice in a row, and use the states of the second copy, for
        which it has seen the whole text. More accurate on finished text, at twice the cost. Can't stream,
        and can't be combined with attention.
    max_words (int): Longest mention in words.
    prefix (Optional[str]): Text that the LLM reads before every finished text, to know what to look for; ""
        for none. Can't be combined with attention. None for the prefix of EmberProbe, or for none with
        attention.
    RETURNS (Model): Carries the settings.
    RAISES (LLMNERError): If a setting is invalid.
    """
    if prefix is None:
        prefix = "" if attention else PREFIX
    if attention not in (None, "next"):
        known = "null, next"
        raise LLMNERError(Errors.E006.format(value=attention, what="attention", known=known))
    if attention and read_twice:
        raise wrong("model.attention", "ember_probe", attention, "null with read_twice")
    if attention and prefix:
        raise wrong("model.prefix", "ember_probe", prefix, '"" with attention')
    check_sizes(layer=(layer or 0, 0), k=(k, 1), max_words=(max_words, 1))
    return settings_model(
        "ember_few_shot", FewShotSettings(layer, k, attention, read_twice, max_words, prefix)
    )


def make_ember_few_shot_v1(
    layer: Optional[int] = None,
    k: int = 5,
    attention: Optional[str] = None,
    read_twice: bool = False,
    max_words: int = 8,
) -> Model:
    """Create the settings of a few-shot probe without a prefix, for pipelines that earlier versions saved.

    Registered as `spacy_llmner.EmberFewShot.v1` in `@architectures`. See `make_ember_few_shot`.
    """
    return make_ember_few_shot(layer, k, attention, read_twice, max_words, prefix="")


def as_example(name: str, given: Annotated, tokenizer: Any) -> Example:
    """Convert a text with its annotation to an Example.

    name (str): Name of the component, for error messages.
    given (Union[Example, Tuple[str, Dict]]): The text with its annotation. An Example is returned as it is.
    tokenizer (Tokenizer): The pipeline's tokenizer.
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


# An Example, its entities as (start, end, label), and (start, end) of the words to leave out.
ChosenExample = Tuple[Example, List[Tuple[int, int, str]], List[Tuple[int, int]]]


def choose(examples: Iterable[Example], k: int) -> List[ChosenExample]:
    """Choose the first k sentences of each label, and the first k sentences without entities.

    RETURNS (List[Tuple[Example, List, List]]): Each with its entities, and the words to leave out: words
        without annotation, and mentions of labels that already have k sentences.
    """
    counts: Dict[str, int] = {}
    chosen: List[ChosenExample] = []
    for eg in examples:
        if not len(eg.predicted):
            continue
        entities, unknown = gold_mentions(eg)
        # A text without any annotation is not an example of a text without entities.
        is_annotated = sum(end - start for start, end in unknown) < len(eg.predicted)
        labels = {label for _, _, label in entities} or ({""} if is_annotated else set())
        wanted = {label for label in labels if counts.get(label, 0) < k}
        if not wanted:
            continue
        for label in wanted:
            counts[label] = counts.get(label, 0) + 1
        unknown = unknown + [(s, e) for s, e, label in entities if label not in wanted]
        chosen.append((eg, [ent for ent in entities if ent[2] in wanted], unknown))
    return chosen


class FewShotProbe(nn.Module):
    """Stores words in buffers, and compares other words with them. Nothing is trained.

    settings (FewShotSettings): Variant and sizes.
    dims (Dims): Sizes of the LLM, and the number of labels.

    It has these buffers: `mean` and `std` of the states of the stored words, shape (width,); `vectors`, of
    unit length, shape (stored words, 3 * width), and their `types`; and, if attention is used, `cells`: the
    attention weights between the ends of mentions, of unit length, shape (stored mentions, layers * heads).
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
        """Store the words of annotated texts.

        batch (WordBatch): The words.
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
        """Resize the buffers first: how many words are stored depends on the examples."""
        for name in ("vectors", "types", "cells"):
            setattr(self, name, torch.empty_like(state_dict[name]))
        return super().load_state_dict(state_dict, *args, **kwargs)

    def forward(self, batch: WordBatch) -> Tuple[torch.Tensor, ...]:
        """RETURNS (Tuple[Tensor, Tensor]): Log-probabilities of the types, shape (texts, words, labels +
        1), with "outside" last; and of the length of a mention that ends with the word, shape
        (texts, words, max_words). Without attention, the latter is one zero per word.
        """
        z = self.scaled(batch) * batch.mask[..., None]
        types = self.type_scores(self.with_neighbours(z))
        if batch.attention is None:
            return types, types.new_zeros(*types.shape[:2], 1)
        return types, self.length_scores(batch.attention)

    def scaled(self, batch: WordBatch) -> torch.Tensor:
        """RETURNS (Tensor): Shape (texts, words, width): standardized states, scaled to unit length."""
        z = (batch.hidden[:, :, 0] - self.mean) / self.std
        return F.normalize(z.clamp(-CLIP, CLIP), dim=-1)

    def with_neighbours(self, z: torch.Tensor) -> torch.Tensor:
        """Concatenate each word's state with those of the words before and after it (zeros at the ends).

        RETURNS (Tensor): Shape (texts, words, 3 * width), unit length.
        """
        before = F.pad(z, (0, 0, 1, 0))[:, :-1]
        after = F.pad(z, (0, 0, 0, 1))[:, 1:]
        return F.normalize(
            torch.cat([z, NEIGHBOUR_WEIGHT * before, NEIGHBOUR_WEIGHT * after], -1), dim=-1
        )

    def type_scores(self, vectors: torch.Tensor) -> torch.Tensor:
        """vectors (Tensor): Shape (..., 3 * width).
        RETURNS (Tensor): Log-probabilities of the types, shape (..., labels + 1).
        """
        rows = vectors.flatten(0, -2)
        scores = rows.new_full((len(rows), self.n_types), -1.0)
        for label in range(self.n_types):
            stored = self.vectors[self.types == label]
            if len(stored):
                parts = [_nearest(part, stored) for part in rows.split(CHUNK)]
                scores[:, label] = torch.cat(parts)
        return torch.log_softmax(SHARPNESS * scores, -1).view(*vectors.shape[:-1], -1)

    def length_scores(self, attention: torch.Tensor, first: int = 0) -> torch.Tensor:
        """attention (Tensor): Shape (texts, words, max_words, kinds, layers * heads).
        first (int): Index of the first of these words in its text.
        RETURNS (Tensor): Log-probabilities of the lengths, shape (texts, words, max_words).
        """
        cells = F.normalize(attention.flatten(3), dim=-1)
        scores = cells.new_zeros(cells.shape[:-1])
        if len(self.cells):
            parts = [_nearest(part, self.cells) for part in cells.flatten(0, -2).split(CHUNK)]
            scores = SHARPNESS * torch.cat(parts).view(scores.shape)
        positions = first + torch.arange(scores.shape[1], device=scores.device)[:, None]
        lengths = torch.arange(scores.shape[2], device=scores.device)
        return torch.log_softmax(scores.masked_fill(positions < lengths, IMPOSSIBLE), -1)

    def loss(self, scores: Tuple[torch.Tensor, ...], gold: Sequence[GoldSpans]) -> Any:
        """RAISES (LLMNERError): Always, since nothing is trained."""
        raise LLMNERError(Errors.E032)

    def set_dropout(self, drop: float) -> None:
        """There is no dropout."""

    def fit_scale(self, sample: WordFeatures) -> None:
        """Nothing to do: `store` computes the scale."""

    def rows(self, scores: Tuple[torch.Tensor, ...], text: int, n_words: int) -> np.ndarray:
        """RETURNS (ndarray): For each word the log-probabilities of the types, then of the lengths."""
        return torch.cat([s[text, :n_words].float() for s in scores], -1).cpu().numpy()

    def decoder(self, threshold: float) -> "FewShotDecoder":
        kind = JoinDecoder if self.settings.attention is None else FewShotDecoder
        return kind(self.n_types, self.settings.max_words, threshold)

    def within_sentences(self, rows: np.ndarray, starts: Sequence[bool]) -> np.ndarray:
        """RETURNS (ndarray): A copy of the rows in which no mention can cross a sentence boundary."""
        types, lengths = rows[:, : self.n_types], rows[:, self.n_types :]
        if self.settings.attention is None:
            lengths = np.where(np.array(starts)[:, None], IMPOSSIBLE, lengths)
        else:
            lengths = mask_crossing(lengths, starts)
        return np.concatenate([types, lengths], axis=1)

    def decode(
        self, texts: Sequence[np.ndarray], blank: Sequence[Sequence[bool]], threshold: float
    ) -> List[Decoded]:
        """RETURNS (List[Decoded]): See Probe."""
        return decode_each(self, texts, blank, threshold)

    def all_mentions(
        self, rows: np.ndarray, blank: Sequence[bool], min_score: float
    ) -> List[ScoredSpan]:
        """RETURNS (List[ScoredSpan]): The mentions that are found at this threshold; with attention, also
        every mention with another start that has at least this probability.
        """
        decoder = self.decoder(max(min_score, 1e-6))
        for row, is_blank in zip(rows, blank):
            decoder.push(row, is_blank)
        found = set(decoder.chain.trace())
        if self.settings.attention is not None:
            for e in range(len(rows)):
                label = decoder.type_of(e)
                if label is None:
                    continue
                for k in range(min(e + 1, self.settings.max_words)):
                    if decoder.score(e - k, e + 1, label) >= min_score and not blank[e - k]:
                        found.add((e - k, e + 1, label))
        return [ScoredSpan(*key, decoder.score(*key)) for key in sorted(found)]

    def stream(self) -> "FewShotStream":
        return FewShotStream(self)


class FewShotStream:
    """Scores a text word by word.

    The row of a word is complete when the word after it is known.

    probe (FewShotProbe): Any variant.
    """

    def __init__(self, probe: FewShotProbe) -> None:
        self.probe = probe
        self.zeros = torch.zeros_like(probe.mean)
        self.before = self.zeros
        self.waiting: Optional[torch.Tensor] = None
        self.attention: Optional[torch.Tensor] = None
        self.n_words = 0

    @torch.no_grad()
    def push(self, word: WordFeatures, surface: np.ndarray) -> Optional[np.ndarray]:
        """Add the next word.

        RETURNS (Optional[ndarray]): The row of the word before it, if there is one.
        """
        batch = one_word(word, surface)
        z = self.probe.scaled(batch)[0, 0]
        row = self._row(z)
        self.waiting, self.attention = z, batch.attention
        return row

    @torch.no_grad()
    def end(self) -> Optional[np.ndarray]:
        """RETURNS (Optional[ndarray]): The row of the last word."""
        row = self._row(self.zeros)
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
    """RETURNS (Tensor): Shape (vectors,): mean cosine to the nearest stored vectors."""
    cosines = vectors @ stored.T
    return cosines.topk(min(NEIGHBOURS, len(stored)), dim=-1).values.mean(-1)
