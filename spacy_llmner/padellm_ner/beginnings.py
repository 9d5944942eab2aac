"""Where mentions are likely to begin, whatever their numbers are.

A small LLM often knows two mentions but not which is the first: both questions are then answered with
the same one. So what it says to all questions is added up: a word begins a mention with the sum over k of
P(at least k mentions) P(mention k begins with it).
"""

import math
from collections import Counter
from dataclasses import dataclass
from typing import Iterable, List, Sequence

import numpy as np

from ..decoding.engine import Scores

# So likely a mention must be, whatever the threshold is: `spacy find-threshold` tries 0, where every word
# would begin a mention of every label.
LEAST_THRESHOLD = 0.001


@dataclass(frozen=True)
class Beginning:
    """A mention that is likely to be there.

    token (int): Its first token.
    rank (int): 0 for the first mention that begins so, 1 for the second, and so on.
    row (int): Which of the questions is to write it.
    log_prob (float): How likely it is.
    """

    token: int
    rank: int
    row: int
    log_prob: float


class Beginnings:
    """The beginnings of mentions in one text.

    first_tokens (Iterable[int]): The first token of each word.
    threshold (float): How likely a mention has to be.
    nested (bool): Several mentions may begin with the same word. Else a token begins no more mentions
        than words.
    """

    def __init__(self, first_tokens: Iterable[int], threshold: float, nested: bool = False) -> None:
        self.words = Counter(int(token) for token in first_tokens)
        self.threshold = threshold
        self.nested = nested

    def likely(self, scores: Sequence[Scores], at_least: Sequence[float]) -> List[Beginning]:
        """
        scores (Sequence[Scores]): Of the first tokens, for the questions for mention 1, 2 and so on.
        at_least (Sequence[float]): How likely there are so many mentions.
        RETURNS (List[Beginning]): Those more likely than the threshold.
        """
        if not scores:
            return []
        there = np.stack([p * np.exp(s.log_probs) for p, s in zip(at_least, scores)])
        out = []
        for i in np.flatnonzero(there.sum(0) > self.threshold):
            token = int(scores[0].ids[i])
            # The first question that is sure enough by itself writes it, so that it need not wait for the
            # others; else the surest one.
            mass = np.minimum(there[:, i], self.threshold)
            rows = np.argsort(-mass, kind="stable")
            # A question for each mention that may begin so; the others can only mean one of these too.
            most = len(rows) if self.nested else self.words[token]
            own = there[rows[:most], i]
            rest = float(there[rows[most:], i].sum())
            for rank, p in enumerate(own.tolist()):
                more = min(rest, max(1.0 - p, 0.0))
                rest -= more
                if p + more > self.threshold:
                    out.append(Beginning(token, rank, int(rows[rank]), math.log(p + more)))
        return out
