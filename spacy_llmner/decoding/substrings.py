"""Create the constraint that an answer is a span of words of the text."""

from typing import List, Optional, Sequence

import numpy as np

from ..llm.tokenization import LLMTokenizer
from ..llm.word_tokens import WordTokens, spelling
from .constraints import Substrings


def substring_constraint(
    words: WordTokens, end: int, tokenizer: Optional[LLMTokenizer] = None, text: str = ""
) -> Substrings:
    """Create a constraint that allows every span of words of a text.

    words (WordTokens): The tokens of the text.
    end (int): The token that ends the answer.
    tokenizer (Optional[LLMTokenizer]): If given, the first word of an answer is encoded as at the start of
        a line, without a space before it.
    text (str): The text of `words`. Required with a tokenizer, and for good guesses.
    RETURNS (Substrings): The constraint.
    """
    nonempty = np.flatnonzero(words.last >= words.first)
    n = len(words.ids)
    tokens, follow, ends = [words.ids], [np.arange(1, n + 1)], [np.full(n, -1)]
    ends[0][words.last[nonempty]] = words.bounds[nonempty, 1]
    # Separate tokens of white space between words belong to a span. After the last word they would
    # lead nowhere.
    follow[0][words.last[nonempty[-1:]]] = -1
    first = words.first[nonempty].copy()
    is_likely_end = [np.zeros(n, dtype=bool)]
    if text:
        is_likely_end[0][words.last[nonempty]] = _likely_ends(
            [text[s] for s in words.bounds[nonempty, 0]]
        )
    if tokenizer is not None:
        size = n
        for k, w in enumerate(nonempty):
            start, stop = words.bounds[w]
            ids = spelling(tokenizer, text[start:stop])
            if ids == words.ids[words.first[w] : words.last[w] + 1].tolist() or not ids:
                continue
            continuation = int(follow[0][words.last[w]])
            tokens.append(np.array(ids, dtype=np.int64))
            follow.append(np.append(np.arange(size + 1, size + len(ids)), continuation))
            ends.append(np.append(np.full(len(ids) - 1, -1), stop))
            is_likely_end.append(np.zeros(len(ids), dtype=bool))
            is_likely_end[-1][-1] = is_likely_end[0][words.last[w]]
            first[k] = size
            size += len(ids)
    arrays = [np.concatenate(part).astype(np.int64) for part in (tokens, follow, ends)]
    starts, likely_ends = words.bounds[nonempty, 0], np.concatenate(is_likely_end)
    return Substrings(arrays[0], arrays[1], arrays[2], first, starts, end, likely_ends)


def _likely_ends(initials: Sequence[str]) -> List[bool]:
    """Guess the words after which a mention ends: those whose next word starts with another kind of
    character, as lower-case words and numbers do after names. "Bank of England" is an exception: the
    capitalized word after a lower-case word continues the name.

    initials (Sequence[str]): First character of each word.
    RETURNS (List[bool]): For each word, whether a mention probably ends after it.
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
