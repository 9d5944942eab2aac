"""Gold annotation: trim white space, and align mentions with the tokens of the predicted Doc."""

import warnings
from typing import Any, Iterable, List, Optional, Sequence, Tuple

from spacy.tokens import Doc, Span, SpanGroup
from spacy.training import Example

from ..errors import Errors, LLMNERError, Warnings
from ..util import is_blank

# (start, end, label) of each mention, and (start, end) of each range without usable annotation, in tokens.
GoldMentions = Tuple[List[Tuple[int, int, str]], List[Tuple[int, int]]]


def gold_mentions(eg: Example, spans_key: Optional[str] = None) -> GoldMentions:
    """Get the mentions of a reference in the tokens of the predicted Doc.

    White space at the borders of a mention is left out. See `trim_mentions`.

    eg (Example): The example.
    spans_key (Optional[str]): The doc.spans group with the mentions; None for doc.ents.
    RETURNS (GoldMentions): The (start, end, label) of each mention that begins and ends at token
        boundaries, and the (start, end) of tokens whose annotation is missing, or can't be used
        because a mention begins or ends inside a token.
    RAISES (LLMNERError): If the texts of the example differ.
    """
    check_texts(eg)
    doc, reference = eg.predicted, trim_mentions(eg.reference, spans_key)
    if not _is_annotated(reference, spans_key):
        return [], [(0, len(doc))]
    mentions, unknown = [], []
    for gold in _mentions(reference, spans_key):
        span = doc.char_span(gold.start_char, gold.end_char)
        if span is None:
            unknown.append(overlapping_tokens(doc, gold.start_char, gold.end_char))
        else:
            mentions.append((span.start, span.end, gold.label_))
    if spans_key is None:
        for token in reference:
            if token.ent_iob == 0:
                unknown.append(overlapping_tokens(doc, token.idx, token.idx + len(token)))
    return mentions, unknown


def trim_mentions(doc: Doc, spans_key: Optional[str] = None) -> Doc:
    """Remove white space, and tokens without width, from the borders of the mentions of a Doc.
    Annotation tools and text extracted from HTML produce such mentions. Mentions that consist only of white
    space are removed.

    doc (Doc): The Doc.
    spans_key (Optional[str]): The doc.spans group with the mentions; None for doc.ents.
    RETURNS (Doc): A copy with trimmed mentions; the Doc itself if nothing was removed.
    """
    mentions = _mentions(doc, spans_key)
    if not any(map(_has_blank_border, mentions)):
        return doc
    out = doc.copy()
    spans, kept = [], []
    for k, mention in enumerate(mentions):
        start, end = mention.start, mention.end
        while start < end and is_blank(doc[start].text):
            start += 1
        while start < end and is_blank(doc[end - 1].text):
            end -= 1
        if start < end:
            label, kb_id, span_id = mention.label, mention.kb_id, mention.id
            spans.append(Span(out, start, end, label, kb_id=kb_id, span_id=span_id))
            kept.append(k)
    if spans_key is not None:
        group = doc.spans[spans_key]
        attrs = dict(group.attrs)
        if "scores" in attrs:
            attrs["scores"] = [attrs["scores"][k] for k in kept]
        attrs.pop("chars", None)
        out.spans[spans_key] = SpanGroup(out, name=spans_key, spans=spans, attrs=attrs)
        return out
    missing = [Span(out, t.i, t.i + 1) for t in doc if t.ent_iob == 0]
    out.set_ents(spans, missing=missing, default="outside")
    return out


def warn_about_white_space(name: str, docs: Iterable[Doc], spans_key: Optional[str] = None) -> None:
    """Warn, once for all Docs, about annotated mentions that begin or end with white space.

    name (str): What uses the annotation.
    docs (Iterable[Doc]): The annotated Docs.
    spans_key (Optional[str]): The doc.spans group with the mentions; None for doc.ents.
    """
    mentions = [mention for doc in docs for mention in _mentions(doc, spans_key)]
    n = sum(map(_has_blank_border, mentions))
    if n:
        empty = sum(is_blank(mention.text) for mention in mentions)
        message = Warnings.W017.format(name=name, n=n, total=len(mentions), empty=empty)
        warnings.warn(message, stacklevel=2)


def _mentions(doc: Doc, spans_key: Optional[str]) -> Sequence[Span]:
    return doc.ents if spans_key is None else list(doc.spans.get(spans_key, ()))


def _is_annotated(doc: Doc, spans_key: Optional[str]) -> bool:
    return doc.has_annotation("ENT_IOB") if spans_key is None else spans_key in doc.spans


def _has_blank_border(mention: Span) -> bool:
    return is_blank(mention[0].text) or is_blank(mention[-1].text)


def check_texts(eg: Example) -> None:
    """RAISES (LLMNERError): If the texts of an Example differ."""
    if eg.predicted.text != eg.reference.text:
        raise LLMNERError(
            Errors.E029.format(predicted=eg.predicted.text[:40], reference=eg.reference.text[:40])
        )


def overlapping_tokens(doc: Doc, start: int, end: int) -> Tuple[int, int]:
    """RETURNS (Tuple[int, int]): The first, and one past the last, of the tokens that overlap a range of
    characters.
    """
    span: Any = doc.char_span(start, end, alignment_mode="expand")
    return span.start, span.end
