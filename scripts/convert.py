"""Convert an annotated corpus (JSONL with character offsets, or CoNLL columns) into a .spacy file.

Nothing is dropped or repaired silently: a line that can't be read as it stands ends the conversion
with `FILE:LINE: reason`, and an output that was there before stays as it was.
"""

import hashlib
import json
import os
import re
from collections import Counter
from dataclasses import dataclass, field
from enum import Enum
from itertools import groupby
from pathlib import Path
from typing import (
    Any,
    Dict,
    FrozenSet,
    Iterable,
    Iterator,
    List,
    NamedTuple,
    Optional,
    Set,
    Tuple,
    Union,
)

import spacy
import srsly
import typer
from spacy.language import Language
from spacy.tokens import Doc, DocBin, Span
from spacy.util import filter_spans

# Start, end (not included), label; in tokens or in characters.
Offsets = List[Tuple[int, int, str]]
# The tokens of a sentence with their tags.
Rows = List[Tuple[str, str]]
# Languages written without spaces: their tokens and sentences are joined as they are.
NO_SPACES = {"bo", "ja", "km", "lo", "my", "th", "zh"}
TAG = re.compile(r"O|[BIESLU]-\S.*")


class Format(str, Enum):
    auto = "auto"
    jsonl = "jsonl"
    conll = "conll"


class ConvertError(ValueError):
    """A corpus can't be converted. line (int): From 1, or 0 if the file as a whole is meant."""

    def __init__(self, path: Path, reason: str, line: int = 0):
        super().__init__(f"{path}:{line}: {reason}" if line else f"{path}: {reason}")


class Sentence(NamedTuple):
    """Tokens, whether a space follows each, mentions (in tokens), and a document or topic: only
    sentences of the same group share a Doc."""

    words: List[str]
    spaces: List[bool]
    spans: Offsets
    group: Any


@dataclass
class Counts:
    """What was converted. `split` counts tokens cut because a mention begins or ends inside."""

    docs: int = 0
    entity_free: int = 0
    sentences: int = 0
    tokens: int = 0
    split: int = 0
    labels: Counter[str] = field(default_factory=Counter)

    def __str__(self) -> str:
        lines = [
            f"{self.docs} docs, {self.entity_free} of them without entities",
            f"{self.sentences} sentences, {self.tokens} tokens",
            f"{sum(self.labels.values())} entities",
            *(f"  {label}: {n}" for label, n in sorted(self.labels.items())),
        ]
        if self.split:
            lines.append(f"{self.split} tokens split where a mention begins or ends in them")
        return "\n".join(lines)


def read_lines(path: Path) -> Iterator[Tuple[int, str]]:
    """Read a UTF-8 file. Only line feeds end a line, other than with `str.splitlines`.

    YIELDS (Tuple[int, str]): The line's number, from 1, and its text without the line's end.
    RAISES (ConvertError): If a line is not UTF-8.
    """
    with path.open("rb") as file_:
        for number, raw in enumerate(file_, 1):
            try:
                line = raw.decode("utf-8-sig" if number == 1 else "utf-8")
            except UnicodeDecodeError as e:
                reason = f"not UTF-8 (byte 0x{raw[e.start]:02x}, the line's {e.start + 1}.)"
                raise ConvertError(path, reason, number) from None
            yield number, line.rstrip("\r\n")


def detect_format(path: Path) -> Format:
    """Tell the formats apart by the first line that isn't blank: JSON object or not."""
    for _, line in read_lines(path):
        if line.strip():
            return Format.jsonl if re.fullmatch(r"\s*\{.*\}\s*", line) else Format.conll
    raise ConvertError(path, "the file is empty", 1)


def spans_of(tags: Iterable[str]) -> Offsets:
    """Turn the tags of a sentence (IOB1, IOB2, BIOES or BILUO) into spans. A span begins at B, S
    and U, and at any other tag that doesn't continue an open span of the same label.

    tags (Iterable[str]): One tag per token, e.g. "B-ORG".
    RETURNS (Offsets): Start token, end token (not included) and label.
    RAISES (ValueError): If a tag is unknown.
    """
    spans: Offsets = []
    open_label = None
    for i, tag in enumerate(tags):
        if not TAG.fullmatch(tag):
            raise ValueError(f"unknown tag '{tag}': neither O nor B-, I-, E-, S-, L- or U- + label")
        prefix, label = tag[0], tag[2:]
        if prefix != "O":
            start = spans.pop()[0] if prefix in "IEL" and label == open_label else i
            spans.append((start, i + 1, label))
        open_label = label if prefix in "BI" else None
    return spans


def read_conll(path: Path, labels: Optional[Set[str]] = None) -> Iterator[Rows]:
    """Read a column file.

    path (Path): The file: one token a line, the token in the first column, the tag in the last.
    labels (Optional[Set[str]]): The labels that may occur. None for any.
    YIELDS (Rows): The tokens of a sentence with their tags.
    RAISES (ConvertError): If a line is malformed.
    """
    for _, rows in _read_conll(path, labels):
        yield rows


def _read_conll(path: Path, labels: Optional[Set[str]]) -> Iterator[Tuple[int, Rows]]:
    """Yield the number of the document with each sentence."""
    document, n_columns = 0, 0
    rows: Rows = []
    for number, line in read_lines(path):
        # The left side is not stripped: a line that begins with a separator has lost its token.
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
                wanted = f"{n_columns} as in the lines before" if n_columns else "at least 2"
                raise ValueError(f"wrong number of columns: {len(columns)}, expected {wanted}")
            if not columns[0]:
                raise ValueError("the first column holds no token")
            word, tag = columns[0], columns[-1].strip()
            for _, _, label in spans_of([tag]):
                _check_label(label, labels)
        except ValueError as e:
            raise ConvertError(path, str(e), number) from None
        n_columns = len(columns)
        rows.append((word, tag))
    if rows:
        yield document, rows


def conll_sentences(path: Path, nlp: Language, labels: Optional[Set[str]]) -> Iterator[Sentence]:
    """Yield the sentences of a column file, grouped by -DOCSTART- lines."""
    for document, rows in _read_conll(path, labels):
        spaces = [nlp.lang not in NO_SPACES] * (len(rows) - 1) + [False]
        spans = spans_of(tag for _, tag in rows)
        yield Sentence([word for word, _ in rows], spaces, spans, document)


def jsonl_sentences(
    path: Path, nlp: Language, labels: Optional[Set[str]], nested: bool, counts: Counts
) -> Iterator[Sentence]:
    """Yield the lines of a JSONL file, tokenized and grouped by topic."""
    for number, line in read_lines(path):
        if not line.strip():
            continue
        try:
            text, spans, topic = _parse_json(line)
            _check_spans(text, spans, labels, nested)
            sentence = Sentence(*_tokenize(nlp, text, spans, counts), topic)
        except ValueError as e:
            raise ConvertError(path, str(e), number) from None
        yield sentence


def _parse_json(line: str) -> Tuple[str, Offsets, Any]:
    try:
        entry = json.loads(line)
    except json.JSONDecodeError as e:
        raise ValueError(f"no valid JSON ({e.msg} at column {e.colno})") from None
    if not isinstance(entry, dict):
        raise ValueError('no JSON object with the keys "text" and "spans"')
    for key, type_ in (("text", str), ("spans", list)):
        if not isinstance(entry.get(key), type_):
            found = f"is no {type_.__name__}" if key in entry else "is missing"
            raise ValueError(f'the key "{key}" {found}')
    try:
        entry["text"].encode("utf8")
    except UnicodeEncodeError:
        raise ValueError("the text holds half of a surrogate pair (\\ud800 to \\udfff)") from None
    if not entry["text"].strip():
        raise ValueError("the text is empty")
    for span in entry["spans"]:
        if not isinstance(span, dict) or not {"start", "end", "label"} <= span.keys():
            raise ValueError(f'the span {json.dumps(span)} lacks "start", "end" or "label"')
    spans = [(span["start"], span["end"], span["label"]) for span in entry["spans"]]
    return entry["text"], spans, entry.get("topic")


def _check_label(label: Any, labels: Optional[Set[str]]) -> None:
    if not isinstance(label, str) or not label.strip():
        raise ValueError(f"the label {label!r} is not a string, or empty")
    if labels is not None and label not in labels:
        raise ValueError(f"the label '{label}' is not one of {', '.join(sorted(labels))}")


def _check_spans(text: str, spans: Offsets, labels: Optional[Set[str]], nested: bool) -> None:
    for start, end, label in spans:
        _check_label(label, labels)
        name = f"the span ({start}, {end}, {label})"
        if type(start) is not int or type(end) is not int:
            raise ValueError(f"{name} is no pair of whole numbers")
        if start < 0 or end > len(text):
            raise ValueError(f"{name} lies outside of the text (0 to {len(text)})")
        if start >= end:
            raise ValueError(f"{name} is empty")
        if text[start:end] != text[start:end].strip():
            raise ValueError(f"{name} begins or ends with white space: {text[start:end]!r}")
    if len(set(spans)) < len(spans):
        raise ValueError("a span is listed twice")
    ordered = sorted(spans)
    for (a, b, _), (c, d, _) in zip(ordered, ordered[1:]):
        if c < b and not nested:
            raise ValueError(f"'{text[a:b]}' and '{text[c:d]}' overlap (allowed with --nested)")


def _tokenize(
    nlp: Language, text: str, spans: Offsets, counts: Counts
) -> Tuple[List[str], List[bool], Offsets]:
    """Tokenize a text, with extra boundaries where a mention begins or ends inside a token."""
    borders = {border for start, end, _ in spans for border in (start, end)}
    words: List[str] = []
    spaces: List[bool] = []
    starts: Dict[int, int] = {}
    ends: Dict[int, int] = {}
    for token in nlp.make_doc(text):
        begin, stop = token.idx, token.idx + len(token)
        cuts = [begin, *sorted(b for b in borders if begin < b < stop), stop]
        counts.split += len(cuts) > 2
        for a, b in zip(cuts, cuts[1:]):
            starts[a] = len(words)
            words.append(text[a:b])
            ends[b] = len(words)
            spaces.append(bool(token.whitespace_) and b == stop)
    return words, spaces, [(starts[start], ends[end], label) for start, end, label in spans]


def make_doc(nlp: Language, sentences: List[Sentence], spans_key: Optional[str]) -> Doc:
    """Join sentences into one Doc with sentence starts.

    nlp (Language): The pipeline whose vocab is used.
    sentences (List[Sentence]): The sentences, at least one.
    spans_key (Optional[str]): Where all spans go, for a nested corpus. doc.ents gets the longest.
    RETURNS (Doc): The Doc. Tokens without an entity are marked as outside: spaCy's scorer skips
        documents whose tags are unset, with all the false positives in them.
    """
    words: List[str] = []
    spaces: List[bool] = []
    sent_starts: List[Union[bool, int, None]] = []
    spans: Offsets = []
    for words_, spaces_, spans_, _ in sentences:
        if words and nlp.lang not in NO_SPACES:
            spaces[-1] = True
        spans.extend((start + len(words), end + len(words), label) for start, end, label in spans_)
        words.extend(words_)
        spaces.extend(spaces_)
        sent_starts.extend([True] + [False] * (len(words_) - 1))
    doc = Doc(nlp.vocab, words=words, spaces=spaces, sent_starts=sent_starts)
    ents = [Span(doc, start, end, label=label) for start, end, label in spans]
    if spans_key is not None:
        doc.spans[spans_key] = ents
        ents = filter_spans(ents)
    doc.set_ents(ents, default="outside")
    return doc


def verify_checksum(path: Path, project: Path) -> None:
    """Compare a file with its checksum in project.yml, if it is listed there. (`spacy project
    assets` itself exits with 0 when they differ.)

    RAISES (ConvertError): If they differ, or if the project.yml can't be read.
    """
    try:
        config = srsly.read_yaml(project)
        assets = [(str(asset["dest"]), asset.get("checksum")) for asset in config.get("assets", [])]
        variables = config.get("vars", {})
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as e:
        raise ConvertError(project, f"can't read the assets of the project ({e})") from None
    for dest, checksum in assets:
        dest = re.sub(r"\$\{vars\.(\w+)\}", lambda match: str(variables.get(match[1])), dest)
        if checksum and (project.parent / dest).resolve() == path.resolve():
            md5 = hashlib.md5(path.read_bytes()).hexdigest()
            if md5 != checksum:
                reason = f"the md5 sum is {md5}, but {project} says {checksum}"
                raise ConvertError(path, f"{reason}. Get the file again or correct the checksum")


def convert(
    input_path: Path,
    output_path: Path,
    lang: str,
    *,
    format: Format = Format.auto,
    docs_of: int = 1,
    nested: bool = False,
    spans_key: str = "sc",
    labels: Optional[Set[str]] = None,
    leave_out: FrozenSet[str] = frozenset(),
) -> Counts:
    """Convert a corpus into a .spacy file. The settings are those of the command line.

    RETURNS (Counts): What was converted.
    RAISES (ConvertError): If the corpus can't be read. The output is untouched then.
    """
    if not input_path.is_file():
        raise ConvertError(input_path, "there is no such file")
    if output_path.suffix != ".spacy":
        # spaCy's corpus reader finds only files with this ending.
        raise ConvertError(output_path, "the output's name must end in .spacy")
    try:
        nlp = spacy.blank(lang)
    except ImportError as e:
        raise ConvertError(input_path, f"no tokenizer for the language '{lang}': {e}") from None
    counts = Counts()
    if (detect_format(input_path) if format is Format.auto else format) is Format.jsonl:
        sentences = jsonl_sentences(input_path, nlp, labels, nested, counts)
    else:
        sentences = conll_sentences(input_path, nlp, labels)
    kept = (s._replace(spans=[x for x in s.spans if x[2] not in leave_out]) for s in sentences)
    doc_bin = DocBin()
    for _, group in groupby(kept, key=lambda sentence: sentence.group):
        members = list(group)
        for i in range(0, len(members), docs_of):
            part = members[i : i + docs_of]
            doc = make_doc(nlp, part, spans_key if nested else None)
            doc_bin.add(doc)
            found = [label for sentence in part for _, _, label in sentence.spans]
            counts.docs += 1
            counts.entity_free += not found
            counts.sentences += len(part)
            counts.tokens += len(doc)
            counts.labels.update(found)
    if not counts.docs:
        raise ConvertError(input_path, "the file is empty", 1)
    output_path.parent.mkdir(parents=True, exist_ok=True)
    temporary = output_path.with_name(f".{output_path.name}.{os.getpid()}")
    try:
        doc_bin.to_disk(temporary)
        os.replace(temporary, output_path)
    finally:
        temporary.unlink(missing_ok=True)
    return counts


def main(
    input_path: Path = typer.Argument(..., metavar="INPUT", help="JSONL or CoNLL columns"),
    output_path: Path = typer.Argument(..., metavar="OUTPUT", help="The .spacy file to write"),
    lang: str = typer.Option(..., "--lang", "-l", help="Language code, e.g. en or zh"),
    format: Format = typer.Option(Format.auto, "--format", "-f", help="Format of the corpus"),
    docs_of: int = typer.Option(1, "--docs-of", "-n", min=1, help="Sentences per Doc, at most"),
    nested: bool = typer.Option(False, "--nested", help="Spans may overlap; see --spans-key"),
    spans_key: str = typer.Option("sc", "--spans-key", help="Where all spans go, with --nested"),
    labels: Optional[str] = typer.Option(None, "--labels", help="Labels that may occur: A,B,C"),
    leave_out: str = typer.Option("", "--leave-out", help="Labels whose spans are dropped: A,B"),
    project: Optional[Path] = typer.Option(None, "--project", help="project.yml with checksums"),
) -> None:
    """Convert an annotated corpus into spaCy's binary format for training and evaluation."""
    known = {label.strip() for label in labels.split(",")} if labels else None
    dropped = frozenset(label.strip() for label in leave_out.split(",") if label.strip())
    try:
        if project is None and Path("project.yml").exists():
            project = Path("project.yml")
        if project is not None and input_path.is_file():
            verify_checksum(input_path, project)
        counts = convert(
            input_path, output_path, lang,
            format=format, docs_of=docs_of, nested=nested, spans_key=spans_key, labels=known,
            leave_out=dropped,
        )  # fmt: skip
    except (ConvertError, OSError) as e:
        typer.echo(str(e), err=True)
        raise typer.Exit(1) from None
    typer.echo(f"{output_path}\n{counts}")


if __name__ == "__main__":
    typer.run(main)
