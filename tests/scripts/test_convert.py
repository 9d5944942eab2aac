import hashlib
import sys
from pathlib import Path

import srsly
import typer

from tests.corpora.helpers import ADA, run, write

sys.path.insert(0, str(Path(__file__).parents[2] / "scripts"))
import convert  # noqa: E402

app = typer.Typer()
app.command()(convert.main)


def convert_with(path, *args):
    return run(path, *args, app=app)[0]


def test_checksum(tmp_path, monkeypatch):
    path = write(tmp_path / "a.jsonl", ADA)
    md5 = hashlib.md5(path.read_bytes()).hexdigest()
    project = tmp_path / "project.yml"
    config = {
        "vars": {"name": "a"},
        "assets": [{"dest": "other"}, {"dest": "${vars.name}.jsonl", "checksum": md5}],
    }
    srsly.write_yaml(project, config)
    assert convert_with(path, "--project", str(project)).exit_code == 0
    output = tmp_path / "out.spacy"
    output.write_bytes(b"as before")
    write(path, ADA, ADA)
    result = convert_with(path, "--project", str(project))
    assert result.exit_code == 1 and f"must be {md5}" in result.stderr
    assert output.read_bytes() == b"as before"
    # Without the option, the project.yml of the working directory counts.
    assert convert_with(path).exit_code == 0
    monkeypatch.chdir(tmp_path)
    result = convert_with(path)
    assert result.exit_code == 1 and f"must be {md5}" in result.stderr
    # A file that the project does not list is not checked.
    assert convert_with(write(tmp_path / "b.jsonl", ADA)).exit_code == 0


def test_broken_project_file(tmp_path):
    path = write(tmp_path / "a.jsonl", ADA)
    project = tmp_path / "p.yml"
    for content in ("assets: [", "- 1", "assets: [{checksum: x}]"):
        project.write_text(content)
        result = convert_with(path, "--project", str(project))
        assert result.exit_code == 1
        assert result.stderr.startswith(f"{project}: can't read the assets of the project")
    result = convert_with(path, "--project", str(tmp_path / "none.yml"))
    assert result.exit_code == 1 and "none.yml: can't read the assets" in result.stderr


def test_the_options_of_the_command(tmp_path):
    path = write(tmp_path / "a.jsonl", ADA)
    result = convert_with(path, "--leave-out", "PERSON", "-n", "2", "--format", "jsonl")
    assert result.exit_code == 0 and "0 entities" in result.stdout
    assert "LLMNER113" in convert_with(tmp_path / "none.jsonl").stderr
