"""Create a constraint: the answer must be a span of words of the text."""

from typing import Dict, Iterator, List, Optional, Sequence, Set, Tuple

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
    text (str): The text of `words`. Required if there is a tokenizer. Without it, guesses are worse.
    RETURNS (Substrings): The constraint.
    """
    nonempty = np.flatnonzero(words.last >= words.first)
    n = len(words.ids)
    tokens, follow, ends = [words.ids], [np.arange(1, n + 1)], [np.full(n, -1)]
    ends[0][words.last[nonempty]] = words.bounds[nonempty, 1]
    # Separate tokens of white space between two words belong to a span. After the last word, they can't
    # lead to the end of a span.
    follow[0][words.last[nonempty[-1:]]] = -1
    first = words.first[nonempty].copy()
    is_likely_end = [np.zeros(n, dtype=bool)]
    if text:
        is_likely_end[0][words.last[nonempty]] = _likely_ends(
            [text[s] for s in words.bounds[nonempty, 0]]
        )
    size = n
    for k, ids in _other_spellings(words, nonempty, tokenizer, text):
        w = nonempty[k]
        continuation = int(follow[0][words.last[w]])
        tokens.append(np.array(ids, dtype=np.int64))
        follow.append(np.append(np.arange(size + 1, size + len(ids)), continuation))
        ends.append(np.append(np.full(len(ids) - 1, -1), words.bounds[w, 1]))
        is_likely_end.append(np.zeros(len(ids), dtype=bool))
        is_likely_end[-1][-1] = is_likely_end[0][words.last[w]]
        first[k] = size
        size += len(ids)
    arrays = [np.concatenate(part).astype(np.int64) for part in (tokens, follow, ends)]
    starts, likely_ends = words.bounds[nonempty, 0], np.concatenate(is_likely_end)
    return Substrings(arrays[0], arrays[1], arrays[2], first, starts, end, likely_ends)


def spellings_in_text(words: WordTokens, text: str) -> Dict[str, List[int]]:
    """Choose one spelling for all occurrences of each word, so that a mention that begins with the word has
    the same tokens everywhere. Without a space before it, as at the beginning of a text or after a quote, a
    word has different tokens than after a space.

    words (WordTokens): The tokens of the text.
    text (str): The text of `words`.
    RETURNS (Dict[str, List[int]]): The tokens of each word of the text, with the space before it if it
        occurs after one.
    """
    out: Dict[str, List[int]] = {}
    spaced: Set[str] = set()
    bounds = words.bounds.tolist()
    for (start, end), first, last in zip(bounds, words.first.tolist(), words.last.tolist()):
        word = text[start:end]
        has_space = text[start - 1 : start] == " "
        if last >= first and (word not in out or (has_space and word not in spaced)):
            out[word] = words.ids[first : last + 1].tolist()
            if has_space:
                spaced.add(word)
    return out


def _other_spellings(
    words: WordTokens, nonempty: np.ndarray, tokenizer: Optional[LLMTokenizer], text: str
) -> Iterator[Tuple[int, List[int]]]:
    """YIELDS (Tuple[int, List[int]]): The index in `nonempty`, and the tokens, of each word that is encoded
    differently as the first word of a mention.
    """
    known = {} if tokenizer is not None or not text else spellings_in_text(words, text)
    if tokenizer is None and len(known) == len(nonempty):
        return
    for k, w in enumerate(nonempty):
        start, stop = words.bounds[w]
        if tokenizer is not None:
            ids = spelling(tokenizer, text[start:stop])
        else:
            ids = known.get(text[start:stop], [])
        if ids and ids != words.ids[words.first[w] : words.last[w] + 1].tolist():
            yield k, ids


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
