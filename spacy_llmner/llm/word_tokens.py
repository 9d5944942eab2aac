"""Encode a text so that no token crosses a word boundary: every span of words is a span of tokens."""

from dataclasses import dataclass
from typing import List, Sequence, Tuple

import numpy as np

from .tokenization import LLMTokenizer


@dataclass
class WordTokens:
    """The tokens of a text, aligned with its words.

    ids (ndarray): int64, shape (tokens,).
    first (ndarray): int64, shape (words,): index of each word's first token, after any separate tokens of
        white space before the word.
    last (ndarray): int64, shape (words,): index of each word's last token; less than `first` if the
        tokenizer drops the word.
    bounds (ndarray): int64, shape (words, 2): first character of each word, and one past its last.
    """

    ids: np.ndarray
    first: np.ndarray
    last: np.ndarray
    bounds: np.ndarray

    def __len__(self) -> int:
        return len(self.first)

    def part(self, start: int, end: int) -> "WordTokens":
        """RETURNS (WordTokens): Words `start` to `end`, with unchanged character offsets."""
        low = 0 if start == 0 else int(self.last[start - 1]) + 1
        high = len(self.ids) if end == len(self) else int(self.last[end - 1]) + 1
        return WordTokens(
            self.ids[low:high],
            self.first[start:end] - low,
            self.last[start:end] - low,
            self.bounds[start:end],
        )

    def stripped(self) -> "WordTokens":
        """RETURNS (WordTokens): The same words, without tokens of white space at the start and the end."""
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

    The text is encoded as a whole. Where adjacent words share a token, each of them is encoded separately,
    with the space before it.

    bounds (Sequence[Tuple[int, int]]): First character of each word and one past its last, ascending.
    inside (bool): Encode the text as a continuation of other text. See LLMTokenizer.encode_inside.
    RETURNS (WordTokens): The tokens.
    """
    encoding = tokenizer.encode_inside(text) if inside else tokenizer.encode(text)
    word_bounds = np.array(bounds, dtype=np.int64).reshape(-1, 2)
    from_token = np.searchsorted(encoding.ends, word_bounds[:, 0], side="right")
    to_token = np.searchsorted(encoding.starts, word_bounds[:, 1], side="left")
    n_words = len(word_bounds)
    shared = from_token[1:] < to_token[:-1]
    own_tokens = ~(np.append(shared, False) | np.insert(shared, 0, False)[:n_words])
    ids: List[int] = []
    first, last = np.zeros(n_words, dtype=np.int64), np.zeros(n_words, dtype=np.int64)
    n_read = 0
    for w, (start, end) in enumerate(word_bounds):
        if own_tokens[w]:
            ids.extend(encoding.ids[n_read : from_token[w]])
            first[w] = len(ids)
            ids.extend(encoding.ids[from_token[w] : to_token[w]])
        else:
            before = int(word_bounds[w - 1, 1]) if w else 0
            encode = tokenizer.encode_inside if before or inside else tokenizer.encode
            piece = encode(text[before:end])
            space = int(np.searchsorted(piece.ends, start - before, side="right"))
            first[w] = len(ids) + space
            ids.extend(piece.ids)
        n_read = max(n_read, int(to_token[w]))
        last[w] = len(ids) - 1
    ids.extend(encoding.ids[n_read:])
    return WordTokens(np.array(ids, dtype=np.int64), first, last, word_bounds)


def spelling(tokenizer: LLMTokenizer, word: str) -> List[int]:
    """RETURNS (List[int]): Token ids of a word without a space before it."""
    return list(tokenizer.encode_inside(word).ids)
