"""Calibrate the votes on held-out texts: the weight of each voter, and a factor for each voter and label.

A small LLM is biased towards some labels, whatever the text, and some LLMs know more than others. The spans
of annotated texts show how often each label is correct, and how often a voter expects it. To correct the
bias, the voter's probabilities are multiplied by the ratio of the two, and rescaled to their former sum
(Saerens et al. 2002, "Adjusting the outputs of a classifier to new a priori probabilities"). However, this
predicts "no entity" more often than is good for F1. Therefore the strength of the correction, an additional
factor for "no entity" and the weights of the voters are chosen so that the F1 on these texts is highest.
"""

from itertools import product
from typing import Dict, Iterator, List, Mapping, NamedTuple, Sequence, Tuple

from ..pipeline.spans import Mention, filter_overlapping
from ..util import CharSpan
from .interfaces import NONE
from .voting import count_votes

Factors = Dict[str, Dict[str, float]]

# The values that are tried: exponents of the ratios, factors for "no entity", and factors for the weight of
# a voter. If several values are equally good, the first is chosen.
STRENGTHS = (0.0, 0.5, 1.0)
NONE_COUNTS = (1.0, 0.5, 2.0, 0.25, 4.0)
VOTER_COUNTS = (1.0, 0.5, 2.0, 0.25, 4.0, 0.1, 10.0)
ROUNDS = 2


class VotedText(NamedTuple):
    """A text with the votes about its spans.

    probabilities (Mapping[CharSpan, Mapping[str, Mapping[str, float]]]): By span, voter and label, the
        probability that the voter gave.
    gold (Mapping[CharSpan, str]): The label of each annotated entity, by span.
    """

    probabilities: Mapping[CharSpan, Mapping[str, Mapping[str, float]]]
    gold: Mapping[CharSpan, str]


class VoteCalibration(NamedTuple):
    """The result of a calibration.

    factors (Factors): By voter and label (including NONE), a factor for the probability. Empty if no
        factors improve the F1.
    weights (Dict[str, float]): By voter, a factor for its weight.
    before (float): Strict F1 on the texts without factors and weights, between 0 and 1. Entities are not
        verified.
    after (float): Strict F1 on the texts with factors and weights.
    """

    factors: Factors
    weights: Dict[str, float]
    before: float
    after: float


def fit(
    texts: Sequence[VotedText], weights: Mapping[str, float], labels: Sequence[str], how: str
) -> VoteCalibration:
    """Fit the factors and weights.

    texts (Sequence[VotedText]): Annotated texts with votes.
    weights (Mapping[str, float]): The weight of each voter in the config.
    labels (Sequence[str]): The labels, without NONE.
    how (str): How the votes are counted, see `voting.count_votes`.
    RETURNS (VoteCalibration): The factors and weights with the highest F1 of those that were tried.
    """
    names = list(weights)
    ratios = prior_ratios(texts, names, labels)
    # All corrections, by their exponent and their factor for "no entity".
    corrections = {key: _factors(ratios, *key) for key in product(STRENGTHS, NONE_COUNTS)}
    answers = {
        key: [
            {
                span: {name: corrected(p, factors[name]) for name, p in of_span.items()}
                for span, of_span in text.probabilities.items()
            }
            for text in texts
        ]
        for key, factors in corrections.items()
    }

    n_gold = sum(len(text.gold) for text in texts)

    def f1(key: Tuple[float, float], counts: Mapping[str, float]) -> float:
        multiplied = {name: weights[name] * counts[name] for name in names}
        right = found = 0
        for of_text, text in zip(answers[key], texts):
            mentions = filter_overlapping(_voted(of_text, multiplied, labels, how))
            right += sum(text.gold.get((m.start, m.end)) == m.label for m in mentions)
            found += len(mentions)
        return 2 * right / max(found + n_gold, 1)

    chosen, counts = (STRENGTHS[0], NONE_COUNTS[0]), dict.fromkeys(names, VOTER_COUNTS[0])
    before = best = f1(chosen, counts)
    # Only the ratios of the weights matter, so the first voter keeps its weight. The weights of the others
    # are fitted one after another, each together with the correction.
    for name in [*names[1:]] * ROUNDS or names:
        candidates = VOTER_COUNTS if name != names[0] else VOTER_COUNTS[:1]
        for count, key in product(candidates, corrections):
            score = f1(key, {**counts, name: count})
            if score > best + 1e-9:
                best, chosen, counts = score, key, {**counts, name: count}
    changed = chosen != (STRENGTHS[0], NONE_COUNTS[0])
    return VoteCalibration(corrections[chosen] if changed else {}, counts, before, best)


def prior_ratios(
    texts: Sequence[VotedText], voters: Sequence[str], labels: Sequence[str]
) -> Factors:
    """Compare how often labels are correct with how often voters expect them.

    texts (Sequence[VotedText]): Annotated texts with votes.
    voters (Sequence[str]): The names of the voters.
    labels (Sequence[str]): The labels, without NONE.
    RETURNS (Factors): By voter and label (including NONE): (number of spans with the label + 1) / (sum of
        the voter's probabilities of the label over the spans + 1). Adding 1 keeps the ratio near 1 if
        there are few spans.
    """
    out: Factors = {}
    for name in voters:
        pairs: List[Tuple[Mapping[str, float], str]] = [
            (by_voter[name], text.gold.get(span, NONE))
            for text in texts
            for span, by_voter in text.probabilities.items()
            if name in by_voter
        ]
        out[name] = {}
        for label in (*labels, NONE):
            right = sum(gold == label for _, gold in pairs)
            expected = sum(p.get(label, 0.0) for p, _ in pairs)
            out[name][label] = (right + 1.0) / (expected + 1.0)
    return out


def corrected(probabilities: Mapping[str, float], factors: Mapping[str, float]) -> Dict[str, float]:
    """Multiply a voter's probabilities by its factors, and rescale them to their former sum.

    probabilities (Mapping[str, float]): The probability of each label.
    factors (Mapping[str, float]): The factor of each label. A label without a factor has the factor 1.
    RETURNS (Dict[str, float]): The corrected probabilities.
    """
    out = {label: p * factors.get(label, 1.0) for label, p in probabilities.items()}
    scale = sum(probabilities.values()) / (sum(out.values()) or 1.0)
    return {label: p * scale for label, p in out.items()}


def _factors(ratios: Factors, strength: float, none: float) -> Factors:
    # Rounded, because the factors are saved with this many digits.
    return {
        name: {
            label: round(ratio**strength * (none if label == NONE else 1.0), 9)
            for label, ratio in of_voter.items()
        }
        for name, of_voter in ratios.items()
    }


def _voted(
    probabilities: Mapping[CharSpan, Mapping[str, Mapping[str, float]]],
    weights: Mapping[str, float],
    labels: Sequence[str],
    how: str,
) -> Iterator[Mention]:
    for (start, end), answers in probabilities.items():
        ballot = count_votes(answers, weights, labels, how)
        if ballot.label != NONE:
            yield Mention(start, end, ballot.label, ballot.score)
