"""Label Studio's JSON and JSON-MIN exports, and its pre-annotations.

Offsets count code points. In old versions they counted UTF-16 code units:
https://github.com/HumanSignal/label-studio/issues/1008
"""

from collections import Counter
from typing import Any, Dict, List, Optional, Sequence, Tuple

from spacy.tokens import Doc, Span

from .annotated_text import AnnotatedText, LeftOut, Offsets, Unit, from_utf16, get_value

UNANNOTATED = "texts left out: nobody has annotated them"
SKIPPED = 'texts left out: all annotators have skipped them ("was_cancelled")'
MISPLACED = "texts left out: the text of an entity is not at its offsets"
FURTHER = "annotations left out: another annotation of the same text is used"
UTF16 = "texts with offsets in UTF-16 code units, which were converted"

# Strings that JSON-MIN adds to the data of a task.
METADATA = {"created_at", "updated_at", "history"}
# The keys of a region, and the types of their values.
REGION = {"start": int, "end": int, "labels": list}


def is_row(row: Dict[str, Any]) -> bool:
    """RETURNS (bool): Whether a row has the form of one of the two exports."""
    return isinstance(row.get("data"), dict) or "annotation_id" in row or bool(_listed_regions(row))


def parse(
    row: Dict[str, Any], text_field: Optional[str], counts: Counter[str], unit: Unit = Unit.auto
) -> AnnotatedText:
    """Read a task, or a row of JSON-MIN. The first annotation that isn't cancelled is used.

    row (Dict[str, Any]): The task or row.
    text_field (Optional[str]): The key of the text in the data of the task.
    counts (Counter[str]): The numbers of events by their kind, modified in place.
    unit (Unit): What the offsets count. By default, the one that fits the texts of the entities, or code
        points if the file doesn't contain these texts.
    RETURNS (AnnotatedText): The text.
    RAISES (LeftOut): If the task has no usable annotation.
    RAISES (ValueError): If the row is not valid.
    """
    if not isinstance(row.get("data"), dict):
        if row.get("annotation_id", 0) is None:
            raise LeftOut(UNANNOTATED)
        text = _get_text(row, text_field)
        spans = _place(text, _listed_regions(row), unit, counts)
        return AnnotatedText(text, spans, key=row.get("id"))
    annotations = row.get("annotations") or []
    if not annotations:
        raise LeftOut(UNANNOTATED)
    kept = [annotation for annotation in annotations if not annotation.get("was_cancelled")]
    if not kept:
        raise LeftOut(SKIPPED)
    text = _get_text(row["data"], text_field)
    results = [r for r in get_value(kept[0], "result", list) if _is_labelled(r.get("value"))]
    if len({result.get("to_name") for result in results}) > 1:
        raise ValueError("a task with several labelled texts can't be converted")
    counts[FURTHER] += len(kept) - 1
    return AnnotatedText(text, _place(text, [r["value"] for r in results], unit, counts))


def _is_labelled(value: Any) -> bool:
    """RETURNS (bool): Whether a value is a region with a label, as opposed to a choice about a region or
    about the whole text, for example.
    """
    return isinstance(value, dict) and not {"labels", "hypertextlabels"}.isdisjoint(value)


def _listed_regions(row: Dict[str, Any]) -> List[Dict[str, Any]]:
    """RETURNS (List[Dict[str, Any]]): The regions of a row of JSON-MIN. Their key can be anything: it is
    the name of a tag in the labelling interface.
    """
    items = [item for value in row.values() if isinstance(value, list) for item in value]
    return [item for item in items if _is_labelled(item)]


def _get_text(data: Dict[str, Any], text_field: Optional[str]) -> str:
    if text_field is not None or "text" in data:
        return get_value(data, text_field or "text", str)
    fields = [key for key, value in data.items() if isinstance(value, str) and key not in METADATA]
    if len(fields) == 1:
        return data[fields[0]]
    if not fields:
        raise ValueError('the key "text" is missing')
    raise ValueError(f"choose the text with --text-field: {', '.join(fields)}")


def _place(text: str, regions: List[Dict[str, Any]], unit: Unit, counts: Counter[str]) -> Offsets:
    """Get the spans of regions.

    text (str): The text.
    regions (List[Dict[str, Any]]): The regions: "start", "end", "labels" and optionally "text".
    unit (Unit): What the offsets count.
    counts (Counter[str]): The numbers of events by their kind, modified in place.
    RETURNS (Offsets): The spans, in characters.
    RAISES (LeftOut): If the text of a region is not at its offsets.
    RAISES (ValueError): If the regions are not valid.
    """
    spans: Offsets = []
    shown: List[Optional[str]] = []
    for region in regions:
        if "labels" not in region:
            raise ValueError("a region of HTML can't be converted, only regions of plain text")
        start, end, labels = (get_value(region, *x) for x in REGION.items())
        spans.extend((start, end, label) for label in labels)
        shown.extend([region.get("text")] * len(labels))
    if unit is Unit.auto and all(string is None for string in shown):
        unit = Unit.codepoints
    if unit is not Unit.utf16 and _fits(text, spans, shown):
        return spans
    if unit is not Unit.codepoints:
        try:
            converted = from_utf16(text, spans)
        except ValueError:
            raise LeftOut(MISPLACED) from None
        if _fits(text, converted, shown):
            counts[UTF16] += unit is Unit.auto
            return converted
    raise LeftOut(MISPLACED)


def _fits(text: str, spans: Offsets, shown: Sequence[Optional[str]]) -> bool:
    """RETURNS (bool): Whether the texts of all regions are at their offsets."""
    found = [text[start:end] for start, end, _ in spans]
    return all(b is None or _squeeze(a) == _squeeze(b) for a, b in zip(found, shown))


def _squeeze(text: str) -> str:
    """RETURNS (str): The text without white space, which Label Studio changes: a line break becomes a
    backslash and an n.
    """
    return "".join(text.replace("\\n", "\n").split())


def make_row(
    doc: Doc, scored: Sequence[Tuple[Span, Optional[float]]], model_version: str
) -> Dict[str, Any]:
    """Create a task with a prediction. It uses the names in Label Studio's own template.

    doc (Doc): The text.
    scored (Sequence[Tuple[Span, Optional[float]]]): The spans that were found, and their scores.
    model_version (str): The name of the pipeline.
    RETURNS (Dict[str, Any]): The task.
    """
    results: List[Dict[str, Any]] = []
    for number, (span, score) in enumerate(scored, 1):
        start, end = span.start_char, span.end_char
        value = {"start": start, "end": end, "text": span.text, "labels": [span.label_]}
        if score is not None:
            value["score"] = score
        names = {"from_name": "label", "to_name": "text", "type": "labels"}
        results.append({"id": f"{number}", **names, "value": value})
    prediction: Dict[str, Any] = {"model_version": model_version, "result": results}
    scores = [score for _, score in scored if score is not None]
    if scores:
        prediction["score"] = sum(scores) / len(scores)
    return {"data": {"text": doc.text}, "predictions": [prediction]}
