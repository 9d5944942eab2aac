"""Read the rows of a JSON or JSONL file, and detect the annotation tool that wrote it."""

import json
import re
from collections import Counter
from enum import StrEnum
from itertools import chain
from pathlib import Path
from typing import Any, Iterator, Optional, Set, Tuple

from ..errors import Errors, LLMNERError
from . import doccano, label_studio, prodigy
from .annotated_text import AnnotatedText, LeftOut, Unit, clean

REPEATED = "annotations left out: the text was annotated before"


class Format(StrEnum):
    """The formats of annotated corpora. `jsonl` and `prodigy` are the same."""

    auto = "auto"
    jsonl = "jsonl"
    prodigy = "prodigy"
    doccano = "doccano"
    label_studio = "label-studio"
    conll = "conll"


def read_annotated(
    path: Path,
    counts: Counter[str],
    format: Format = Format.auto,
    *,
    labels: Optional[Set[str]] = None,
    nested: bool = False,
    text_field: Optional[str] = None,
    unit: Unit = Unit.auto,
) -> Iterator[Tuple[str, AnnotatedText]]:
    """Read the annotated texts of a JSON or JSONL file.

    path (Path): The file.
    counts (Counter[str]): The counts of what was left out or changed, modified in place.
    format (Format): The format. `Format.auto` detects it from the first row.
    labels (Optional[Set[str]]): The allowed labels. None for any.
    nested (bool): Allow overlapping spans.
    text_field (Optional[str]): The key of the text. Defaults to "text".
    unit (Unit): What the offsets count.
    YIELDS (Tuple[str, AnnotatedText]): The place in the file, and the text.
    RAISES (LLMNERError): If the file can't be read.
    """
    seen = set()
    rows = read_rows(path)
    first = next(rows, None)
    if first is None:
        return
    if format is Format.auto:
        format = _detect_tool(path, first[1])
    for where, row in chain([first], rows):
        try:
            if not isinstance(row, dict):
                raise ValueError("not a JSON object")
            if format is Format.doccano:
                annotated = doccano.parse(row, text_field, counts, unit)
            elif format is Format.label_studio:
                annotated = label_studio.parse(row, text_field, counts, unit)
            else:
                annotated = prodigy.parse(row, text_field)
            annotated = clean(annotated, labels, nested, counts)
        except LeftOut as e:
            counts[str(e)] += 1
            continue
        except ValueError as e:
            raise LLMNERError(Errors.E113.format(where=where, reason=e)) from None
        except (AttributeError, KeyError, TypeError) as e:
            reason = f"not in the format {format} ({e})"
            raise LLMNERError(Errors.E113.format(where=where, reason=reason)) from None
        if annotated.key is not None and annotated.key in seen:
            counts[REPEATED] += 1
            continue
        seen.add(annotated.key)
        yield where, annotated


def _detect_tool(path: Path, row: Any) -> Format:
    """RETURNS (Format): The format of a file with this first row."""
    if isinstance(row, dict):
        if label_studio.is_row(row):
            return Format.label_studio
        if "spans" in row or "answer" in row:
            return Format.prodigy
        if any(isinstance(row.get(key), list) for key in doccano.KEYS):
            return Format.doccano
        check_not_spacy_v2(path, row)
    keys = f"the keys {', '.join(row) or 'none'}" if isinstance(row, dict) else "no keys"
    known = ", ".join(format for format in Format if format is not Format.auto)
    raise LLMNERError(Errors.E114.format(path=path, keys=keys, known=known))


def check_not_spacy_v2(path: Path, row: Any = None) -> None:
    """Recognize the training format of spaCy v2.

    path (Path): The file.
    row (Any): The first item of its list. By default, it is read from the file if its name ends in .json.
    RAISES (LLMNERError): If the file is in that format.
    """
    if row is None and path.suffix == ".json" and path.is_file():
        try:
            row = next(read_rows(path), (None, None))[1]
        except (LLMNERError, OSError):
            return
    if isinstance(row, dict) and "paragraphs" in row:
        raise LLMNERError(Errors.E115.format(path=path))


def read_rows(path: Path) -> Iterator[Tuple[str, Any]]:
    """Read a JSON list, or the lines of a JSONL file.

    path (Path): The file.
    YIELDS (Tuple[str, Any]): The place in the file, and the row.
    RAISES (LLMNERError): If the file is not valid JSON in UTF-8.
    """
    lines = ((number, line) for number, line in read_lines(path) if line.strip())
    first = next(lines, None)
    if first is None:
        return
    if first[1].lstrip().startswith("["):
        text = "\n".join(line for _, line in read_lines(path))
        for number, row in enumerate(_parse(path, text), 1):
            yield f"{path}, item {number}", row
    else:
        for number, line in chain([first], lines):
            yield f"{path}:{number}", _parse(path, line, number)


def _parse(path: Path, text: str, line: int = 1) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as e:
        where = f"{path}:{line + e.lineno - 1}"
        reason = f"not valid JSON ({e.msg} at column {e.colno})"
        raise LLMNERError(Errors.E113.format(where=where, reason=reason)) from None


def read_lines(path: Path) -> Iterator[Tuple[int, str]]:
    """Read a UTF-8 file. Unlike `str.splitlines`, this splits lines only at line feeds.

    path (Path): The file.
    YIELDS (Tuple[int, str]): The number of the line, from 1, and the line without its line break.
    RAISES (LLMNERError): If a line is not UTF-8.
    """
    with path.open("rb") as file_:
        for number, raw in enumerate(file_, 1):
            try:
                line = raw.decode("utf-8-sig" if number == 1 else "utf-8")
            except UnicodeDecodeError as e:
                reason = (
                    f"not UTF-8 (byte 0x{raw[e.start]:02x} at position {e.start + 1} of the line)"
                )
                where = f"{path}:{number}"
                raise LLMNERError(Errors.E113.format(where=where, reason=reason)) from None
            yield number, line.rstrip("\r\n")


def is_json(path: Path) -> bool:
    """RETURNS (bool): Whether a file is JSON by its name, or by its first line that isn't blank: an object,
    or the beginning of a list.
    """
    if path.suffix in (".json", ".jsonl"):
        return True
    line = next((line for _, line in read_lines(path) if line.strip()), "")
    return re.fullmatch(r"\s*(\{.*\}|\[(\s*[\[{\"].*)?)\s*", line) is not None
