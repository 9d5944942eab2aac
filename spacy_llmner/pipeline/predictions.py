"""What was found in a Doc, and how it is written into it."""

from dataclasses import dataclass
from typing import List, Sequence, Tuple

from spacy.tokens import Doc, Span, SpanGroup

from .scorers import chars


@dataclass(frozen=True)
class PredictedSpan:
    """An entity found in a Doc.

    start (int): First token.
    end (int): One past the last token.
    label (str): Its type.
    score (float): Probability, between 0 and 1.
    """

    start: int
    end: int
    label: str
    score: float


@dataclass
class Prediction:
    """What was found in one Doc.

    ents (List[PredictedSpan]): The best ones that don't overlap.
    spans (List[PredictedSpan]): All of them.
    """

    ents: List[PredictedSpan]
    spans: List[PredictedSpan]


def write_prediction(doc: Doc, found: Prediction, key: str, overwrite: bool, method: str) -> None:
    """Write everything with its score to doc.spans, the best to doc.ents.

    overwrite (bool): Replace the entities that are there. Else they stay, and so do blocked tokens.
    method (str): Who found it.
    """
    ents = [Span(doc, s.start, s.end, label=s.label) for s in found.ents]
    others, blocked = ((), []) if overwrite else (doc.ents, blocked_tokens(doc))
    ents = without_overlaps(ents, [*others, *blocked])
    scored = [(Span(doc, s.start, s.end, label=s.label), s.score) for s in found.spans]
    write_group(doc, key, scored, ents, method)
    doc.set_ents([*others, *ents], blocked=blocked, default="outside")


def write_group(
    doc: Doc, key: str, scored: Sequence[Tuple[Span, float]], ents: Sequence[Span], method: str
) -> None:
    """Write a span group, whose attrs say what only its writer knows: "scores", "method" (its name), and
    as "ents" what it adds to doc.ents. "chars" says where spans are, also when tokens are merged."""
    spans = [span for span, _ in scored]
    attrs = {
        "scores": [score for _, score in scored],
        "chars": [chars(span) for span in spans],
        "method": method,
        "ents": [chars(ent) for ent in ents],
    }
    doc.spans[key] = SpanGroup(doc, name=key, spans=spans, attrs=attrs)


def blocked_tokens(doc: Doc) -> List[Span]:
    """RETURNS (List[Span]): The tokens that may be no entity, as `doc.set_ents(blocked=...)` says."""
    return [doc[t.i : t.i + 1] for t in doc if t.ent_iob == 3 and not t.ent_type]


def without_overlaps(ents: Sequence[Span], others: Sequence[Span]) -> List[Span]:
    """RETURNS (List[Span]): Those entities that overlap none of the others."""
    taken = {i for ent in others for i in range(ent.start, ent.end)}
    return [ent for ent in ents if taken.isdisjoint(range(ent.start, ent.end))]
