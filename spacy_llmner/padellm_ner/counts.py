"""The probabilities of the possible numbers of mentions (PaDeLLM-NER, arXiv 2402.04838)."""

import math
from typing import Dict, Set, Tuple

from ..decoding.tree import Scores
from .templates import NumberTokens


class Counts:
    """The probabilities of counts that are decoded token by token.

    Counts that begin with the same tokens can't be distinguished until the next token is scored. For
    example, "1" and "12" begin with the same token if each digit is a token. Until then, their total
    probability is assigned to the lowest of them, since there are at least that many mentions.

    numbers (NumberTokens): The possible counts.
    p (Dict[int, float]): The probability of each count.
    """

    def __init__(self, numbers: NumberTokens) -> None:
        self.numbers = numbers
        self.p: Dict[int, float] = {numbers.lowest[numbers.start]: 1.0}
        self._distributed: Set[Tuple[int, ...]] = set()

    def distribute(self, prefix: Tuple[int, ...], scores: Scores) -> None:
        """Distribute the probability of a prefix over its possible next tokens.

        prefix (Tuple[int, ...]): The tokens decoded so far. A prefix that was distributed before is
            left as it is.
        scores (Scores): Scores of the next token.
        """
        if prefix in self._distributed:
            return
        self._distributed.add(prefix)
        p = self.p.pop(self.numbers.lowest[prefix])
        for token, log_prob in zip(scores.ids, scores.log_probs):
            longer = (*prefix, int(token))
            self.p[self.numbers.lowest[longer]] = p * math.exp(log_prob)

    def likeliest(self) -> int:
        """RETURNS (int): The most likely count; the lowest if several are equally likely."""
        return max(sorted(self.p), key=lambda n: self.p[n])

    def at_least(self, k: int) -> float:
        """RETURNS (float): The probability that there are at least k mentions."""
        return min(sum(p for n, p in self.p.items() if n >= k), 1.0)

    def highest_above(self, threshold: float) -> int:
        """RETURNS (int): The highest k for which P(at least k mentions) is above the threshold."""
        return sum(1 for k in range(1, max(self.p) + 1) if self.at_least(k) > threshold)
