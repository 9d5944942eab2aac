"""JSON lists of spans of words of a text: the constraint for them, and the tokens of a given list."""

import json
from dataclasses import replace
from typing import List, Sequence, Tuple

import numpy as np

from ..llm.tokenization import LLMTokenizer
from ..llm.word_tokens import WordTokens, spelling, word_tokens
from .constraints import JsonList, ListState
from .substrings import substring_constraint


class TextLists:
    """The JSON lists of strings from one text, in the tokens of an LLM.

    tokenizer (LLMTokenizer): The LLM's tokenizer.
    text (str): The text.
    bounds (Sequence[Tuple[int, int]]): First character of each word of the text, and one past its last.
        Strings start and end at these boundaries only.
    end (int): The token that ends an answer.
    ordered (bool): See JsonList.
    rule (JsonList): The constraint.
    words (WordTokens): The tokens of the escaped text.
    """

    def __init__(
        self,
        tokenizer: LLMTokenizer,
        text: str,
        bounds: Sequence[Tuple[int, int]],
        end: int,
        *,
        ordered: bool = False,
    ) -> None:
        escaped, inside = escape_words(text, bounds)
        self.bounds = list(bounds)
        self.words: WordTokens = word_tokens(tokenizer, escaped, inside)
        items = substring_constraint(self.words, end, tokenizer, escaped)
        # Map the offsets in the escaped text to the text itself.
        starts = {a: start for (a, _), (start, _) in zip(inside, self.bounds)}
        ends = {b: stop for (_, b), (_, stop) in zip(inside, self.bounds)}
        text_starts = [starts[a] for a in items.start.starts.tolist()]
        items.start = replace(items.start, starts=np.array(text_starts, dtype=np.int64))
        items.ends = np.array([ends.get(b, -1) for b in items.ends.tolist()], dtype=np.int64)
        empty, opening, comma, closing = (
            spelling(tokenizer, literal) for literal in ("[]", '["', '", "', '"]')
        )
        self.rule = JsonList(items, [*empty, end], opening, comma, [*closing, end], ordered)
        self._empty, self._closing = [*empty, end], [*closing, end]
        self._first_words = [spelling(tokenizer, escaped[a:b]) for a, b in inside]

    def spell(self, spans: Sequence[Tuple[int, int]]) -> List[int]:
        """Encode a list as the constraint allows it.

        spans (Sequence[Tuple[int, int]]): First word of each string, and one past its last.
        RETURNS (List[int]): Token ids, including the end token.
        """
        if not spans:
            return list(self._empty)
        out: List[int] = []
        for k, (start, stop) in enumerate(spans):
            out.extend(self.rule.comma if k else self.rule.opening)
            rest = self.words.ids[self.words.last[start] + 1 : self.words.last[stop - 1] + 1]
            out.extend([*self._first_words[start], *rest.tolist()])
        return out + self._closing

    def item_log_probs(self, ids: Sequence[int], log_probs: Sequence[float]) -> List[float]:
        """Compute the log-probability of each string in a finished list. This is the probability that the
        list continues, and continues with this string.

        ids (Sequence[int]): Tokens of an answer.
        log_probs (Sequence[float]): Log-probability of each token.
        RETURNS (List[float]): For each string, the sum over its tokens and the tokens between it and the
            previous string.
        """
        state: ListState = self.rule.start
        sums = [0.0]
        for token, log_prob in zip(ids, log_probs):
            done = len(state.done)
            state = self.rule.advance(state, token)
            if len(state.done) > done:
                sums.append(0.0)  # the token that ends a string counts for the next one
            sums[-1] += log_prob
        return sums[:-1]


def escape_words(text: str, bounds: Sequence[Tuple[int, int]]) -> Tuple[str, List[Tuple[int, int]]]:
    """Escape the words of a text as inside JSON quotes, and replace white space between words by one
    space.

    bounds (Sequence[Tuple[int, int]]): First character of each word, and one past its last.
    RETURNS (Tuple[str, List[Tuple[int, int]]]): The escaped text, and the bounds of each word in it.
    """
    escaped, inside = "", []
    for k, (start, end) in enumerate(bounds):
        has_space = k and bounds[k - 1][1] < start
        escaped += " " if has_space else ""
        word = json.dumps(text[start:end], ensure_ascii=False)[1:-1]
        inside.append((len(escaped), len(escaped) + len(word)))
        escaped += word
    return escaped, inside
