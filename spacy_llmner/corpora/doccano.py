"""doccano's JSONL format for sequence labelling projects.

doccano's editor counts UTF-16 code units: https://github.com/doccano/doccano/issues/2290
"""

from collections import Counter
from typing import Any, Dict, Optional, Sequence, Tuple

from spacy.tokens import Doc, Span

from .annotated_text import AnnotatedText, Unit, from_utf16, get_value, utf16_offsets

# The keys of the entities: with relations, without them, and in old versions.
KEYS = ("entities", "label", "labels")
# Counted for a warning, since the file doesn't say what its offsets count.
WIDE = "texts have characters that UTF-16 counts twice"


def parse(
    row: Dict[str, Any], text_field: Optional[str], counts: Counter[str], unit: Unit = Unit.auto
) -> AnnotatedText:
    """Read a row.

    row (Dict[str, Any]): The row: "text" (in some versions "data") and the entities, as [start, end, label]
        or as {"start_offset": ..., "end_offset": ..., "label": ...}.
    text_field (Optional[str]): The key of the text.
    counts (Counter[str]): The numbers of events by their kind, modified in place.
    unit (Unit): What the offsets count. Defaults to UTF-16 code units.
    RETURNS (AnnotatedText): The text.
    RAISES (ValueError): If the row is not valid.
    """
    text = get_value(row, text_field or ("text" if "text" in row else "data"), str)
    key = next((key for key in KEYS if key in row), "label")
    spans = []
    for item in get_value(row, key, list):
        if isinstance(item, dict) and {"start_offset", "end_offset", "label"} <= item.keys():
            spans.append((item["start_offset"], item["end_offset"], item["label"]))
        elif isinstance(item, list) and len(item) == 3:
            spans.append((item[0], item[1], item[2]))
        else:
            raise ValueError(
                f'the entity {item} is neither [start, end, label] nor an object with "start_offset", '
                '"end_offset" and "label"'
            )
    if unit is not Unit.codepoints:
        counts[WIDE] += unit is Unit.auto and bool(spans) and any(c > "\uffff" for c in text)
        spans = from_utf16(text, spans)
    return AnnotatedText(text, spans)


def make_row(doc: Doc, scored: Sequence[Tuple[Span, Optional[float]]]) -> Dict[str, Any]:
    """Create a row to import into doccano, which doesn't show scores.

    doc (Doc): The text.
    scored (Sequence[Tuple[Span, Optional[float]]]): The spans that were found, and their scores.
    RETURNS (Dict[str, Any]): The row.
    """
    at = utf16_offsets(doc.text)
    spans = [[at[span.start_char], at[span.end_char], span.label_] for span, _ in scored]
    return {"text": doc.text, "label": spans}
