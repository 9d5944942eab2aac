"""Read annotated corpora sentence by sentence: JSONL with character offsets, or CoNLL columns.

A line that can't be read raises the error `FILE:LINE: reason`.
"""

import json
import re
from enum import StrEnum
from itertools import chain
from pathlib import Path
from typing import Any, Dict, Iterable, Iterator, List, NamedTuple, Optional, Set, Tuple

from spacy.language import Language

# Spans: the start, the end (exclusive) and the label. In tokens or in characters.
Offsets = List[Tuple[int, int, str]]
# The tokens of a sentence, each with its tag, or with one tag for each layer.
Rows = List[Tuple[str, ...]]
# Languages that are written without spaces: tokens and sentences are joined without them.
NO_SPACES = {"bo", "ja", "km", "lo", "my", "th", "zh"}
TAG = re.compile(r"O|[BIESLU]-\S.*")


class Format(StrEnum):
    auto = "auto"
    jsonl = "jsonl"
    conll = "conll"


class ConvertError(ValueError):
    """An error in a corpus.

    path (Path): The file.
    reason (str): The problem.
    line (int): The number of the line, from 1. 0 if the error is about the whole file.
    """

    def __init__(self, path: Path, reason: str, line: int = 0):
        super().__init__(f"{path}:{line}: {reason}" if line else f"{path}: {reason}")


class Sentence(NamedTuple):
    """A sentence of a corpus.

    words (List[str]): The tokens.
    spaces (List[bool]): Whether a space follows each token.
    spans (Offsets): The entities, in tokens.
    group (Any): The document or topic. A Doc only gets sentences of the same group.
    split (int): The number of tokens that were split because an entity begins or ends inside them.
    """

    words: List[str]
    spaces: List[bool]
    spans: Offsets
    group: Any
    split: int = 0


def read_sentences(
    path: Path, nlp: Language, format: Format, labels: Optional[Set[str]], nested: bool
) -> Iterator[Sentence]:
    """Read a corpus.

    path (Path): The file.
    nlp (Language): The pipeline whose tokenizer is used for JSONL.
    format (Format): The format. `Format.auto` detects it.
    labels (Optional[Set[str]]): The allowed labels. None for any.
    nested (bool): Allow overlapping spans. In a column file, all columns after the token then contain tags,
        one for each layer.
    YIELDS (Sentence): The sentences.
    RAISES (ConvertError): If a line is malformed.
    """
    if (detect_format(path) if format is Format.auto else format) is Format.jsonl:
        return jsonl_sentences(path, nlp, labels, nested)
    return conll_sentences(path, nlp, labels, nested)


def read_lines(path: Path) -> Iterator[Tuple[int, str]]:
    """Read a UTF-8 file. Unlike `str.splitlines`, this splits lines only at line feeds.

    path (Path): The file.
    YIELDS (Tuple[int, str]): The number of the line, from 1, and the line without its line break.
    RAISES (ConvertError): If a line is not UTF-8.
    """
    with path.open("rb") as file_:
        for number, raw in enumerate(file_, 1):
            try:
                line = raw.decode("utf-8-sig" if number == 1 else "utf-8")
            except UnicodeDecodeError as e:
                reason = (
                    f"not UTF-8 (byte 0x{raw[e.start]:02x} at position {e.start + 1} of the line)"
                )
                raise ConvertError(path, reason, number) from None
            yield number, line.rstrip("\r\n")


def detect_format(path: Path) -> Format:
    """Detect the format of a file. It is JSONL if the first line that isn't blank is a JSON object.

    path (Path): The file.
    RETURNS (Format): The format.
    RAISES (ConvertError): If the file is empty.
    """
    for _, line in read_lines(path):
        if line.strip():
            return Format.jsonl if re.fullmatch(r"\s*\{.*\}\s*", line) else Format.conll
    raise ConvertError(path, "the file is empty", 1)


def spans_of(tags: Iterable[str]) -> Offsets:
    """Convert the tags of a sentence (IOB1, IOB2, BIOES or BILUO) to spans. A span begins at B, S and U,
    and at any other tag that doesn't continue a span with the same label.

    tags (Iterable[str]): The tag of each token, such as "B-ORG".
    RETURNS (Offsets): The spans: the first token, the end token (exclusive) and the label.
    RAISES (ValueError): If a tag is not valid.
    """
    spans: Offsets = []
    open_label = None
    for i, tag in enumerate(tags):
        if not TAG.fullmatch(tag):
            raise ValueError(
                f"unknown tag '{tag}': must be O, or B-, I-, E-, S-, L- or U- and a label"
            )
        prefix, label = tag[0], tag[2:]
        if prefix != "O":
            start = spans.pop()[0] if prefix in "IEL" and label == open_label else i
            spans.append((start, i + 1, label))
        open_label = label if prefix in "BI" else None
    return spans


def read_conll(path: Path, labels: Optional[Set[str]] = None) -> Iterator[Rows]:
    """Read a column file.

    path (Path): The file. Each line has a token in its first column, and a tag in its last column.
    labels (Optional[Set[str]]): The allowed labels. None for any.
    YIELDS (Rows): For each sentence, its tokens with their tags.
    RAISES (ConvertError): If a line is malformed.
    """
    for _, rows in _read_conll(path, labels):
        yield rows


def _read_conll(
    path: Path, labels: Optional[Set[str]], layers: bool = False
) -> Iterator[Tuple[int, Rows]]:
    """YIELDS (Tuple[int, Rows]): For each sentence, the number of its document, and its tokens."""
    document, n_columns = 0, 0
    rows: Rows = []
    for number, line in read_lines(path):
        # Not stripped on the left: a line that begins with a separator has no token, which is an error.
        columns = line.split("\t") if "\t" in line else re.split(" +", line.rstrip(" "))
        starts_document = columns[0] == "-DOCSTART-"
        if starts_document or not line.strip():
            if rows:
                yield document, rows
            rows = []
            document += starts_document
            continue
        try:
            if len(columns) < 2 or (n_columns and len(columns) != n_columns):
                expected = f"{n_columns} as in the lines before" if n_columns else "at least 2"
                raise ValueError(f"wrong number of columns: {len(columns)}, expected {expected}")
            if not columns[0]:
                raise ValueError("there is no token in the first column")
            tags = [tag.strip() for tag in columns[1 if layers else -1 :]]
            for tag in tags:
                for _, _, label in spans_of([tag]):
                    _check_label(label, labels)
        except ValueError as e:
            raise ConvertError(path, str(e), number) from None
        n_columns = len(columns)
        rows.append((columns[0], *tags))
    if rows:
        yield document, rows


def conll_sentences(
    path: Path, nlp: Language, labels: Optional[Set[str]], nested: bool
) -> Iterator[Sentence]:
    """YIELDS (Sentence): The sentences of a column file, grouped by -DOCSTART- lines."""
    for document, rows in _read_conll(path, labels, layers=nested):
        spaces = [nlp.lang not in NO_SPACES] * (len(rows) - 1) + [False]
        words, *layers = zip(*rows)
        spans = sorted(set(chain.from_iterable(spans_of(tags) for tags in layers)))
        yield Sentence(list(words), spaces, spans, document)


def jsonl_sentences(
    path: Path, nlp: Language, labels: Optional[Set[str]], nested: bool
) -> Iterator[Sentence]:
    """YIELDS (Sentence): The lines of a JSONL file, tokenized and grouped by topic."""
    for number, line in read_lines(path):
        if not line.strip():
            continue
        try:
            text, spans, topic = _parse_json(line)
            _check_spans(text, spans, labels, nested)
            sentence = _tokenize(nlp, text, spans, topic)
        except ValueError as e:
            raise ConvertError(path, str(e), number) from None
        yield sentence


def _parse_json(line: str) -> Tuple[str, Offsets, Any]:
    try:
        entry = json.loads(line)
    except json.JSONDecodeError as e:
        raise ValueError(f"not valid JSON ({e.msg} at column {e.colno})") from None
    if not isinstance(entry, dict):
        raise ValueError('not a JSON object with the keys "text" and "spans"')
    for key, type_ in (("text", str), ("spans", list)):
        if not isinstance(entry.get(key), type_):
            found = f"is not a {type_.__name__}" if key in entry else "is missing"
            raise ValueError(f'the key "{key}" {found}')
    try:
        entry["text"].encode("utf8")
    except UnicodeEncodeError:
        reason = "the text contains one half of a surrogate pair (\\ud800 to \\udfff)"
        raise ValueError(reason) from None
    if not entry["text"].strip():
        raise ValueError("the text is empty")
    for span in entry["spans"]:
        if not isinstance(span, dict) or not {"start", "end", "label"} <= span.keys():
            raise ValueError(f'the span {json.dumps(span)} lacks "start", "end" or "label"')
    spans = [(span["start"], span["end"], span["label"]) for span in entry["spans"]]
    return entry["text"], spans, entry.get("topic")


def _check_label(label: Any, labels: Optional[Set[str]]) -> None:
    if not isinstance(label, str) or not label.strip():
        raise ValueError(f"the label {label!r} is empty or not a string")
    if labels is not None and label not in labels:
        raise ValueError(f"the label '{label}' is not one of {', '.join(sorted(labels))}")


def _check_spans(text: str, spans: Offsets, labels: Optional[Set[str]], nested: bool) -> None:
    for start, end, label in spans:
        _check_label(label, labels)
        name = f"the span ({start}, {end}, {label})"
        if type(start) is not int or type(end) is not int:
            raise ValueError(f"{name} does not have whole numbers as start and end")
        if start < 0 or end > len(text):
            raise ValueError(f"{name} is outside the text (0 to {len(text)})")
        if start >= end:
            raise ValueError(f"{name} is empty")
        if text[start:end] != text[start:end].strip():
            raise ValueError(f"{name} begins or ends with white space: {text[start:end]!r}")
    if len(set(spans)) < len(spans):
        raise ValueError("a span is listed twice")
    ordered = sorted(spans)
    for (a, b, _), (c, d, _) in zip(ordered, ordered[1:]):
        if c < b and not nested:
            raise ValueError(f"'{text[a:b]}' and '{text[c:d]}' overlap (use --nested to allow it)")


def _tokenize(nlp: Language, text: str, spans: Offsets, group: Any) -> Sentence:
    """Tokenize a text. A token is split where an entity begins or ends inside it."""
    borders = {border for start, end, _ in spans for border in (start, end)}
    words: List[str] = []
    spaces: List[bool] = []
    starts: Dict[int, int] = {}
    ends: Dict[int, int] = {}
    split = 0
    for token in nlp.make_doc(text):
        begin, stop = token.idx, token.idx + len(token)
        cuts = [begin, *sorted(b for b in borders if begin < b < stop), stop]
        split += len(cuts) > 2
        for a, b in zip(cuts, cuts[1:]):
            starts[a] = len(words)
            words.append(text[a:b])
            ends[b] = len(words)
            spaces.append(bool(token.whitespace_) and b == stop)
    mentions = [(starts[start], ends[end], label) for start, end, label in spans]
    return Sentence(words, spaces, mentions, group, split)
