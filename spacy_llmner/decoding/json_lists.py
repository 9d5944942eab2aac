"""JSON lists of runs of words of a text: what may be written, and how a given list is written."""

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
    bounds (Sequence[Tuple[int, int]]): First character of each of its words, and one past the last:
        no string begins or ends elsewhere.
    end (int): The token that ends an answer.
    ordered (bool): See JsonList.
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
        # Offsets are wanted in the text itself.
        starts = {a: start for (a, _), (start, _) in zip(inside, self.bounds)}
        ends = {b: stop for (_, b), (_, stop) in zip(inside, self.bounds)}
        there = [starts[a] for a in items.start.starts.tolist()]
        items.start = replace(items.start, starts=np.array(there, dtype=np.int64))
        items.ends = np.array([ends.get(b, -1) for b in items.ends.tolist()], dtype=np.int64)
        empty, opening, comma, closing = (
            spelling(tokenizer, literal) for literal in ("[]", '["', '", "', '"]')
        )
        self.rule = JsonList(items, [*empty, end], opening, comma, [*closing, end], ordered)
        self._empty, self._closing = [*empty, end], [*closing, end]
        self._bare = [spelling(tokenizer, escaped[a:b]) for a, b in inside]

    def spell(self, spans: Sequence[Tuple[int, int]]) -> List[int]:
        """Write a list as the rule allows it.

        spans (Sequence[Tuple[int, int]]): First word of each string, and one past the last.
        RETURNS (List[int]): Tokens, the end included.
        """
        if not spans:
            return list(self._empty)
        out: List[int] = []
        for k, (start, stop) in enumerate(spans):
            out.extend(self.rule.comma if k else self.rule.opening)
            rest = self.words.ids[self.words.last[start] + 1 : self.words.last[stop - 1] + 1]
            out.extend([*self._bare[start], *rest.tolist()])
        return out + self._closing

    def item_log_probs(self, ids: Sequence[int], log_probs: Sequence[float]) -> List[float]:
        """Say how likely each string of a finished list is: that the list goes on, and with this one.

        ids (Sequence[int]): Tokens of an answer.
        log_probs (Sequence[float]): Of each of them.
        RETURNS (List[float]): Summed over the tokens of each string and of what stands in front of it.
        """
        state: ListState = self.rule.start
        sums = [0.0]
        for token, log_prob in zip(ids, log_probs):
            done = len(state.done)
            state = self.rule.advance(state, token)
            if len(state.done) > done:
                sums.append(0.0)  # what ends one string decides about the next
            sums[-1] += log_prob
        return sums[:-1]


def escape_words(text: str, bounds: Sequence[Tuple[int, int]]) -> Tuple[str, List[Tuple[int, int]]]:
    """Spell the words of a text as they are inside of JSON quotes, with one space where there is white
    space between them.

    RETURNS (Tuple[str, List[Tuple[int, int]]]): The spelling, and where each word is in it.
    """
    escaped, inside = "", []
    for k, (start, end) in enumerate(bounds):
        apart = k and bounds[k - 1][1] < start
        escaped += " " if apart else ""
        word = json.dumps(text[start:end], ensure_ascii=False)[1:-1]
        inside.append((len(escaped), len(escaped) + len(word)))
        escaped += word
    return escaped, inside
