import hashlib
import json

import pytest
import srsly
from typer.testing import CliRunner

from tests.scripts.helpers import ADA, app, fails_at, run, write


def test_format_is_told_by_the_content(tmp_path):
    assert len(run(write(tmp_path / "a.txt", "", ADA))[1]) == 1
    assert run(write(tmp_path / "b.txt", "{ O", "} O"))[1][0].text == "{ }"
    fails_at(write(tmp_path / "c.txt", "Ada B-PER"), 1, "not valid JSON", "--format", "jsonl")


@pytest.mark.parametrize("content", [b"", b"\n \n"])
@pytest.mark.parametrize("format", ["auto", "jsonl", "conll"])
def test_empty_file(tmp_path, content, format):
    path = tmp_path / "a.jsonl"
    path.write_bytes(content)
    fails_at(path, 1, "the file is empty", "--format", format)


@pytest.mark.parametrize("first", ["Ada B-PER", json.dumps(ADA)])
def test_broken_utf8(tmp_path, first):
    path = tmp_path / "a.txt"
    path.write_bytes(first.encode() + b"\n\nJos\xe9 B-PER\n")
    fails_at(path, 3, "not UTF-8 (byte 0xe9")


def test_missing_input_bad_output_and_language(tmp_path):
    fails_at(tmp_path / "none.jsonl", 0, "the file does not exist")
    path = write(tmp_path / "a.jsonl", ADA)
    fails_at(path, 0, "no tokenizer for the language 'xx-none'", lang="xx-none")
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


def test_checksum(tmp_path, monkeypatch):
    path = write(tmp_path / "a.jsonl", ADA)
    md5 = hashlib.md5(path.read_bytes()).hexdigest()
    project = tmp_path / "project.yml"
    config = {
        "vars": {"name": "a"},
        "assets": [{"dest": "other"}, {"dest": "${vars.name}.jsonl", "checksum": md5}],
    }
    srsly.write_yaml(project, config)
    assert run(path, "--project", str(project))[0].exit_code == 0
    write(path, ADA, ADA)
    fails_at(path, 0, f"must be {md5}", "--project", str(project))
    # Without the option, the project.yml of the working directory counts.
    assert run(path)[0].exit_code == 0
    monkeypatch.chdir(tmp_path)
    fails_at(path, 0, f"must be {md5}")
    # A file that the project does not list is not checked.
    assert run(write(tmp_path / "b.jsonl", ADA))[0].exit_code == 0


def test_broken_project_file(tmp_path):
    path = write(tmp_path / "a.jsonl", ADA)
    project = tmp_path / "p.yml"
    for content in ("assets: [", "- 1", "assets: [{checksum: x}]"):
        project.write_text(content)
        result, _ = run(path, "--project", str(project))
        assert result.exit_code == 1
        assert result.stderr.startswith(f"{project}: can't read the assets of the project")
    result, _ = run(path, "--project", str(tmp_path / "none.yml"))
    assert result.exit_code == 1 and "none.yml: can't read the assets" in result.stderr


def test_labels_left_out(tmp_path):
    """For a model that is to be asked for labels it never saw."""
    spans = [{"start": 0, "end": 3, "label": "PER"}, {"start": 9, "end": 13, "label": "LOC"}]
    path = write(tmp_path / "a.jsonl", {"text": "Ada left Bonn", "spans": spans})
    result, (doc,) = run(path, "--leave-out", "LOC,ORG")
    assert [(ent.text, ent.label_) for ent in doc.ents] == [("Ada", "PER")]
    assert doc.has_annotation("ENT_IOB")
    assert "PER: 1" in result.stdout and "LOC" not in result.stdout
