"""Prodigy's JSONL, which is also the format of this project's own corpora.

https://prodi.gy/docs/api-interfaces
"""

from typing import Any, Dict, List, Optional, Sequence, Tuple

from spacy.tokens import Doc, Span

from .annotated_text import AnnotatedText, LeftOut, get_value

REJECTED = 'texts left out: rejected ("answer": "reject")'
IGNORED = 'texts left out: ignored ("answer": "ignore")'
BINARY = 'texts left out: the answer is only about one suggestion ("_is_binary")'


def parse(row: Dict[str, Any], text_field: Optional[str]) -> AnnotatedText:
    """Read a row.

    row (Dict[str, Any]): The row: "text", "spans" and optionally "answer", "topic" and other keys.
    text_field (Optional[str]): The key of the text. Defaults to "text".
    RETURNS (AnnotatedText): The text.
    RAISES (LeftOut): If the answer doesn't say which entities the text has.
    RAISES (ValueError): If the row is not valid.
    """
    check_answer(row)
    text = get_value(row, text_field or "text", str)
    # Prodigy leaves out "spans" if an accepted text has none.
    spans = get_value(row, "spans", list) if "spans" in row or "answer" not in row else []
    for span in spans:
        if not isinstance(span, dict) or not {"start", "end", "label"} <= span.keys():
            raise ValueError(f'the span {span} lacks "start", "end" or "label"')
    offsets = [(span["start"], span["end"], span["label"]) for span in spans]
    return AnnotatedText(text, offsets, row.get("topic"), row.get("_input_hash"))


def check_answer(row: Dict[str, Any]) -> None:
    """RAISES (LeftOut): If the answer of a row doesn't say which entities the text has.
    RAISES (ValueError): If the answer is unknown.
    """
    answer = row.get("answer", "accept")
    if answer not in ("accept", "reject", "ignore"):
        raise ValueError(f'the answer {answer!r} is not "accept", "reject" or "ignore"')
    if answer == "reject":
        raise LeftOut(REJECTED)
    if answer == "ignore":
        raise LeftOut(IGNORED)
    if row.get("_is_binary", row.get("_view_id") in ("ner", "spans")):
        raise LeftOut(BINARY)


def make_row(doc: Doc, scored: Sequence[Tuple[Span, Optional[float]]]) -> Dict[str, Any]:
    """Create a row whose spans Prodigy shows as suggestions.

    doc (Doc): The text.
    scored (Sequence[Tuple[Span, Optional[float]]]): The spans that were found, and their scores.
    RETURNS (Dict[str, Any]): The row.
    """
    tokens = [
        {
            "text": t.text,
            "start": t.idx,
            "end": t.idx + len(t),
            "id": t.i,
            "ws": bool(t.whitespace_),
        }
        for t in doc
    ]
    spans: List[Dict[str, Any]] = []
    for span, score in scored:
        spans.append(
            {
                "start": span.start_char,
                "end": span.end_char,
                "token_start": span.start,
                "token_end": span.end - 1,  # inclusive
                "label": span.label_,
            }
        )
        if score is not None:
            spans[-1]["score"] = score
    return {"text": doc.text, "tokens": tokens, "spans": spans}
