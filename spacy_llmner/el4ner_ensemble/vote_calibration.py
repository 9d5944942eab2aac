"""What corrects the voters, fitted on held-out texts: how much each counts, and how it likes the types.

A small LLM that is asked for a type has its favourites, whatever the text, and one LLM knows more than
another. Over the spans of held-out texts it is known how often each type is right, and how often a voter
expects it. Its probabilities times the ratio of the two, scaled to the sum they had, are what it would say
if it expected what is there (Saerens et al. 2002, "Adjusting the outputs of a classifier to new a priori
probabilities"). These say "no entity" more often than is good for F1. So how far to go, what "no entity"
counts, and what each voter counts, is what gives the highest F1 on these texts.
"""

from itertools import product
from typing import Dict, Iterator, List, Mapping, NamedTuple, Sequence, Tuple

from ..pipeline.spans import Mention, filter_overlapping
from .interfaces import NONE, Chars
from .voting import count_votes

Factors = Dict[str, Dict[str, float]]

# Powers of the ratios, what "no entity" counts, and what a voter counts: of equally good ones the first.
STRENGTHS = (0.0, 0.5, 1.0)
NONE_COUNTS = (1.0, 0.5, 2.0, 0.25, 4.0)
VOTER_COUNTS = (1.0, 0.5, 2.0, 0.25, 4.0, 0.1, 10.0)
ROUNDS = 2


class VotedText(NamedTuple):
    """A text of which the spans were voted on.

    said (Mapping[Chars, Mapping[str, Mapping[str, float]]]): By span and voter, how likely each type is, as
        the voter says.
    gold (Mapping[Chars, str]): Its entities, by span.
    """

    said: Mapping[Chars, Mapping[str, Mapping[str, float]]]
    gold: Mapping[Chars, str]


class VoteCalibration(NamedTuple):
    """What corrects the voters.

    factors (Factors): By voter and type, NONE among them.
    weights (Dict[str, float]): By voter, what its weight is multiplied by.
    before (float): Strict F1 on the texts, between 0 and 1, without both and before verification.
    after (float): With both.
    """

    factors: Factors
    weights: Dict[str, float]
    before: float
    after: float


def fit(
    polled: Sequence[VotedText], weights: Mapping[str, float], labels: Sequence[str], how: str
) -> VoteCalibration:
    """Fit on texts that were polled.

    weights (Mapping[str, float]): By voter, what its vote counts by itself.
    how (str): The vote, see votes.count_votes.
    """
    names = list(weights)
    ratios = prior_ratios(polled, names, labels)
    ways = {way: _factors(ratios, *way) for way in product(STRENGTHS, NONE_COUNTS)}
    answers = {
        way: [
            {
                span: {name: corrected(p, factors[name]) for name, p in of_span.items()}
                for span, of_span in text.said.items()
            }
            for text in polled
        ]
        for way, factors in ways.items()
    }

    n_gold = sum(len(text.gold) for text in polled)

    def f1(way: Tuple[float, float], counts: Mapping[str, float]) -> float:
        multiplied = {name: weights[name] * counts[name] for name in names}
        right = found = 0
        for said, text in zip(answers[way], polled):
            mentions = filter_overlapping(_voted(said, multiplied, labels, how))
            right += sum(text.gold.get((m.start, m.end)) == m.label for m in mentions)
            found += len(mentions)
        return 2 * right / max(found + n_gold, 1)

    way, counts = (STRENGTHS[0], NONE_COUNTS[0]), dict.fromkeys(names, VOTER_COUNTS[0])
    before = best = f1(way, counts)
    # What voters count is relative: the first one stays. The others are fitted in turn.
    for name in [*names[1:]] * ROUNDS or names:
        tried = VOTER_COUNTS if name != names[0] else VOTER_COUNTS[:1]
        for count, other in product(tried, ways):
            reached = f1(other, {**counts, name: count})
            if reached > best + 1e-9:
                best, way, counts = reached, other, {**counts, name: count}
    changed = way != (STRENGTHS[0], NONE_COUNTS[0])
    return VoteCalibration(ways[way] if changed else {}, counts, before, best)


def prior_ratios(
    polled: Sequence[VotedText], voters: Sequence[str], labels: Sequence[str]
) -> Factors:
    """RETURNS (Factors): By voter and type, NONE among them: (spans that are of the type + 1) / (the
    voter's probabilities of it, summed over the spans, + 1). The ones keep it near 1 where little is known.
    """
    out: Factors = {}
    for name in voters:
        heard: List[Tuple[Mapping[str, float], str]] = [
            (said[name], text.gold.get(span, NONE))
            for text in polled
            for span, said in text.said.items()
            if name in said
        ]
        out[name] = {}
        for label in (*labels, NONE):
            there = sum(gold == label for _, gold in heard)
            expected = sum(said.get(label, 0.0) for said, _ in heard)
            out[name][label] = (there + 1.0) / (expected + 1.0)
    return out


def corrected(said: Mapping[str, float], factors: Mapping[str, float]) -> Dict[str, float]:
    """RETURNS (Dict[str, float]): What a voter says times its factors, with the same sum. Types without
    a factor have 1."""
    out = {label: p * factors.get(label, 1.0) for label, p in said.items()}
    scale = sum(said.values()) / (sum(out.values()) or 1.0)
    return {label: p * scale for label, p in out.items()}


def _factors(ratios: Factors, strength: float, none: float) -> Factors:
    # Rounded, since they are saved with so many digits.
    return {
        name: {
            label: round(ratio**strength * (none if label == NONE else 1.0), 9)
            for label, ratio in of_voter.items()
        }
        for name, of_voter in ratios.items()
    }


def _voted(
    said: Mapping[Chars, Mapping[str, Mapping[str, float]]],
    weights: Mapping[str, float],
    labels: Sequence[str],
    how: str,
) -> Iterator[Mention]:
    for (start, end), answers in said.items():
        ballot = count_votes(answers, weights, labels, how)
        if ballot.label != NONE:
            yield Mention(start, end, ballot.label, ballot.score)
