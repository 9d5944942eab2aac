"""The extension attributes of the components' entities: `span._.score` and `span._.method`."""

from typing import Optional, Tuple

from spacy.tokens import Span

from .scorers import chars, span_offsets


def set_extensions() -> None:
    """Register the extension attributes, if they aren't yet."""
    if not Span.has_extension("score"):
        Span.set_extension("score", getter=lambda span: _found_by(span)[0])
    if not Span.has_extension("method"):
        Span.set_extension("method", getter=lambda span: _found_by(span)[1])


def _found_by(span: Span) -> Tuple[Optional[float], Optional[str]]:
    """Look up a span in the span groups that the components have written, so its score is stored only
    once.

    If several components have found the span, the last group is used: its component has also written
    doc.ents, like `llmner_combine` after all others.

    RETURNS (Tuple[Optional[float], Optional[str]]): The span's score and the component's name.
    """
    span_key = chars(span)
    for group in reversed(list(span.doc.spans.values())):
        offsets = span_offsets(group) if "scores" in group.attrs else []
        if span_key in offsets:
            return float(group.attrs["scores"][offsets.index(span_key)]), group.attrs.get("method")
    return None, None
