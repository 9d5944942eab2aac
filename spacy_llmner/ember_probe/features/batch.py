"""Padded batches of words, the input of a probe."""

from dataclasses import dataclass
from itertools import chain
from typing import Iterator, List, Optional, Sequence, Tuple, Union

import numpy as np
import torch
from spacy.attrs import LOWER, PREFIX, SHAPE, SUFFIX
from spacy.tokens import Doc

from ...llm.transfer import to_device
from ...util import padded_positions
from .words import WordFeatures, token_attributes

# Token attributes that describe what a word looks like.
SURFACE: List[Union[int, str]] = [LOWER, PREFIX, SUFFIX, SHAPE]


@dataclass
class WordBatch:
    """Words of a batch of texts.

    hidden (Tensor): float32, shape (texts, words, layers, width); 0 after the end of a text.
    surface (Tensor): int64, shape (texts, words, 4): hashes of the lower-case form, prefix, suffix and
        shape.
    lengths (Tensor): int64, shape (texts,): number of words.
    attention (Optional[Tensor]): float32, shape (texts, words, max_words, kinds, layers * heads).
    """

    hidden: torch.Tensor
    surface: torch.Tensor
    lengths: torch.Tensor
    attention: Optional[torch.Tensor] = None

    @property
    def mask(self) -> torch.Tensor:
        """RETURNS (Tensor): bool, shape (texts, words): False for padding."""
        positions = torch.arange(self.surface.shape[1], device=self.lengths.device)
        return positions[None] < self.lengths[:, None]


def collate(
    features: Sequence[WordFeatures], surfaces: Sequence[np.ndarray], device: torch.device
) -> WordBatch:
    """Pad the words of some texts to a batch.

    features (Sequence[WordFeatures]): One for each text.
    surfaces (Sequence[ndarray]): From `surface` or `surfaces`, for all words.
    device (torch.device): Device of the batch.
    RETURNS (WordBatch): The batch, in float32.
    """
    lengths = [len(f) for f in features]
    width = max(lengths)

    def pad(words: Sequence[torch.Tensor]) -> torch.Tensor:
        # One call copies the words of all texts, and zeros after the words of each.
        zeros = words[0].new_zeros((width, *words[0].shape[1:]))
        parts = chain.from_iterable((of_text, zeros[len(of_text) :]) for of_text in words)
        padded = torch.cat(list(parts)).unflatten(0, (len(lengths), width))
        return padded.to(device).float()

    attention = [f.attention for f in features if f.attention is not None]
    ids = np.zeros((len(lengths) * width, len(SURFACE)), dtype=np.int64)
    ids[padded_positions(lengths, width)] = np.concatenate(surfaces)
    return WordBatch(
        pad([f.hidden for f in features]),
        to_device(ids.reshape(len(lengths), width, -1), device),
        to_device(np.array(lengths), device),
        pad(attention) if attention else None,
    )


def one_word(features: WordFeatures, surfaces: np.ndarray) -> WordBatch:
    """Create a batch of one text with one word, in fewer calls than `collate` needs.

    features (WordFeatures): Features of the word.
    surfaces (ndarray): The word's row of `surface`.
    RETURNS (WordBatch): The batch, on the device of the features.
    """
    device = features.hidden.device
    ids = torch.from_numpy(surfaces)[None, None].to(device)
    attention = None if features.attention is None else features.attention[None]
    ones = torch.ones(1, dtype=torch.long, device=device)
    return WordBatch(features.hidden[None], ids, ones, attention)


def surface(doc: Doc) -> np.ndarray:
    """RETURNS (ndarray): int64, shape (words, 4): non-negative hashes of the SURFACE attributes."""
    return surfaces([doc])


def surfaces(docs: Sequence[Doc]) -> np.ndarray:
    """RETURNS (ndarray): int64, shape (words, 4): as in `surface`, for the words of all Docs."""
    return (token_attributes(docs, SURFACE) >> np.uint64(1)).view(np.int64)


def groups_by_words(lengths: Sequence[int], max_words: int) -> Iterator[List[int]]:
    """Split a sequence of texts into groups of at most `max_words` words.

    A longer text is a group of its own.

    lengths (Sequence[int]): Number of words of each text.
    YIELDS (List[int]): Indices of the texts of a group, without empty texts.
    """
    group: List[int] = []
    n_words = 0
    for i, length in enumerate(lengths):
        if group and n_words + length > max_words:
            yield group
            group, n_words = [], 0
        if length:
            group.append(i)
            n_words += length
    if group:
        yield group


# For one text: (start, end, label index) of each mention, and (start, end) of words without annotation.
GoldSpans = Tuple[List[Tuple[int, int, int]], List[Tuple[int, int]]]
