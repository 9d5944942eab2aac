"""Find the words that are likely to begin a mention, whatever the index of the mention.

A small LLM often finds two mentions, but is not certain which of them comes first, so it gives the same
answer to both questions. Therefore the answers to all questions are summed: the probability that a word
begins a mention is the sum over k of P(at least k mentions) * P(mention k begins with the word).
"""

import math
from collections import Counter
from dataclasses import dataclass
from typing import Iterable, List, Sequence

import numpy as np

from ..decoding.tree import Scores

# Lower thresholds count as this value: `spacy find-threshold` also tries 0, with which every word would
# begin a mention of every label.
LEAST_THRESHOLD = 0.001


@dataclass(frozen=True)
class Beginning:
    """The beginning of a likely mention.

    token (int): The first token of the mention.
    rank (int): 0 for the first mention that begins with this token, 1 for the second, and so on.
    row (int): The question whose branch decodes the mention (0 for the question about mention 1).
    log_prob (float): Log-probability that there is such a mention.
    """

    token: int
    rank: int
    row: int
    log_prob: float


class Beginnings:
    """Finds the beginnings of mentions in one text.

    first_tokens (Iterable[int]): The first token of each word.
    threshold (float): A mention must be more likely than this.
    nested (bool): Whether several mentions can begin with the same word. If False, a token begins at
        most as many mentions as there are words that begin with it.
    """

    def __init__(self, first_tokens: Iterable[int], threshold: float, nested: bool = False) -> None:
        self.words = Counter(int(token) for token in first_tokens)
        self.threshold = threshold
        self.nested = nested

    def likely(self, scores: Sequence[Scores], at_least: Sequence[float]) -> List[Beginning]:
        """Find the beginnings that are more likely than the threshold.

        scores (Sequence[Scores]): Scores of the first token, for the questions about mention 1, 2 and
            so on.
        at_least (Sequence[float]): The probability that there are at least 1, 2, ... mentions. Same
            length as `scores`.
        RETURNS (List[Beginning]): The beginnings that are more likely than the threshold.
        """
        if not scores:
            return []
        p_begin = np.stack([p * np.exp(s.log_probs) for p, s in zip(at_least, scores)])
        out = []
        for i in np.flatnonzero(p_begin.sum(0) > self.threshold):
            token = int(scores[0].ids[i])
            # The mention is decoded in the branch of the first question whose own probability is above the
            # threshold, so it needn't wait for later questions. If there is none, it is decoded in the
            # branch of the most confident question.
            capped = np.minimum(p_begin[:, i], self.threshold)
            rows = np.argsort(-capped, kind="stable")
            # There is one question for each mention that can begin with this token. Further questions must
            # refer to one of the same mentions, so their probability is distributed over these.
            limit = len(rows) if self.nested else self.words[token]
            own = p_begin[rows[:limit], i]
            rest = float(p_begin[rows[limit:], i].sum())
            for rank, p in enumerate(own.tolist()):
                more = min(rest, max(1.0 - p, 0.0))
                rest -= more
                if p + more > self.threshold:
                    out.append(Beginning(token, rank, int(rows[rank]), math.log(p + more)))
        return out
