"""Conversion of the few-shot probe's scores to mentions."""

from typing import Optional

import numpy as np

from .paper import PaperDecoder
from .segmentation import IMPOSSIBLE, mask_blank_row


class FewShotDecoder(PaperDecoder):
    """Decode as EMBER's few-shot mode does (arXiv 2403.11747).

    Decoding goes from right to left. Each word that has a type and is not part of a mention yet ends a new
    mention of the most probable length. Attention can't veto a mention. The type must be more probable than
    "outside", by a margin that depends on the threshold.
    """

    def probable_type(self, word: int) -> Optional[int]:
        row = self.rows[word][: self.n_types]
        best = int(row[:-1].argmax())
        return best if row[best] - row[-1] >= self.margin else None

    def length_of(self, word: int, label: int) -> int:
        spans = mask_blank_row(self.rows[word][self.n_types :], self.blank[: word + 1])
        return int(spans.argmax()) + 1

    def score(self, start: int, end: int, label: int) -> float:
        """RETURNS (float): Probability of the type at the last word, times that of the length."""
        row = self.rows[end - 1]
        return float(np.exp(row[label] + row[self.n_types + end - start - 1]))


class JoinDecoder(FewShotDecoder):
    """Joins adjacent words of the same type to one mention."""

    def length_of(self, word: int, label: int) -> int:
        length = 1
        while length < min(self.chain.max_words, word + 1):
            opens = self.rows[word - length + 1][self.n_types] <= IMPOSSIBLE
            if opens or self.probable_type(word - length) != label:
                break
            length += 1
        return self.without_leading_blanks(word, length)

    def score(self, start: int, end: int, label: int) -> float:
        """RETURNS (float): The lowest probability of the type among the words."""
        return float(np.exp(min(row[label] for row in self.rows[start:end])))
