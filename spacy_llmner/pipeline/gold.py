"""Align the gold annotation of an Example's reference with the tokens of its predicted Doc."""

from typing import Any, List, Optional, Tuple

from spacy.tokens import Doc
from spacy.training import Example

from ..errors import Errors, LLMNERError

# (start, end, label) of each mention, and (start, end) of each range without usable annotation, in tokens.
GoldMentions = Tuple[List[Tuple[int, int, str]], List[Tuple[int, int]]]


def gold_mentions(eg: Example, spans_key: Optional[str]) -> GoldMentions:
    """Get the mentions of a reference in the tokens of the predicted Doc.

    eg (Example): The example.
    spans_key (Optional[str]): The doc.spans group with the mentions; None for doc.ents.
    RETURNS (GoldMentions): See `aligned_entities`.
    RAISES (LLMNERError): If the texts of the example differ.
    """
    if spans_key is None:
        return aligned_entities(eg)
    check_texts(eg)
    if spans_key not in eg.reference.spans:
        return [], [(0, len(eg.predicted))]
    out = []
    unknown = []
    for span in eg.reference.spans[spans_key]:
        aligned = eg.predicted.char_span(span.start_char, span.end_char, label=span.label_)
        if aligned is None:
            unknown.append(overlapping_tokens(eg.predicted, span.start_char, span.end_char))
        else:
            out.append((aligned.start, aligned.end, span.label_))
    return out, unknown


def aligned_entities(eg: Example) -> GoldMentions:
    """Get the entities of a reference in the tokens of the predicted Doc.

    eg (Example): The example.
    RETURNS (GoldMentions): The (start, end, label) of each entity that begins and ends at token
        boundaries, and the (start, end) of tokens whose annotation is missing or can't be used, since
        an entity begins or ends inside a token.
    RAISES (LLMNERError): If the texts of the example differ.
    """
    check_texts(eg)
    if not eg.reference.has_annotation("ENT_IOB"):
        return [], [(0, len(eg.predicted))]
    entities, unknown = [], []
    for ent in eg.reference.ents:
        span = eg.predicted.char_span(ent.start_char, ent.end_char, label=ent.label_)
        if span is None:
            unknown.append(overlapping_tokens(eg.predicted, ent.start_char, ent.end_char))
        else:
            entities.append((span.start, span.end, ent.label_))
    for token in eg.reference:
        if token.ent_iob == 0:
            unknown.append(overlapping_tokens(eg.predicted, token.idx, token.idx + len(token)))
    return entities, unknown


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
