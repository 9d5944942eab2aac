"""The entities predicted for a Doc, and how they are written to it."""

from dataclasses import dataclass
from typing import Any, Dict, List, NamedTuple, Sequence, Tuple

from spacy.tokens import Doc, Span, SpanGroup

from .extensions import FOUND
from .scorers import chars


class PredictedSpan(NamedTuple):
    """A predicted span.

    start (int): The first token.
    end (int): One past the last token.
    label (str): The label.
    score (float): The probability, between 0 and 1.
    """

    start: int
    end: int
    label: str
    score: float


@dataclass
class Prediction:
    """The prediction for one Doc.

    ents (List[PredictedSpan]): The best spans that don't overlap.
    spans (List[PredictedSpan]): All spans.
    """

    ents: List[PredictedSpan]
    spans: List[PredictedSpan]


def write_prediction(doc: Doc, found: Prediction, key: str, overwrite: bool, method: str) -> None:
    """Write all spans with their scores to doc.spans, and the best ones to doc.ents.

    doc (Doc): The Doc, modified in place.
    found (Prediction): The prediction.
    key (str): The key in doc.spans.
    overwrite (bool): Replace the Doc's entities. If False, its entities and blocked tokens are kept.
    method (str): The name of the component.
    """
    spans = {s: Span(doc, s.start, s.end, label=s.label) for s in [*found.spans, *found.ents]}
    ents = [spans[s] for s in found.ents]
    others: Sequence[Span] = ()
    blocked: List[Span] = []
    if not overwrite and doc.has_annotation("ENT_IOB"):
        others, blocked = doc.ents, blocked_tokens(doc)
        ents = without_overlaps(ents, [*others, *blocked])
    write_group(doc, key, [(spans[s], s.score) for s in found.spans], ents, method)
    doc.set_ents([*others, *ents], blocked=blocked, default="outside")


def write_group(
    doc: Doc, key: str, scored: Sequence[Tuple[Span, float]], ents: Sequence[Span], method: str
) -> None:
    """Write a span group.

    Its attrs are "scores", "chars" (the offsets and labels of the spans, which stay correct if tokens
    are merged), "method" (the component's name) and "ents" (the entities that the component adds to
    doc.ents).

    doc (Doc): The Doc, modified in place.
    key (str): The key in doc.spans.
    scored (Sequence[Tuple[Span, float]]): The spans and their scores.
    ents (Sequence[Span]): The entities that are added to doc.ents.
    method (str): The name of the component.
    """
    spans = [span for span, _ in scored]
    scores = [score for _, score in scored]
    offsets = [chars(span) for span in spans]
    offsets_of_ents = [chars(ent) for ent in ents]
    attrs = {"scores": scores, "chars": offsets, "method": method, "ents": offsets_of_ents}
    doc.spans[key] = SpanGroup(doc, name=key, spans=spans, attrs=attrs)
    _store_scores(doc, offsets_of_ents, dict(zip(map(tuple, offsets), scores)), method)


def _store_scores(
    doc: Doc, ents: Sequence[List[Any]], scores: Dict[Tuple[Any, ...], float], method: str
) -> None:
    """Store the scores of entities in doc.user_data as well, because spaCy doesn't copy the attrs of span
    groups to other Docs. See `extensions`.
    """
    user_data: Dict[Any, Any] = doc.user_data
    for key, found in list(user_data.items()):
        if isinstance(key, tuple) and key[:2] == FOUND and found[2] == method:
            del user_data[key]
    for start, end, label in ents:
        user_data[(*FOUND, start, end)] = (label, scores[start, end, label], method)


def blocked_tokens(doc: Doc) -> List[Span]:
    """RETURNS (List[Span]): The tokens that can't be entities, set with `doc.set_ents(blocked=...)`."""
    return [doc[t.i : t.i + 1] for t in doc if t.ent_iob == 3 and not t.ent_type]


def without_overlaps(ents: Sequence[Span], others: Sequence[Span]) -> List[Span]:
    """RETURNS (List[Span]): The entities that don't overlap any of the others."""
    taken = {i for ent in others for i in range(ent.start, ent.end)}
    return [ent for ent in ents if taken.isdisjoint(range(ent.start, ent.end))]
