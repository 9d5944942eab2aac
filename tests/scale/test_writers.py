"""Writing: every format keeps the fields, the entities and their scores."""

import io
import json
from datetime import date
from pathlib import Path

import pytest
import spacy
from spacy.tokens import DocBin, Span, SpanGroup

from spacy_llmner.errors import LLMNERError
from spacy_llmner.pipeline.predictions import write_group
from spacy_llmner.scale.readers import Document, InputFile
from spacy_llmner.scale.writers import (
    DocBinWriter,
    JSONLWriter,
    ParquetWriter,
    failed_line,
    found_in,
    parquet_schema,
)

TEXT = "Mira Stone met Ünal in Bonn."
FOUND = [
    {"start": 0, "end": 10, "label": "PER", "score": 0.875},
    {"start": 23, "end": 27, "label": "LOC", "score": 0.123457},
]
JSONL = [InputFile(Path("a.jsonl"), "a.jsonl")]
NESTED = {"start": 0, "end": 4, "label": "PER", "score": 0.25, "key": "llmner"}


@pytest.fixture
def doc():
    doc = spacy.blank("en")(TEXT)
    ents = [Span(doc, 0, 2, "PER"), Span(doc, 5, 6, "LOC")]
    scored = [(ents[0], 0.875), (ents[1], 0.12345678), (Span(doc, 0, 1, "PER"), 0.25)]
    write_group(doc, "llmner", scored, ents, "ember_probe")
    doc.set_ents(ents)
    return doc


def document(**fields):
    return Document("a.jsonl", 3, {"text": TEXT, **fields}, TEXT)


def test_found(doc):
    assert found_in(doc, False) == {"entities": FOUND}
    doc.spans["other"] = SpanGroup(doc, spans=[doc[2:3]])
    other = {"start": 11, "end": 14, "label": "", "score": None, "key": "other"}
    spans = [*({**row, "key": "llmner"} for row in FOUND), NESTED, other]
    assert found_in(doc, True) == {"entities": FOUND, "spans": spans}


def test_last_group_has_the_score(doc):
    ent = doc.ents[0]
    write_group(doc, "combined", [(ent, 0.5)], [ent], "llmner_combine")
    assert [row["score"] for row in found_in(doc, False)["entities"]] == [0.5, 0.123457]


def test_entities_of_other_components():
    doc = spacy.blank("en")(TEXT)
    doc.set_ents([Span(doc, 0, 2, "PER")])
    assert found_in(doc, True) == {"entities": [{**FOUND[0], "score": None}], "spans": []}


def test_jsonl(doc):
    writer = JSONLWriter(spans=True)
    day = date(2024, 2, 29)
    rows = [writer.row(doc, document(id=1, day=day, raw=b"\xff", bad="\ud800", entities="old"))]
    (line,) = writer.encode(rows).data.decode("utf8").splitlines()
    row = json.loads(line)
    assert row["id"] == 1 and row["day"] == "2024-02-29" and row["raw"] == "/w=="
    assert row["bad"] == "\ud800" and row["entities"] == FOUND and row["spans"][2] == NESTED
    assert "Ünal" in writer.row(doc, document()).decode("utf8")


def test_docs(doc):
    writer = DocBinWriter("text")
    data = writer.encode([writer.row(doc, document(day=date(2024, 2, 29)))]).data
    (copy,) = DocBin().from_bytes(data).get_docs(spacy.blank("en").vocab)
    assert copy.user_data["fields"] == {"day": "2024-02-29"}
    assert found_in(copy, True) == found_in(doc, True)
    assert "fields" not in writer.row(doc.copy(), document()).user_data or doc.user_data["fields"]


def test_docs_with_fields_that_do_not_fit(doc):
    """They cost no other document."""
    writer = DocBinWriter("text")
    documents = [document(id=1), document(id=2**70), document(id="\ud83d"), document(id=4)]
    encoded = writer.encode([writer.row(doc.copy(), d) for d in documents])
    copies = DocBin().from_bytes(encoded.data).get_docs(spacy.blank("en").vocab)
    assert [copy.user_data["fields"]["id"] for copy in copies] == [1, 4]
    assert list(encoded.problems) == [1, 2]
    assert all("does not fit a .spacy file" in reason for reason in encoded.problems.values())


def read_parquet(data):
    import pyarrow.parquet as pq

    return pq.read_table(io.BytesIO(data))


def test_parquet(doc):
    pytest.importorskip("pyarrow")
    documents = [document(id=1, tags=[], meta={"x": None}), document(id=2, extra=None)]
    writer = ParquetWriter(parquet_schema(JSONL, documents), spans=True)
    encoded = writer.encode([writer.row(doc, d) for d in documents])
    assert not encoded.problems
    rows = read_parquet(encoded.data).to_pylist()
    assert rows[0]["entities"] == FOUND and rows[0]["spans"][2] == NESTED
    assert [row["id"] for row in rows] == [1, 2] and rows[0]["extra"] is None
    later = [document(id=3, tags=["a"], meta={"x": "y"}, extra="z")]
    assert not writer.encode([writer.row(doc, d) for d in later]).problems
    empty = read_parquet(writer.encode([]).data)
    assert empty.schema == read_parquet(encoded.data).schema and empty.num_rows == 0


def test_parquet_columns_of_parquet_files(tmp_path):
    """Columns that are empty in the first shard keep their types."""
    pa = pytest.importorskip("pyarrow")
    import pyarrow.parquet as pq

    files = []
    for name, values in (("a", pa.array([None], pa.int32())), ("b", pa.array([1], pa.int64()))):
        files.append(InputFile(tmp_path / f"{name}.parquet", f"{name}.parquet"))
        pq.write_table(pa.table({"text": [TEXT], "n": values}), files[-1].path)
    assert parquet_schema(files, []).field("n").type == pa.int64()
    pq.write_table(pa.table({"text": [TEXT], "n": [["a"]]}), files[1].path)
    assert parquet_schema(files, [document(n=1)]).field("n").type == pa.int64()


def test_parquet_rows_that_do_not_fit(doc):
    pytest.importorskip("pyarrow")
    writer = ParquetWriter(parquet_schema(JSONL, [document(id=1)]))
    documents = [document(id=1), document(id="two"), document(id=3, new=1), document(id=4)]
    encoded = writer.encode([writer.row(doc, d) for d in documents])
    assert read_parquet(encoded.data)["id"].to_pylist() == [1, 4]
    assert "does not fit the columns of the first shard" in encoded.problems[1]
    assert "the output has no column 'new'" in encoded.problems[2]


def test_parquet_with_mixed_values_in_the_first_shard(doc):
    pytest.importorskip("pyarrow")
    documents = [document(id=None), document(id="one"), document(id=2)]
    writer = ParquetWriter(parquet_schema(JSONL, documents))
    encoded = writer.encode([writer.row(doc, d) for d in documents])
    assert read_parquet(encoded.data)["id"].to_pylist() == [None, "one"]
    assert list(encoded.problems) == [2]


@pytest.mark.parametrize("odd", [2**70, "\ud83d", [[0, 4, "PER"]]])
def test_parquet_with_odd_values_in_the_first_shard(doc, odd):
    """The other documents choose the column."""
    pytest.importorskip("pyarrow")
    documents = [document(id=odd), document(id=[[1]] if isinstance(odd, list) else 7)]
    writer = ParquetWriter(parquet_schema(JSONL, documents))
    encoded = writer.encode([writer.row(doc, d) for d in documents])
    assert read_parquet(encoded.data)["id"].to_pylist() == [documents[1].fields["id"]]
    assert list(encoded.problems) == [0]


@pytest.mark.parametrize("value", [[[0, 4, "PER"]], {}, [{}], {"a": {}}, 2**70])
def test_fields_that_can_not_be_columns(value):
    pytest.importorskip("pyarrow")
    with pytest.raises(LLMNERError, match=r"122\] The field 'label' can't be a column"):
        parquet_schema(JSONL, [document(label=value)])


def test_parquet_keeps_all_keys_of_objects(doc):
    """pyarrow would leave out keys that the first shard didn't have."""
    pytest.importorskip("pyarrow")
    first = document(meta={"a": 1, "rows": [{"b": 2}]})
    writer = ParquetWriter(parquet_schema(JSONL, [first]))
    later = [document(meta={"a": 1, "c": 3}), document(meta={"rows": [{"b": 2}, {"d": 4}]})]
    encoded = writer.encode([writer.row(doc, d) for d in [first, *later, document(meta=None)]])
    assert read_parquet(encoded.data)["meta"].to_pylist() == [first.fields["meta"], None]
    assert "the column 'meta' has no field 'c'" in encoded.problems[1]
    assert "the column 'meta' has no field 'rows.d'" in encoded.problems[2]


def test_failed_line():
    line = failed_line(document(id=1, bad="\udcff"), "too long")
    row = json.loads(line)
    assert row["failed"] == {"file": "a.jsonl", "row": 3, "reason": "too long"}
    assert row["bad"] == "\udcff" and row["text"] == TEXT and line.isascii()
