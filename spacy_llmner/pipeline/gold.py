"""What an Example's reference says about the tokens of its predicted Doc."""

from typing import Any, List, Optional, Tuple

from spacy.tokens import Doc
from spacy.training import Example

from ..errors import Errors, LLMNERError

# (start, end, label) of mentions in tokens, and (start, end) of tokens about which nothing is known.
GoldMentions = Tuple[List[Tuple[int, int, str]], List[Tuple[int, int]]]


def gold_mentions(eg: Example, spans_key: Optional[str]) -> GoldMentions:
    """Carry a reference's mentions over to the predicted Doc's tokens.

    spans_key (Optional[str]): Take them from these doc.spans; None from doc.ents.
    """
    if spans_key is None:
        return aligned_entities(eg)
    check_texts(eg)
    if spans_key not in eg.reference.spans:
        return [], [(0, len(eg.predicted))]
    out = []
    unknown = []
    for span in eg.reference.spans[spans_key]:
        there = eg.predicted.char_span(span.start_char, span.end_char, label=span.label_)
        if there is None:
            unknown.append(overlapping_tokens(eg.predicted, span.start_char, span.end_char))
        else:
            out.append((there.start, there.end, span.label_))
    return out, unknown


def aligned_entities(eg: Example) -> GoldMentions:
    """Carry a reference's entities over to the predicted Doc's tokens.

    RETURNS (Tuple[List, List]): (start, end, label) of each entity that its tokens fit, and the
        (start, end) of tokens about which nothing is known: without annotation, or with an entity
        that is cut by a token's border.
    RAISES (LLMNERError): If the texts differ.
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
    """RETURNS (Tuple[int, int]): The tokens that share a character with a stretch of text."""
    span: Any = doc.char_span(start, end, alignment_mode="expand")
    return span.start, span.end
