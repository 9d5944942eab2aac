"""Reading: every format, and whatever can be wrong with a file."""

import gzip
import io
import json
import sys
from types import SimpleNamespace

import pytest
import spacy
from spacy.tokens import DocBin

from spacy_llmner.errors import LLMNERError
from spacy_llmner.scale import readers
from spacy_llmner.scale.readers import (
    STDIN,
    InputFile,
    count_documents,
    input_files,
    read_documents,
    restored_doc,
)

LINES = ["A tea in Bonn.", "Ünder Öl 🚀", "three\u2028parts\x85of \x1c a line\rhere"]


def read(path, text_field="text"):
    file = InputFile(path, path.name)
    documents = list(read_documents(file, text_field))
    assert count_documents(file) == len(documents)
    return documents


def texts(path, **settings):
    return [document.text for document in read(path, **settings) if document.problem is None]


def problems(path, **settings):
    return [(d.row, d.problem) for d in read(path, **settings) if d.problem is not None]


def write(path, content):
    content = content.encode("utf8") if isinstance(content, str) else content
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)
    return path


@pytest.mark.parametrize("ending", ["", ".gz"])
def test_text(tmp_path, ending):
    path = write(tmp_path / f"a.txt{ending}", "\ufeff" + "\r\n".join([*LINES, "", "  ", "end"]))
    assert texts(path) == [*LINES, "end"]
    assert [document.row for document in read(path)] == [1, 2, 3, 6]
    assert read(path, "body")[0].fields == {"body": LINES[0]}


@pytest.mark.parametrize("ending", ["", ".gz"])
def test_jsonl(tmp_path, ending):
    rows = [{"id": i, "body": line, "text": None} for i, line in enumerate(LINES)]
    content = "\n\n".join(json.dumps(row, ensure_ascii=i == 0) for i, row in enumerate(rows))
    path = write(tmp_path / f"a.jsonl{ending}", content)
    assert texts(path, text_field="body") == LINES
    assert [document.fields for document in read(path, "body")] == rows


@pytest.mark.parametrize("ending", ["", ".gz"])
def test_csv(tmp_path, ending):
    path = write(
        tmp_path / f"a.csv{ending}",
        'id,text\r\n1,"two\nlines, ""quoted"""\r\n\r\n2,\r\n3,x,y\r\n4\r\n',
    )
    assert texts(path) == ['two\nlines, "quoted"', ""]
    assert read(path)[0].fields == {"id": "1", "text": 'two\nlines, "quoted"'}
    assert problems(path) == [
        (6, "the row has 3 values for 2 columns"),
        (7, "the row has 1 values for 2 columns"),
    ]
    with pytest.raises(LLMNERError, match=r"172\] The column 'body' is missing in .*has: id, text"):
        read(path, "body")


def test_columns_with_the_same_name(tmp_path):
    """One of them would be lost."""
    path = write(tmp_path / "a.csv", "id,text,id\n1,Tea,2\n")
    with pytest.raises(LLMNERError, match=r"171\].*two columns have the name 'id'"):
        read(path)
    pa = pytest.importorskip("pyarrow")
    import pyarrow.parquet as pq

    columns = [pa.array([value]) for value in (1, "Tea", 2)]
    pq.write_table(
        pa.Table.from_arrays(columns, names=["id", "text", "id"]), tmp_path / "a.parquet"
    )
    with pytest.raises(LLMNERError, match=r"171\].*two columns have the name 'id'"):
        read(tmp_path / "a.parquet")


def test_long_csv_field(tmp_path):
    assert texts(write(tmp_path / "a.csv", "text\n" + "x" * 200_000 + "\n")) == ["x" * 200_000]


def test_parquet(tmp_path, monkeypatch):
    pq = pytest.importorskip("pyarrow.parquet")
    import pyarrow as pa

    monkeypatch.setattr(readers, "PARQUET_ROWS", 2)
    path = tmp_path / "a.parquet"
    table = pa.table({"id": range(4), "text": [*LINES, None], "tags": [["a"], [], None, []]})
    pq.write_table(table, path)
    assert texts(path) == LINES
    assert read(path)[0].fields == {"id": 0, "text": LINES[0], "tags": ["a"]}
    assert problems(path) == [(4, "the field 'text' is not a text")]
    with pytest.raises(LLMNERError, match=r"172\].*it has: id, text, tags"):
        read(path, "body")


def test_docs(tmp_path):
    """Words and sentences stay, entities don't."""
    nlp = spacy.blank("en")
    nlp.add_pipe("sentencizer")
    doc = nlp("Mira likes tea. It is cold-ish.")
    doc.set_ents([doc[0:1]], outside=[doc[1:3]]) if doc[0:1].label_ else None
    doc.spans["sc"] = [doc[2:3]]
    doc.user_data["id"] = 7
    DocBin(store_user_data=True, docs=[doc]).to_disk(tmp_path / "a.spacy")
    (document,) = read(tmp_path / "a.spacy")
    assert document.text == doc.text and document.fields == {"text": doc.text}
    copy = restored_doc(document.doc, spacy.blank("en").vocab)
    assert [t.text for t in copy] == [t.text for t in doc]
    assert [s.text for s in copy.sents] == [s.text for s in doc.sents]
    assert not copy.ents and not copy.spans and not copy.has_annotation("ENT_IOB")
    assert copy.user_data["id"] == 7


def test_entities_of_docs_are_removed(tmp_path):
    nlp = spacy.blank("en")
    doc = nlp("Mira likes tea.")
    doc.set_ents([doc.char_span(0, 4, label="PER")])
    doc.user_data["._.", "llmner_found", 0, 4] = ("PER", 0.9, "ember_probe")
    DocBin(store_user_data=True, docs=[doc]).to_disk(tmp_path / "a.spacy")
    (document,) = read(tmp_path / "a.spacy")
    copy = restored_doc(document.doc, nlp.vocab)
    assert not copy.ents and not copy.user_data


def test_broken_lines(tmp_path):
    lines = [
        b'{"text": "good"}',
        b'{"text": "no end',
        b'["text"]',
        b'{"body": "x"}',
        b'{"text": 3}',
        b'{"text": "\xff"}',
        b'{"text": "\\ud800"}',
        b"[" * 100_000,
        b'{"text": "good, too"}',
    ]
    path = write(tmp_path / "a.jsonl", b"\n".join(lines))
    assert texts(path) == ["good", "good, too"]
    reasons = [
        (2, "not valid JSON (Unterminated string"),
        (3, "not a JSON object"),
        (4, "no field 'text' (it has: body)"),
        (5, "the field 'text' is not a text"),
        (6, "not UTF-8"),
        (7, "the text is not UTF-8"),
        (8, "not valid JSON ("),
    ]
    found = problems(path)
    assert len(found) == len(reasons)
    for (row, problem), (expected_row, reason) in zip(found, reasons):
        assert row == expected_row and problem.startswith(reason)
    assert read(path)[1].fields == {"line": '{"text": "no end'}
    assert problems(write(tmp_path / "a.txt", b"caf\xe9\ngood")) == [(1, "not UTF-8")]


def test_very_long_lines(tmp_path, monkeypatch):
    monkeypatch.setattr(readers, "MAX_LINE", 20)
    path = write(tmp_path / "a.txt", f"{'x' * 50}\n{'y' * 19}\n{'z' * 60}")
    assert texts(path) == ["y" * 19]
    reason = "the line is longer than 20 characters"
    assert problems(path) == [(1, reason), (3, reason)]


@pytest.mark.parametrize("name", ["a.txt", "a.jsonl", "a.csv", "a.txt.gz", "a.parquet", "a.spacy"])
def test_binary_files(tmp_path, name):
    path = write(tmp_path / name, bytes(range(256)) * 10)
    with pytest.raises(LLMNERError, match=r"171\] Can't read .*remove this file"):
        read(path)
    with pytest.raises(LLMNERError, match=r"171\]"):
        count_documents(InputFile(path, name))


def test_damaged_files(tmp_path):
    whole = gzip.compress(json.dumps({"text": "tea " * 10_000}).encode() * 3)
    (tmp_path / "a.jsonl.gz").write_bytes(whole[:-20])
    with pytest.raises(LLMNERError, match=r"171\].*end-of-stream"):
        count_documents(InputFile(tmp_path / "a.jsonl.gz", "a.jsonl.gz"))
    (tmp_path / "b.jsonl.gz").write_bytes(b"not gzip")
    with pytest.raises(LLMNERError, match=r"171\].*Not a gzipped file"):
        read(tmp_path / "b.jsonl.gz")
    with pytest.raises(LLMNERError, match=r"171\]"):
        read(write(tmp_path / "c.csv", 'text\n"never closed'))


@pytest.mark.parametrize("name", ["a.txt", "a.jsonl", "a.csv", "a.txt.gz"])
def test_empty_files(tmp_path, name):
    assert read(write(tmp_path / name, "")) == []


def test_folder(tmp_path):
    for name in ("b.txt", "a/x.jsonl", "a/notes.md", ".hidden.txt", ".git/z.txt", "c.csv"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    files, left_out = input_files(str(tmp_path))
    assert [file.name for file in files] == ["a/x.jsonl", "b.txt", "c.csv"]
    assert left_out == ["a/notes.md"]


def test_wrong_paths(tmp_path):
    (tmp_path / "a.md").touch()
    for path, reason in (
        (tmp_path / "missing.txt", "it doesn't exist"),
        (tmp_path / "a.md", "its ending is unknown"),
        (tmp_path, "the folder contains no such file"),
    ):
        with pytest.raises(LLMNERError, match=rf"170\].*{reason}.*\.jsonl, \.txt"):
            input_files(str(path))


def test_stdin(monkeypatch):
    stdin = SimpleNamespace(buffer=io.BytesIO(b'{"text": "tea"}\n\n{"text": "\\u00fc"}\n'))
    monkeypatch.setattr(sys, "stdin", stdin)
    (file,), _ = input_files(STDIN)
    assert [document.text for document in read_documents(file, "text")] == ["tea", "ü"]


def test_pyarrow_is_missing(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    path = write(tmp_path / "a.parquet", "x")
    with pytest.raises(LLMNERError, match=r"177\].*pip install 'spacy-llmner\[parquet\]'"):
        read(path)
