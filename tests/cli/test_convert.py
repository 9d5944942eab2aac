import json
import re
from pathlib import Path

import pytest
from typer.testing import CliRunner

from tests.corpora.helpers import ADA, app, fails, fails_at, run, write, write_list


def test_format_is_told_by_the_content(tmp_path):
    assert len(run(write(tmp_path / "a.txt", "", ADA))[1]) == 1
    assert run(write(tmp_path / "b.txt", "{ O", "} O"))[1][0].text == "{ }"
    fails_at(write(tmp_path / "c.txt", "Ada B-PER"), 1, "not valid JSON", "--format", "jsonl")


@pytest.mark.parametrize("content", [b"", b"\n \n"])
@pytest.mark.parametrize("format", ["auto", "jsonl", "conll"])
def test_empty_file(tmp_path, content, format):
    path = tmp_path / "a.jsonl"
    path.write_bytes(content)
    fails(path, "contains no texts that can be used: it is empty", "--format", format)


@pytest.mark.parametrize("first", ["Ada B-PER", json.dumps(ADA)])
def test_broken_utf8(tmp_path, first):
    path = tmp_path / "a.txt"
    path.write_bytes(first.encode() + b"\n\nJos\xe9 B-PER\n")
    fails_at(path, 3, "not UTF-8 (byte 0xe9")


def test_missing_input_bad_output_and_language(tmp_path):
    fails(tmp_path / "none.jsonl", "the file does not exist")
    path = write(tmp_path / "a.jsonl", ADA)
    fails(path, "doesn't support the language 'xx-none'", lang="xx-none")
    output = tmp_path / "out.bin"
    result = CliRunner().invoke(app, [str(path), str(output), "--lang", "en"])
    assert result.exit_code == 1 and "must end in .spacy" in result.stderr
    assert not output.exists()


def test_output_is_replaced_and_its_folder_made(tmp_path):
    path = write(tmp_path / "a.jsonl", ADA)
    output = tmp_path / "deep" / "er" / "out.spacy"
    for _ in range(2):
        result = CliRunner().invoke(app, [str(path), str(output), "--lang", "en"])
        assert result.exit_code == 0
    assert [file_.name for file_ in output.parent.iterdir()] == ["out.spacy"]


def test_labels_left_out(tmp_path):
    """For a model that is to be asked for labels it never saw."""
    spans = [{"start": 0, "end": 3, "label": "PER"}, {"start": 9, "end": 13, "label": "LOC"}]
    path = write(tmp_path / "a.jsonl", {"text": "Ada left Bonn", "spans": spans})
    result, (doc,) = run(path, "--leave-out", "LOC,ORG")
    assert [(ent.text, ent.label_) for ent in doc.ents] == [("Ada", "PER")]
    assert doc.has_annotation("ENT_IOB")
    assert "PER: 1" in result.stdout and "LOC" not in result.stdout


@pytest.mark.parametrize("name", ["a.json", "a.txt"])
def test_training_data_of_spacy_v2(tmp_path, name):
    sentence = {"tokens": [{"id": 0, "orth": "Ada", "ner": "U-PERSON"}]}
    document = {"id": 0, "paragraphs": [{"raw": "Ada", "sentences": [sentence]}]}
    path = write_list(tmp_path / name, document)
    fails(path, f"format of spaCy v2. Convert it with: python -m spacy convert {path} FOLDER")


@pytest.mark.parametrize(
    "row,keys", [({"text": "Ada", "id": 1}, "the keys text, id"), (3, "no keys")]
)
def test_unknown_format(tmp_path, row, keys):
    path = write(tmp_path / "a.jsonl", row)
    fails(path, f"its first item has {keys}. Set --format to one of: jsonl, prodigy, doccano")


def test_broken_json_list(tmp_path):
    path = tmp_path / "a.json"
    path.write_text('[\n {"data": {"text": "Ada"},\n  "annotations": [}\n]')
    fails_at(path, 3, "not valid JSON (Expecting value at column 19)")
    path.write_text("[3]")
    fails(path, f"{path}, item 1: not a JSON object", "--format", "label-studio")


def test_documented_rows(tmp_path):
    """All rows in the documentation can be converted, except for pre-annotations of Label Studio."""
    page = Path(__file__).parents[2] / "docs" / "annotation_tools.md"
    blocks = re.findall(r"```json\n(.+?)```", page.read_text(encoding="utf8"), re.DOTALL)
    gold = [block for block in blocks if '"predictions"' not in block]
    assert len(gold) == len(blocks) - 1 == 6
    for block in gold:
        result, docs = run(write(tmp_path / "a.jsonl", block))
        assert result.exit_code == 0, result.output
        assert {ent.text for doc in docs for ent in doc.ents} <= {"Ada Hale", "Bo"}
        assert any(doc.ents for doc in docs)
