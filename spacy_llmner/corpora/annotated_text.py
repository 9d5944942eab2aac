"""An annotated text, as the readers of all formats produce it, and the checks that it must pass."""

from collections import Counter
from dataclasses import dataclass, replace
from enum import StrEnum
from itertools import accumulate
from typing import Any, Dict, List, Optional, Set, Tuple

from ..util import is_blank, trimmed

# Spans: the start, the end (exclusive) and the label. In characters or in tokens.
Offsets = List[Tuple[int, int, str]]

TRIMMED = "spans trimmed: they began or ended with white space"
BLANK = "spans left out: they contain only white space"
DUPLICATE = "spans left out: they are annotated twice"
TYPES: Dict[type, str] = {str: "a string", list: "a list", int: "a whole number"}


class Unit(StrEnum):
    """The unit of offsets: Unicode code points, as in Python, or UTF-16 code units, as in JavaScript, where
    an emoji, for example, counts as two. `auto` is the unit of the annotation tool."""

    auto = "auto"
    codepoints = "codepoints"
    utf16 = "utf16"


class LeftOut(Exception):
    """A text can't be used, although it is well-formed: nobody has annotated it, for example."""


@dataclass(frozen=True)
class AnnotatedText:
    """A text with entities.

    text (str): The text.
    spans (Offsets): The entities, in characters.
    group (Any): The document or topic that the text belongs to.
    key (Any): The same for all annotations of the same text, of which only the first is used. None if there
        is only one annotation.
    """

    text: str
    spans: Offsets
    group: Any = None
    key: Any = None


def get_value(row: Dict[str, Any], key: str, type_: type) -> Any:
    """RETURNS (Any): A value of a row.
    RAISES (ValueError): If it is missing or has another type.
    """
    if key not in row:
        raise ValueError(f'the key "{key}" is missing')
    if not isinstance(row[key], type_):
        raise ValueError(f'the key "{key}" is not {TYPES[type_]}')
    return row[key]


def check_label(label: Any, labels: Optional[Set[str]]) -> None:
    """RAISES (ValueError): If a label is not one of the allowed labels; None allows all of them."""
    if not isinstance(label, str) or not label.strip():
        raise ValueError(f"the label {label!r} is empty or not a string")
    if labels is not None and label not in labels:
        raise ValueError(f"the label '{label}' is not one of {', '.join(sorted(labels))}")


def check_offsets(start: Any, end: Any, length: int, label: Any) -> None:
    """RAISES (ValueError): If a span is empty or not inside a text with this length."""
    name = f"the span ({start}, {end}, {label})"
    if type(start) is not int or type(end) is not int:
        raise ValueError(f"{name} does not have whole numbers as start and end")
    if start < 0 or end > length:
        raise ValueError(f"{name} is outside the text (0 to {length})")
    if start >= end:
        raise ValueError(f"{name} is empty")


def clean(
    annotated: AnnotatedText, labels: Optional[Set[str]], nested: bool, counts: Counter[str]
) -> AnnotatedText:
    """Check a text, and remove white space at the borders of its spans.

    annotated (AnnotatedText): The text, with values of any type in its spans.
    labels (Optional[Set[str]]): The allowed labels. None for any.
    nested (bool): Allow overlapping spans.
    counts (Counter[str]): The numbers of changed spans by the kind of change, modified in place.
    RETURNS (AnnotatedText): The text with the changed spans.
    RAISES (ValueError): If the text or a span is not valid.
    """
    text = annotated.text
    if not isinstance(text, str):
        raise ValueError("the text is not a string")
    if any("\ud800" <= char <= "\udfff" for char in text):
        raise ValueError("the text contains one half of a surrogate pair (\\ud800 to \\udfff)")
    if is_blank(text):
        raise ValueError("the text is empty")
    spans: Dict[Tuple[int, int, str], None] = {}  # in the order of the file
    for start, end, label in annotated.spans:
        check_label(label, labels)
        check_offsets(start, end, len(text), label)
        span = trimmed(text, start, end)
        counts[TRIMMED] += start < end and span != (start, end) and span[0] < span[1]
        if span[0] >= span[1]:
            counts[BLANK] += 1
        elif (*span, label) in spans:
            counts[DUPLICATE] += 1
        else:
            spans[(*span, label)] = None
    ordered = sorted(spans)
    for (a, b, _), (c, d, _) in zip(ordered, ordered[1:]):
        if c < b and not nested:
            raise ValueError(f"'{text[a:b]}' and '{text[c:d]}' overlap (use --nested to allow it)")
    return replace(annotated, spans=list(spans))


def utf16_offsets(text: str) -> List[int]:
    """RETURNS (List[int]): The UTF-16 offset of each character, and of the end of the text."""
    return [0, *accumulate(1 + (char > "\uffff") for char in text)]


def from_utf16(text: str, spans: Offsets) -> Offsets:
    """Convert offsets that count UTF-16 code units.

    text (str): The text.
    spans (Offsets): The spans, with values of any type.
    RETURNS (Offsets): The spans with offsets that count characters.
    RAISES (ValueError): If a span is not valid, or if it begins or ends in the middle of a character.
    """
    if all(char <= "\uffff" for char in text):
        return spans
    offsets = utf16_offsets(text)
    characters = {offset: i for i, offset in enumerate(offsets)}
    out = []
    for start, end, label in spans:
        check_offsets(start, end, offsets[-1], label)
        if start not in characters or end not in characters:
            raise ValueError(f"the span ({start}, {end}, {label}) cuts a character in half")
        out.append((characters[start], characters[end], label))
    return out
