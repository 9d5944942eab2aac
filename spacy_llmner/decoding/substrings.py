"""The constraint that an answer is a run of words of the text."""

from typing import List, Optional, Sequence

import numpy as np

from ..llm.tokenization import LLMTokenizer
from ..llm.word_tokens import WordTokens, spelling
from .constraints import Substrings


def substring_constraint(
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
