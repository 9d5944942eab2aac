"""Tokens of a text that respect the borders of its words, so that a run of words is a run of tokens."""

from dataclasses import dataclass
from typing import List, Sequence, Tuple

import numpy as np

from .tokenization import LLMTokenizer


@dataclass
class WordTokens:
    """Tokens of a text, word by word.

    ids (ndarray): int64, shape (tokens,).
    first (ndarray): int64, shape (words,): number of each word's first token, white space in front of it
        left out where that has tokens of its own.
    last (ndarray): int64, shape (words,): number of its last token; less than `first` for a word of which
        the tokenizer keeps nothing.
    bounds (ndarray): int64, shape (words, 2): first character, and one past the last.
    """

    ids: np.ndarray
    first: np.ndarray
    last: np.ndarray
    bounds: np.ndarray

    def __len__(self) -> int:
        return len(self.first)

    def part(self, start: int, end: int) -> "WordTokens":
        """RETURNS (WordTokens): Words `start` to `end`; characters are counted as before."""
        low = 0 if start == 0 else int(self.last[start - 1]) + 1
        high = len(self.ids) if end == len(self) else int(self.last[end - 1]) + 1
        return WordTokens(
            self.ids[low:high],
            self.first[start:end] - low,
            self.last[start:end] - low,
            self.bounds[start:end],
        )

    def stripped(self) -> "WordTokens":
        """RETURNS (WordTokens): Without the white space around the words that has tokens of its own."""
        if not len(self):
            return self
        low, high = int(self.first[0]), int(self.last[-1]) + 1
        return WordTokens(self.ids[low:high], self.first - low, self.last - low, self.bounds)


def word_tokens(
    tokenizer: LLMTokenizer,
    text: str,
    bounds: Sequence[Tuple[int, int]],
    *,
    inside: bool = False,
) -> WordTokens:
    """Encode a text so that no token belongs to two words.

    The text is encoded as a whole. Where that puts two words into one token, the words that hang
    together are encoded each for itself, with the space in front.

    bounds (Sequence[Tuple[int, int]]): First character of each word and one past its last, ascending.
    inside (bool): As it is encoded behind other text. See LLMTokenizer.encode_inside.
    """
    encoding = tokenizer.encode_inside(text) if inside else tokenizer.encode(text)
    marks = np.array(bounds, dtype=np.int64).reshape(-1, 2)
    from_token = np.searchsorted(encoding.ends, marks[:, 0], side="right")
    to_token = np.searchsorted(encoding.starts, marks[:, 1], side="left")
    glued = from_token[1:] < to_token[:-1]
    alone = ~(np.append(glued, False) | np.insert(glued, 0, False)[: len(marks)])
    ids: List[int] = []
    first, last = np.zeros(len(marks), dtype=np.int64), np.zeros(len(marks), dtype=np.int64)
    read = 0
    for w, (start, end) in enumerate(marks):
        if alone[w]:
            ids.extend(encoding.ids[read : from_token[w]])
            first[w] = len(ids)
            ids.extend(encoding.ids[from_token[w] : to_token[w]])
        else:
            before = int(marks[w - 1, 1]) if w else 0
            encode = tokenizer.encode_inside if before or inside else tokenizer.encode
            piece = encode(text[before:end])
            space = int(np.searchsorted(piece.ends, start - before, side="right"))
            first[w] = len(ids) + space
            ids.extend(piece.ids)
        read = max(read, int(to_token[w]))
        last[w] = len(ids) - 1
    ids.extend(encoding.ids[read:])
    return WordTokens(np.array(ids, dtype=np.int64), first, last, marks)


def spelling(tokenizer: LLMTokenizer, word: str) -> List[int]:
    """RETURNS (List[int]): Tokens of a word without a space in front."""
    return list(tokenizer.encode_inside(word).ids)
