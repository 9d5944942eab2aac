"""Convert annotated Docs to the content of a file."""

import base64
import io
import json
from contextlib import suppress
from enum import StrEnum
from typing import Any, Dict, Iterable, List, NamedTuple, Optional, Sequence, Tuple

import srsly
from spacy.tokens import Doc, DocBin

from ..errors import Errors, LLMNERError
from ..pipeline.extensions import get_score
from ..pipeline.scorers import chars, span_offsets
from .readers import Document, InputFile, import_pyarrow, parquet_file

# The fields that are added to those of the input.
ENTITIES, SPANS = "entities", "spans"
# Why a document failed, in failed.jsonl.
FAILED = "failed"


class OutputFormat(StrEnum):
    """The formats of the output."""

    jsonl = "jsonl"
    parquet = "parquet"
    spacy = "spacy"


class Encoded(NamedTuple):
    """The content of a shard.

    data (bytes): The content of the file.
    problems (Dict[int, str]): Why rows are not in it, by their index.
    """

    data: bytes
    problems: Dict[int, str] = {}


class JSONLWriter:
    """Writes a JSON object for each document: the fields of the input, and the entities.

    spans (bool): Also write all spans in doc.spans.
    """

    def __init__(self, spans: bool = False) -> None:
        self.spans = spans

    def row(self, doc: Doc, document: Document) -> bytes:
        """RETURNS (bytes): A line."""
        fields = {**document.fields, **found_in(doc, self.spans)}
        try:
            line = json.dumps(fields, ensure_ascii=False, default=plain).encode("utf8")
        except UnicodeEncodeError:  # another field than the text contains half of a surrogate pair
            line = json.dumps(fields, default=plain).encode("utf8")
        return line + b"\n"

    def encode(self, rows: Sequence[bytes]) -> Encoded:
        return Encoded(b"".join(rows))


class DocBinWriter:
    """Writes a .spacy file. Fields of the input other than the text are in doc.user_data["fields"].

    text_field (str): The field of the text.
    """

    def __init__(self, text_field: str) -> None:
        self.text_field = text_field

    def row(self, doc: Doc, document: Document) -> Doc:
        """RETURNS (Doc): The Doc itself."""
        fields = {key: value for key, value in document.fields.items() if key != self.text_field}
        if fields:
            doc.user_data["fields"] = json.loads(json.dumps(fields, default=plain))
        return doc

    def encode(self, rows: Sequence[Doc]) -> Encoded:
        problems: Dict[int, str] = {}
        for i, doc in enumerate(rows):
            try:
                srsly.msgpack_dumps(doc.user_data.get("fields"))
            except (ValueError, OverflowError) as e:  # half of a surrogate pair, a huge number
                problems[i] = f"does not fit a .spacy file: {e}"
        good = [doc for i, doc in enumerate(rows) if i not in problems]
        return Encoded(DocBin(store_user_data=True, docs=good).to_bytes(), problems)


class ParquetWriter:
    """Writes Parquet files that all have the same columns.

    schema (pyarrow.Schema): The columns of the input.
    spans (bool): Also write all spans in doc.spans.
    """

    def __init__(self, schema: Any, spans: bool = False) -> None:
        self.spans = spans
        self.schema = schema
        for name, column in found_columns(spans).items():
            i = self.schema.get_field_index(name)
            self.schema = self.schema if i < 0 else self.schema.remove(i)
            self.schema = self.schema.append(import_pyarrow().field(name, column))

    def row(self, doc: Doc, document: Document) -> Dict[str, Any]:
        """RETURNS (Dict[str, Any]): The values of the columns."""
        return {**document.fields, **found_in(doc, self.spans)}

    def encode(self, rows: Sequence[Dict[str, Any]]) -> Encoded:
        problems: Dict[int, str] = {}
        try:
            table = self._table(rows)
        except ValueError:  # find the rows that don't fit
            for i, row in enumerate(rows):
                try:
                    self._table([row])
                except ValueError as e:
                    problems[i] = str(e)
            table = self._table([row for i, row in enumerate(rows) if i not in problems])
        content = io.BytesIO()
        import_pyarrow("parquet").write_table(table, content)
        return Encoded(content.getvalue(), problems)

    def _table(self, rows: Sequence[Dict[str, Any]]) -> Any:
        """RETURNS (pyarrow.Table): The rows.
        RAISES (ValueError): If they don't fit the columns."""
        pa = import_pyarrow()
        new = {name for row in rows for name in row} - set(self.schema.names)
        if new:
            name = min(new)
            raise ValueError(
                f"the output has no column '{name}', which the first shard didn't have"
            )
        for row in rows:
            for name, value in row.items():
                if inner := _unknown_field(value, self.schema.field(name).type):
                    raise ValueError(
                        f"the column '{name}' has no field '{inner}', which the first shard didn't have"
                    )
        try:
            return pa.Table.from_pylist(list(rows), schema=self.schema)
        except (pa.ArrowException, TypeError, OverflowError, UnicodeEncodeError) as e:
            raise ValueError(f"does not fit the columns of the first shard: {e}") from None


def parquet_schema(files: Sequence[InputFile], first: Iterable[Document]) -> Any:
    """Choose the columns of Parquet files.

    files (Sequence[InputFile]): The files of the input.
    first (Iterable[Document]): The documents of the first shard.
    RETURNS (pyarrow.Schema): The columns of the input, if all of its files are Parquet files. If not, those
        of the first shard.
    RAISES (LLMNERError): If a field of the first shard can't be a column.
    """
    pa = import_pyarrow()
    if all(file.kind == ".parquet" for file in files):
        schemas = [parquet_file(file).schema_arrow.remove_metadata() for file in files]
        with suppress(pa.ArrowException):  # if columns differ, not all rows of the later files fit
            return pa.unify_schemas(schemas, promote_options="permissive")
    rows = [doc.fields for doc in first if doc.problem is None]
    names = list(dict.fromkeys(name for row in rows for name in row))
    columns = []
    for name in names:
        columns.append(pa.field(name, _column_type(name, [row.get(name) for row in rows])))
    return pa.schema(columns)


def _column_type(name: str, values: List[Any]) -> Any:
    """RETURNS (DataType): The type of a column.
    RAISES (LLMNERError): If Parquet has no type for the values."""
    pa = import_pyarrow()
    reason: object = "no value has a type"
    # If the values have different types, most of the documents can be written if they fit one of them.
    for some in (values, *([value] for value in values if value is not None)):
        try:
            column = _without_null(pa.array(some).type)
        except (pa.ArrowException, OverflowError, UnicodeEncodeError) as e:
            reason = e
        else:
            return column
    raise LLMNERError(Errors.E122.format(name=name, reason=reason))


def _unknown_field(value: Any, column: Any) -> Optional[str]:
    """RETURNS (Optional[str]): A key in a value that the type of its column doesn't have. pyarrow would
    leave it out."""
    pa = import_pyarrow()
    if pa.types.is_struct(column) and isinstance(value, dict):
        fields = {field.name: field.type for field in column}
        for key, inner in value.items():
            if key not in fields:
                return str(key)
            if found := _unknown_field(inner, fields[key]):
                return f"{key}.{found}"
    if pa.types.is_list(column) and isinstance(value, list):
        return next(filter(None, (_unknown_field(v, column.value_type) for v in value)), None)
    return None


def _without_null(column: Any) -> Any:
    """RETURNS (DataType): The type, with texts where no value is known. Other shards may have some."""
    pa = import_pyarrow()
    if pa.types.is_null(column):
        return pa.string()
    if pa.types.is_list(column):
        return pa.list_(_without_null(column.value_type))
    if pa.types.is_struct(column):
        if column.num_fields == 0:
            raise pa.ArrowInvalid("an object without fields has no type")
        return pa.struct({field.name: _without_null(field.type) for field in column})
    return column


def found_columns(spans: bool) -> Dict[str, Any]:
    """RETURNS (Dict[str, DataType]): The pyarrow types of what `found_in` returns."""
    pa = import_pyarrow()
    names = {"start": pa.int64(), "end": pa.int64(), "label": pa.string(), "score": pa.float64()}
    columns = {ENTITIES: pa.list_(pa.struct(names))}
    if spans:
        columns[SPANS] = pa.list_(pa.struct({**names, "key": pa.string()}))
    return columns


def with_columns(table: Any, columns: Dict[str, List[Any]]) -> Any:
    """Add what was found to a table. The types are the same for all tables: pyarrow can't infer them if
    nothing was found.

    table (pyarrow.Table): The table.
    columns (Dict[str, List[Any]]): The values of "entities", "failed" and, if present, "spans".
    RETURNS (pyarrow.Table): A new table.
    """
    pa = import_pyarrow()
    types = {**found_columns(SPANS in columns), FAILED: pa.string()}
    table = table.drop_columns([name for name in columns if name in table.column_names])
    for name, values in columns.items():
        table = table.append_column(name, pa.array(values, types[name]))
    return table


def found_in(doc: Doc, spans: bool) -> Dict[str, List[Dict[str, Any]]]:
    """List what a pipeline has found.

    doc (Doc): The Doc.
    spans (bool): Also list all spans in doc.spans, with the "key" of their group.
    RETURNS (Dict[str, List[Dict[str, Any]]]): The entities and spans: "start" and "end" in characters,
        "label", and "score" with six decimals. The score is None for components without scores.
    """
    # The last group wins, as in `span._.score`.
    scores: Dict[Tuple[Any, ...], float] = {}
    listed: List[Dict[str, Any]] = []
    for key, group in doc.spans.items():
        if "scores" in group.attrs:
            offsets = [tuple(place) for place in span_offsets(group)]
            own: Dict[Tuple[Any, ...], float] = dict(zip(offsets, group.attrs["scores"]))
            scores.update(own)
        else:
            offsets, own = [tuple(chars(span)) for span in group], {}
        if spans:
            listed += [{**_row(span, own.get(span)), "key": key} for span in offsets]
    entities = []
    for ent in doc.ents:
        place = (ent.start_char, ent.end_char, ent.label_)
        # Docs that were joined from others have the scores of entities elsewhere.
        score = scores[place] if place in scores else get_score(ent)
        entities.append(_row(place, score))
    return {ENTITIES: entities, **({SPANS: listed} if spans else {})}


def _row(place: Tuple[Any, ...], score: Optional[float]) -> Dict[str, Any]:
    start, end, label = place
    rounded = None if score is None else round(float(score), 6)
    return {"start": start, "end": end, "label": label, "score": rounded}


def failed_line(document: Document, reason: str) -> bytes:
    """RETURNS (bytes): A line of failed.jsonl: the fields of the document, and the place and the reason in
    the field "failed". So the file can be annotated again."""
    place = {"file": document.file, "row": document.row, "reason": reason}
    # ASCII, since the document may contain bytes that are not UTF-8.
    return json.dumps({**document.fields, FAILED: place}, default=plain).encode("ascii") + b"\n"


def plain(value: Any) -> Any:
    """RETURNS (Any): The JSON value for one that JSON doesn't support. Bytes become base64, other values
    such as dates become text."""
    if isinstance(value, (bytes, bytearray)):
        return base64.b64encode(value).decode("ascii")
    return value.isoformat() if hasattr(value, "isoformat") else str(value)
