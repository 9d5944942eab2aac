"""Stage 3: from what each voter says about a span to one type (methods.md 4a)."""

from dataclasses import dataclass
from typing import Dict, Mapping, Sequence, Tuple

from .interfaces import NONE

VOTES = ("majority", "probability")


@dataclass(frozen=True)
class Ballot:
    """How a vote ended.

    label (str): The type that won; NONE if the span is no entity.
    score (float): Mean probability of it, weighted by voter.
    votes (Dict[str, Tuple[str, float]]): Per voter its likeliest type and the probability of that.
    """

    label: str
    score: float
    votes: Dict[str, Tuple[str, float]]

    @property
    def unanimous(self) -> bool:
        """Whether all voters said the same, and there were several."""
        return len(self.votes) > 1 and len({label for label, _ in self.votes.values()}) == 1


def count_votes(
    answers: Mapping[str, Mapping[str, float]],
    weights: Mapping[str, float],
    labels: Sequence[str],
    how: str,
) -> Ballot:
    """Decide about a span.

    "majority": each voter counts, with its weight, for its likeliest type. In a tie, as one vote each for
    three types, the tied type with the highest sum of weighted probabilities wins. "probability": the sum
    of weighted probabilities decides at once. If that is a tie too, the type that stands first in `labels`
    wins, and no entity comes last; the same holds for a voter that finds two types equally likely.

    answers (Mapping[str, Mapping[str, float]]): Per voter, how likely each type is. NONE is one. Without
        any, the span is no entity.
    """
    if not answers:
        return Ballot(NONE, 0.0, {})
    order = [*labels, NONE]
    total = sum(weights[name] for name in answers)
    sums = {
        label: sum(weights[name] * said.get(label, 0.0) for name, said in answers.items())
        for label in order
    }
    votes = {}
    for name, said in answers.items():
        best = max(order, key=lambda label: said.get(label, 0.0))
        votes[name] = best, float(said.get(best, 0.0))
    counts = dict.fromkeys(order, 0.0)
    for name, (label, _) in votes.items():
        counts[label] += weights[name]
    if how == "majority":
        most = max(counts.values())
        order = [label for label in order if counts[label] >= most - 1e-9]
    # Rounding must not decide between equals.
    winner = max(order, key=lambda label: round(sums[label], 9))
    return Ballot(winner, min(sums[winner] / total, 1.0), votes)
