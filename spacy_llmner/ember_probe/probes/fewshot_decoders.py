"""From the few-shot probe's scores to mentions."""

from typing import Optional

import numpy as np

from .paper import PaperDecoder
from .segmentation import IMPOSSIBLE


class FewShotDecoder(PaperDecoder):
    """Each typed word that is not in a mention yet ends one, with the likeliest start (exp_08): there is
    no veto by attention, but a threshold for the type against "outside"."""

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
        """RETURNS (int): Words of the mention that ends with this one."""
        return int(self.rows[word][self.n_types :].argmax()) + 1

    def score(self, start: int, end: int, label: int) -> float:
        """Probability of the type at the end, times that of the length."""
        row = self.rows[end - 1]
        return float(np.exp(row[label] + row[self.n_types + end - start - 1]))


class JoinDecoder(FewShotDecoder):
    """Adjacent words of the same type are one mention."""

    def length_of(self, word: int, label: int) -> int:
        length = 1
        while length < min(self.chain.max_words, word + 1):
            opens = self.rows[word - length + 1][self.n_types] <= IMPOSSIBLE
            if opens or self.type_of(word - length) != label:
                break
            length += 1
        return length

    def score(self, start: int, end: int, label: int) -> float:
        """Probability of the type at the word that is the least sure."""
        return float(np.exp(min(row[label] for row in self.rows[start:end])))
