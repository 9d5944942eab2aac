"""How much each voter likes each type, and what corrects it.

A small LLM that is asked for a type has its favourites, whatever the text. Over the spans of held-out texts
it is known how often each type is right, and how often a voter expects it. Its probabilities times the
ratio of the two, scaled to the sum they had, are what it would say if it expected what is there (Saerens et
al. 2002, "Adjusting the outputs of a classifier to new a priori probabilities").
"""

from typing import Dict, List, Mapping, NamedTuple, Sequence

from .tasks import NONE

Factors = Dict[str, Dict[str, float]]


class Polled(NamedTuple):
    """A span that was voted on.

    said (Mapping[str, Mapping[str, float]]): Per voter, how likely each type is, as it says.
    label (str): What it is; NONE for no entity.
    """

    said: Mapping[str, Mapping[str, float]]
    label: str


def fit_factors(polled: Sequence[Polled], voters: Sequence[str], labels: Sequence[str]) -> Factors:
    """Fit a factor per voter and type, NONE among them: (spans that are of the type + 1) / (the voter's
    probabilities of it, summed over the spans, + 1). The ones keep it near 1 where little is known.

    RETURNS (Factors): By voter and type.
    """
    out: Factors = {}
    for name in voters:
        heard: List[Polled] = [span for span in polled if name in span.said]
        out[name] = {}
        for label in (*labels, NONE):
            there = sum(span.label == label for span in heard)
            expected = sum(span.said[name].get(label, 0.0) for span in heard)
            # Rounded, since it is saved with so many digits.
            out[name][label] = round((there + 1.0) / (expected + 1.0), 9)
    return out


def corrected(said: Mapping[str, float], factors: Mapping[str, float]) -> Dict[str, float]:
    """RETURNS (Dict[str, float]): What a voter says times its factors, with the same sum. Types without
    a factor have 1."""
    out = {label: p * factors.get(label, 1.0) for label, p in said.items()}
    scale = sum(said.values()) / (sum(out.values()) or 1.0)
    return {label: p * scale for label, p in out.items()}
