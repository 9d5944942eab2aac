"""How likely each number of mentions is, as far as the LLM was asked (methods.md 2a.4)."""

import math
from typing import Dict, Set, Tuple

from ..decoding.engine import Scores
from .templates import NumberTokens


class Counts:
    """Probabilities of numbers that are written token by token.

    What begins alike and was not told apart, such as "1" and "12" where each digit is a token, is booked on
    the lowest number of it: there are at least so many.

    numbers (NumberTokens): The possible numbers.
    p (Dict[int, float]): The probability of each.
    """

    def __init__(self, numbers: NumberTokens) -> None:
        self.numbers = numbers
        self.p: Dict[int, float] = {numbers.lowest[numbers.start]: 1.0}
        self._told_apart: Set[Tuple[int, ...]] = set()

    def tell_apart(self, begun: Tuple[int, ...], scores: Scores) -> None:
        """Spread what begins alike over its next tokens.

        begun (Tuple[int, ...]): The beginning, in tokens. Telling it apart again changes nothing.
        scores (Scores): Of what may come next.
        """
        if begun in self._told_apart:
            return
        self._told_apart.add(begun)
        p = self.p.pop(self.numbers.lowest[begun])
        for token, log_prob in zip(scores.ids, scores.log_probs):
            goes_on = (*begun, int(token))
            self.p[self.numbers.lowest[goes_on]] = p * math.exp(log_prob)

    def likeliest(self) -> int:
        """RETURNS (int): The likeliest number; of equals the lowest."""
        return max(sorted(self.p), key=lambda n: self.p[n])

    def at_least(self, k: int) -> float:
        """RETURNS (float): How likely there are at least k mentions."""
        return min(sum(p for n, p in self.p.items() if n >= k), 1.0)

    def more_likely_than(self, threshold: float) -> int:
        """RETURNS (int): The highest k such that at least k mentions are more likely than a threshold."""
        return sum(1 for k in range(1, max(self.p) + 1) if self.at_least(k) > threshold)
