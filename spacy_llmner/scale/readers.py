"""Read the documents of a corpus, one after the other, whatever its size."""

import csv
import gzip
import json
import sys
import zlib
from contextlib import contextmanager
from io import TextIOWrapper
from pathlib import Path
from typing import Any, Callable, Dict, Iterator, List, NamedTuple, Optional, Tuple

from spacy.tokens import Doc, DocBin
from spacy.vocab import Vocab

from ..errors import Errors, LLMNERError
from ..pipeline.extensions import FOUND

ENDINGS = (".jsonl", ".txt", ".csv", ".jsonl.gz", ".txt.gz", ".csv.gz", ".parquet", ".spacy")
STDIN = "-"
# Characters of the longest line that is read. A longer one is skipped, since it may not fit into memory.
MAX_LINE = 1 << 26
# Characters of a broken line that are kept in failed.jsonl.
KEPT = 100_000
# Rows of a Parquet file that are in memory at a time.
PARQUET_ROWS = 256


class Document(NamedTuple):
    """A document of the input.

    file (str): The name of its file, relative to the input folder.
    row (int): The number of its line, or of its row or Doc in files without lines, from 1.
    fields (Dict[str, Any]): All fields of its row, including the text.
    text (str): The text.
    doc (Optional[bytes]): The serialized Doc, if the file contains Docs.
    problem (Optional[str]): Why the row can't be read. It is None for all rows that can.
    size (int): How much memory the document takes: about the number of characters in its row.
    """

    file: str
    row: int
    fields: Dict[str, Any]
    text: str = ""
    doc: Optional[bytes] = None
    problem: Optional[str] = None
    size: int = 0


class InputFile(NamedTuple):
    """A file of the input.

    path (Path): Its path. Ignored for the standard input.
    name (str): Its name relative to the input folder; "-" for the standard input.
    """

    path: Path
    name: str

    @property
    def kind(self) -> str:
        """The ending of its name, without ".gz". The standard input contains JSONL."""
        return ".jsonl" if self.name == STDIN else Path(self.name.removesuffix(".gz")).suffix


def input_files(path: str) -> Tuple[List[InputFile], List[str]]:
    """Find the files of the input.

    path (str): A file, a folder, or "-" for the standard input.
    RETURNS (Tuple[List[InputFile], List[str]]): The files, sorted by name, and the names of files in the
        folder that are left out because of their ending. Hidden files are ignored.
    RAISES (LLMNERError): If there are no files that can be read.
    """
    if path == STDIN:
        return [InputFile(Path(path), STDIN)], []
    root = Path(path)
    if not root.exists():
        raise _not_an_input(path, "it doesn't exist")
    if root.is_file():
        if not root.name.endswith(ENDINGS):
            raise _not_an_input(path, "its ending is unknown")
        return [InputFile(root, root.name)], []
    found = {file.relative_to(root): file for file in root.rglob("*") if file.is_file()}
    visible = sorted(
        (name.as_posix(), file)
        for name, file in found.items()
        if not any(part.startswith(".") for part in name.parts)
    )
    files = [InputFile(file, name) for name, file in visible if name.endswith(ENDINGS)]
    if not files:
        raise _not_an_input(path, "the folder contains no such file")
    return files, [name for name, _ in visible if not name.endswith(ENDINGS)]


def _not_an_input(path: str, reason: str) -> LLMNERError:
    return LLMNERError(Errors.E170.format(path=path, reason=reason, endings=", ".join(ENDINGS)))


def read_documents(file: InputFile, text_field: str) -> Iterator[Document]:
    """Read the documents of a file. Blank lines of text and JSONL files are skipped.

    file (InputFile): The file.
    text_field (str): The field of the text. Lines of text files and Docs are given this field.
    YIELDS (Document): The documents. Rows that can't be read have a `problem`.
    RAISES (LLMNERError): If the file can't be read.
    """
    with _errors_of(file):
        yield from _READERS[file.kind](file, text_field)


def count_documents(file: InputFile) -> int:
    """Count the documents of a file, without parsing them. This also finds damaged files.

    file (InputFile): The file, which is not the standard input.
    RETURNS (int): The number of documents that `read_documents` yields.
    RAISES (LLMNERError): If the file can't be read.
    """
    with _errors_of(file):
        if file.kind == ".parquet":
            return int(parquet_file(file).metadata.num_rows)
        if file.kind == ".spacy":
            return len(DocBin().from_disk(file.path))
        if file.kind == ".csv":
            return sum(1 for _ in _csv_rows(file)[1])
        return sum(1 for _ in _lines(file))


@contextmanager
def _errors_of(file: InputFile) -> Iterator[None]:
    try:
        yield
    except LLMNERError:
        raise
    except (OSError, EOFError, zlib.error, csv.Error) as e:
        raise _broken(file, e) from e
    except Exception as e:
        if file.kind not in (".parquet", ".spacy"):
            raise
        # Unpacking arbitrary bytes can raise anything.
        raise _broken(file, e) from e


def _broken(file: InputFile, reason: object) -> LLMNERError:
    return LLMNERError(Errors.E171.format(path=file.path, reason=reason))


@contextmanager
def _open_text(file: InputFile, newline: str) -> Iterator[TextIOWrapper]:
    """YIELDS (TextIOWrapper): The open file. Bytes that are not UTF-8 become lone surrogates."""
    settings: Dict[str, Any] = {"encoding": "utf-8-sig", "errors": "surrogateescape"}
    if file.name == STDIN:
        yield TextIOWrapper(sys.stdin.buffer, newline=newline, **settings)
        return
    opener: Any = gzip.open if file.name.endswith(".gz") else open
    with opener(file.path, "rb") as raw:
        if b"\0" in raw.read(4096):
            raise _broken(file, "it is a binary file")
        raw.seek(0)
        with TextIOWrapper(raw, newline=newline, **settings) as text:
            yield text


def _lines(file: InputFile) -> Iterator[Tuple[int, str]]:
    """YIELDS (Tuple[int, str]): The number and the text of each line that isn't blank. A line that is too
    long is cut after MAX_LINE characters, which no other line has."""
    with _open_text(file, "\n") as text:
        number = 0
        while line := text.readline(MAX_LINE):
            number += 1
            if len(line) == MAX_LINE and not line.endswith("\n"):
                yield number, line
                while (rest := text.readline(MAX_LINE)) and not rest.endswith("\n"):
                    pass
            elif line.strip():
                yield number, line.rstrip("\r\n")


def _problem_of_line(line: str) -> Optional[str]:
    if len(line) >= MAX_LINE:
        return f"the line is longer than {MAX_LINE:,} characters"
    return None if is_utf8(line) else "not UTF-8"


def is_utf8(text: str) -> bool:
    """RETURNS (bool): Whether UTF-8 can encode a text. It can't encode halves of surrogate pairs, which
    also stand for bytes that could not be decoded."""
    if text.isascii():
        return True
    try:
        text.encode("utf8")
        return True
    except UnicodeEncodeError:
        return False


def _read_text(file: InputFile, text_field: str) -> Iterator[Document]:
    for number, line in _lines(file):
        if problem := _problem_of_line(line):
            fields = {text_field: line[:KEPT]}
            yield Document(file.name, number, fields, problem=problem, size=len(line))
        else:
            yield Document(file.name, number, {text_field: line}, line, size=len(line))


def _read_jsonl(file: InputFile, text_field: str) -> Iterator[Document]:
    for number, line in _lines(file):
        try:
            problem = _problem_of_line(line)
            row = {} if problem else json.loads(line)
        except (ValueError, RecursionError) as e:
            problem = f"not valid JSON ({e})"
        else:
            problem = problem or (None if isinstance(row, dict) else "not a JSON object")
        if problem is not None:
            fields = {"line": line[:KEPT]}
            yield Document(file.name, number, fields, problem=problem, size=len(line))
        else:
            yield _from_fields(file, number, row, text_field, len(line))


def _from_fields(
    file: InputFile, row: int, fields: Dict[str, Any], text_field: str, size: int
) -> Document:
    text = fields.get(text_field)
    if not isinstance(text, str):
        known = ", ".join(fields) or "none"
        missing = f"no field '{text_field}' (it has: {known})"
        wrong = f"the field '{text_field}' is not a text"
        problem = wrong if text_field in fields else missing
        return Document(file.name, row, fields, problem=problem, size=size)
    if not is_utf8(text):
        problem = "the text is not UTF-8"
        return Document(file.name, row, fields, problem=problem, size=size)
    return Document(file.name, row, fields, text, size=size)


def _csv_rows(file: InputFile) -> Tuple[List[str], Iterator[Tuple[int, List[str]]]]:
    """RETURNS (Tuple[List[str], Iterator[Tuple[int, List[str]]]]): The names of the columns, and the number
    of the last line and the values of each row."""
    # The default limit of a field is 131,072 characters.
    csv.field_size_limit(MAX_LINE)

    def rows() -> Iterator[Tuple[int, List[str]]]:
        with _open_text(file, "") as text:
            reader = csv.reader(text, strict=True)
            for values in reader:
                if values:
                    yield reader.line_num, values

    stream = rows()
    return next(stream, (0, []))[1], stream


def _read_csv(file: InputFile, text_field: str) -> Iterator[Document]:
    names, rows = _csv_rows(file)
    if names:
        _check_column(file, names, text_field)
    for number, values in rows:
        fields: Dict[str, Any] = dict(zip(names, values))
        if len(values) != len(names):
            problem = f"the row has {len(values)} values for {len(names)} columns"
            fields["values"] = values
            yield Document(file.name, number, fields, problem=problem)
        else:
            yield _from_fields(file, number, fields, text_field, sum(map(len, values)))


def _check_column(file: InputFile, names: List[str], text_field: str) -> None:
    if text_field not in names:
        known = ", ".join(names)
        raise LLMNERError(Errors.E172.format(path=file.path, field=text_field, known=known))
    twice = next((name for i, name in enumerate(names) if name in names[:i]), None)
    if twice is not None:  # one of them would be lost
        raise _broken(file, f"two columns have the name '{twice}'")


def parquet_file(file: InputFile) -> Any:
    """RETURNS (ParquetFile): The open file.
    RAISES (LLMNERError): If pyarrow is not installed."""
    return import_pyarrow("parquet").ParquetFile(file.path)


def import_pyarrow(name: str = "lib") -> Any:
    """RETURNS (module): A module of pyarrow.
    RAISES (LLMNERError): If it is not installed."""
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as e:
        message = Errors.E177.format(what="Parquet files", package="pyarrow", extra="parquet")
        raise LLMNERError(message) from e
    return pyarrow.parquet if name == "parquet" else pyarrow


def _read_parquet(file: InputFile, text_field: str) -> Iterator[Document]:
    parquet = parquet_file(file)
    _check_column(file, parquet.schema_arrow.names, text_field)
    number = 0
    # Without threads, pyarrow doesn't read ahead.
    for batch in parquet.iter_batches(batch_size=PARQUET_ROWS, use_threads=False):
        size = batch.nbytes // max(1, batch.num_rows)
        for fields in batch.to_pylist():
            number += 1
            yield _from_fields(file, number, fields, text_field, size)


def _read_docs(file: InputFile, text_field: str) -> Iterator[Document]:
    """Entities and spans are removed, so that nobody takes them for those of the pipeline. The words, the
    sentences and what else the Docs contain stay.
    """
    for number, doc in enumerate(DocBin().from_disk(file.path).get_docs(Vocab()), 1):
        doc.set_ents([], default="missing")
        doc.spans.clear()
        for key in [k for k in doc.user_data if isinstance(k, tuple) and k[:2] == FOUND]:
            del doc.user_data[key]
        content = doc.to_bytes(exclude=["tensor"])
        fields = {text_field: doc.text}
        yield Document(file.name, number, fields, doc.text, content, size=len(content))


_READERS: Dict[str, Callable[[InputFile, str], Iterator[Document]]] = {
    ".txt": _read_text,
    ".jsonl": _read_jsonl,
    ".csv": _read_csv,
    ".parquet": _read_parquet,
    ".spacy": _read_docs,
}


def restored_doc(content: bytes, vocab: Vocab) -> Doc:
    """RETURNS (Doc): The Doc of a `Document`, with the vocab of the pipeline."""
    return Doc(vocab).from_bytes(content)
