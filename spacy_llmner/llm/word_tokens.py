"""Tokens of a text that respect the borders of its words, so that a run of words is a run of tokens."""

from dataclasses import dataclass
from typing import List, Optional, Sequence, Tuple

import numpy as np

from ..decoding.constraints import Substrings
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


def substrings(
    words: WordTokens, end: int, tokenizer: Optional[LLMTokenizer] = None, text: str = ""
) -> Substrings:
    """Allow every run of words of a text.

    end (int): The token that ends the answer.
    tokenizer (Optional[LLMTokenizer]): If given, the first word is spelt as it is at the beginning of
        a line, without a space in front.
    text (str): What `words` were counted in; needed with a tokenizer, and for good guesses.
    """
    there = np.flatnonzero(words.last >= words.first)
    n = len(words.ids)
    tokens, follow, ends = [words.ids], [np.arange(1, n + 1)], [np.full(n, -1)]
    ends[0][words.last[there]] = words.bounds[there, 1]
    # White space between words that has tokens of its own is part of a run of words; behind the last
    # word it would lead nowhere.
    follow[0][words.last[there[-1:]]] = -1
    first = words.first[there].copy()
    last_words = [np.zeros(n, dtype=bool)]
    if text:
        last_words[0][words.last[there]] = _likely_ends([text[s] for s in words.bounds[there, 0]])
    if tokenizer is not None:
        size = n
        for k, w in enumerate(there):
            start, stop = words.bounds[w]
            ids = spelling(tokenizer, text[start:stop])
            if ids == words.ids[words.first[w] : words.last[w] + 1].tolist() or not ids:
                continue
            jump = int(follow[0][words.last[w]])
            tokens.append(np.array(ids, dtype=np.int64))
            follow.append(np.append(np.arange(size + 1, size + len(ids)), jump))
            ends.append(np.append(np.full(len(ids) - 1, -1), stop))
            last_words.append(np.zeros(len(ids), dtype=bool))
            last_words[-1][-1] = last_words[0][words.last[w]]
            first[k] = size
            size += len(ids)
    every = [np.concatenate(part).astype(np.int64) for part in (tokens, follow, ends)]
    starts, likely_ends = words.bounds[there, 0], np.concatenate(last_words)
    return Substrings(every[0], every[1], every[2], first, starts, end, likely_ends)


def _likely_ends(initials: Sequence[str]) -> List[bool]:
    """Guess where runs of words that belong together end: where the next word begins with another
    kind of character, as lower-case words and numbers do behind names; but "Bank of England" goes on.

    initials (Sequence[str]): First character of each word.
    """
    kinds = [_kind(character) for character in initials] + ["", ""]
    return [
        kinds[w] != kinds[w + 1]
        and not (kinds[w] == kinds[w + 2] == "upper" and kinds[w + 1] == "lower")
        for w in range(len(initials))
    ]


def _kind(character: str) -> str:
    if character.isalpha():
        return "upper" if character.isupper() else "lower" if character.islower() else "letter"
    return "digit" if character.isdigit() else "sign"


def spelling(tokenizer: LLMTokenizer, word: str) -> List[int]:
    """RETURNS (List[int]): Tokens of a word without a space in front."""
    return list(tokenizer.encode_inside(word).ids)
