"""Count the votes about a span (stage 3)."""

from dataclasses import dataclass
from typing import Dict, Mapping, Sequence, Tuple

from .interfaces import NONE

VOTES = ("majority", "probability")


@dataclass(frozen=True)
class Ballot:
    """The result of a vote.

    label (str): The label with the most votes, or NONE if the span is not an entity.
    score (float): The mean probability of this label over the voters, weighted by their weights.
    votes (Dict[str, Tuple[str, float]]): For each voter, the label that it finds most likely, and the
        probability of this label.
    """

    label: str
    score: float
    votes: Dict[str, Tuple[str, float]]

    @property
    def unanimous(self) -> bool:
        """RETURNS (bool): Whether there are several voters and all voted for the same label."""
        return len(self.votes) > 1 and len({label for label, _ in self.votes.values()}) == 1


def count_votes(
    answers: Mapping[str, Mapping[str, float]],
    weights: Mapping[str, float],
    labels: Sequence[str],
    how: str,
) -> Ballot:
    """Choose the label of a span.

    With "majority", each voter votes for the label that it finds most likely, with its weight. In a tie,
    for example if three voters vote for three labels, the tied label with the highest sum of weighted
    probabilities is chosen. With "probability", this sum decides among all labels. If there is still a
    tie, the label that comes first in `labels` is chosen. "No entity" comes last. The same order decides
    the vote of a voter that finds two labels equally likely.

    answers (Mapping[str, Mapping[str, float]]): For each voter, the probability of each label, including
        NONE. If there are no answers, the span is not an entity.
    weights (Mapping[str, float]): The weight of each voter.
    labels (Sequence[str]): The labels, without NONE.
    how (str): "majority" or "probability".
    RETURNS (Ballot): The result.
    """
    if not answers:
        return Ballot(NONE, 0.0, {})
    order = [*labels, NONE]
    total = sum(weights[name] for name in answers)
    sums = {
        label: sum(weights[name] * p.get(label, 0.0) for name, p in answers.items())
        for label in order
    }
    votes = {}
    for name, p in answers.items():
        best = max(order, key=lambda label: p.get(label, 0.0))
        votes[name] = best, float(p.get(best, 0.0))
    counts = dict.fromkeys(order, 0.0)
    for name, (label, _) in votes.items():
        counts[label] += weights[name]
    if how == "majority":
        most = max(counts.values())
        order = [label for label in order if counts[label] >= most - 1e-9]
    # Rounded, so that rounding errors don't decide ties.
    winner = max(order, key=lambda label: round(sums[label], 9))
    return Ballot(winner, min(sums[winner] / total, 1.0), votes)
