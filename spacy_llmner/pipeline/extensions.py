"""What the components tell about an entity: `span._.score` and `span._.method`."""

from typing import Optional, Tuple

from spacy.tokens import Span

from .scorers import chars, places_of


def set_extensions() -> None:
    """Make them known to spaCy."""
    if not Span.has_extension("score"):
        Span.set_extension("score", getter=lambda span: _found_by(span)[0])
    if not Span.has_extension("method"):
        Span.set_extension("method", getter=lambda span: _found_by(span)[1])


def _found_by(span: Span) -> Tuple[Optional[float], Optional[str]]:
    """Look up where a component wrote it, so nothing is kept twice. Of several that found the span the
    last one counts: it wrote doc.ents, as `llmner_combine` behind all others.

    RETURNS (Tuple[Optional[float], Optional[str]]): The span's score and the component's name.
    """
    place = chars(span)
    for group in reversed(list(span.doc.spans.values())):
        places = places_of(group) if "scores" in group.attrs else []
        if place in places:
            return float(group.attrs["scores"][places.index(place)]), group.attrs.get("method")
    return None, None
