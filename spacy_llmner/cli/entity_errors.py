"""Compare predicted entities with the reference, and tell the kinds of errors apart."""

from typing import Dict, Iterable, List, NamedTuple, Optional, Tuple

from spacy.tokens import Doc, Span
from spacy.training import Example

# Start and end in characters, and the label.
Entity = Tuple[int, int, str]

KINDS = ("missed", "extra", "wrong label", "wrong boundary", "wrong label and boundary")
MISSED, EXTRA, LABEL, BOUNDARY, BOTH = KINDS


class EntityError(NamedTuple):
    """A difference between the reference and the prediction.

    kind (str): One of KINDS.
    gold (Optional[Entity]): The entity in the reference; None if it is extra.
    predicted (Optional[Entity]): The predicted entity; None if it is missed.
    """

    kind: str
    gold: Optional[Entity]
    predicted: Optional[Entity]

    @property
    def entity(self) -> Entity:
        """RETURNS (Entity): The entity in the reference, or the predicted one if it is extra."""
        entity = self.gold or self.predicted
        assert entity is not None
        return entity

    def describe(self, text: str) -> str:
        """Describe the error, as in "Port Ellam (LOC -> EVENT)".

        text (str): The text of the Doc.
        RETURNS (str): The reference on the left of the arrow, and the prediction on the right.
        """
        start, end, label = self.entity
        if self.gold is None or self.predicted is None:
            return f"{text[start:end]} ({label})"
        found_start, found_end, found_label = self.predicted
        found = text[found_start:found_end]
        if self.kind == LABEL:
            return f"{found} ({label} -> {found_label})"
        if self.kind == BOUNDARY:
            return f"{text[start:end]} -> {found} ({label})"
        return f"{text[start:end]} ({label}) -> {found} ({found_label})"


def find_errors(eg: Example, spans_key: Optional[str] = None) -> List[EntityError]:
    """Compare the predicted entities with the reference. Each entity is part of at most one error.

    eg (Example): The Docs.
    spans_key (Optional[str]): Compare doc.spans[spans_key] instead of doc.ents.
    RETURNS (List[EntityError]): The errors, in the order of the text.
    """
    gold, predicted = spans_of(eg.reference, spans_key), spans_of(eg.predicted, spans_key)
    missed, extra = gold.keys() - predicted.keys(), predicted.keys() - gold.keys()
    pairs = [
        (a[:2] != b[:2], a[2] != b[2], -overlap, a, b)
        for a in missed
        for b in extra
        if (overlap := min(a[1], b[1]) - max(a[0], b[0])) > 0
    ]
    errors = []
    # Same boundaries first, then same label, then the largest overlap: each entity gets the best partner.
    for other_boundary, other_label, _, a, b in sorted(pairs):
        if a in missed and b in extra:
            kind = BOTH if other_boundary and other_label else BOUNDARY if other_boundary else LABEL
            errors.append(EntityError(kind, a, b))
            missed, extra = missed - {a}, extra - {b}
    errors += [EntityError(MISSED, a, None) for a in missed]
    errors += [EntityError(EXTRA, None, b) for b in extra]
    return sorted(errors, key=lambda error: error.entity)


def errors_by_kind(eg: Example, errors: Iterable[EntityError]) -> Dict[str, List[str]]:
    """RETURNS (Dict[str, List[str]]): The descriptions of the errors of an Example, by kind."""
    listed: Dict[str, List[str]] = {kind: [] for kind in KINDS}
    for error in errors:
        listed[error.kind].append(error.describe(eg.reference.text))
    return {kind: described for kind, described in listed.items() if described}


def spans_of(doc: Doc, spans_key: Optional[str] = None) -> Dict[Entity, Span]:
    """RETURNS (Dict[Entity, Span]): The spans of doc.ents, or of doc.spans[spans_key]."""
    spans: Iterable[Span] = doc.ents if spans_key is None else doc.spans.get(spans_key, [])
    return {(span.start_char, span.end_char, span.label_): span for span in spans}
