"""Conversion of the few-shot probe's scores to mentions."""

from typing import Optional

import numpy as np

from .paper import PaperDecoder
from .segmentation import IMPOSSIBLE


class FewShotDecoder(PaperDecoder):
    """Decode as EMBER's few-shot mode does (arXiv 2403.11747).

    From right to left, each typed word that is not part of a mention yet ends one, which has the most
    probable length. Attention can't veto a mention. The type has to beat "outside" by the threshold.
    """

    def push(self, row: np.ndarray) -> None:
        """row (ndarray): From FewShotProbe.rows."""
        self.rows.append(row)
        label = self.type_of(len(self.rows) - 1)
        length = 1 if label is None else self.length_of(len(self.rows) - 1, label)
        self.chain.push(length, label)

    def type_of(self, word: int) -> Optional[int]:
        row = self.rows[word][: self.n_types]
        best = int(row[:-1].argmax())
        return best if row[best] - row[-1] >= self.margin else None

    def length_of(self, word: int, label: int) -> int:
        """RETURNS (int): Number of words of the mention that ends with this word."""
        return int(self.rows[word][self.n_types :].argmax()) + 1

    def score(self, start: int, end: int, label: int) -> float:
        """RETURNS (float): Probability of the type at the last word, times that of the length."""
        row = self.rows[end - 1]
        return float(np.exp(row[label] + row[self.n_types + end - start - 1]))


class JoinDecoder(FewShotDecoder):
    """Join adjacent words of the same type to one mention."""

    def length_of(self, word: int, label: int) -> int:
        length = 1
        while length < min(self.chain.max_words, word + 1):
            opens = self.rows[word - length + 1][self.n_types] <= IMPOSSIBLE
            if opens or self.type_of(word - length) != label:
                break
            length += 1
        return length

    def score(self, start: int, end: int, label: int) -> float:
        """RETURNS (float): The lowest probability of the type among the words."""
        return float(np.exp(min(row[label] for row in self.rows[start:end])))
