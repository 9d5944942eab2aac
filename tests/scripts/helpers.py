"""What the tests of scripts/convert.py share: the script as a module, and ways to run it."""

import json
import sys
from pathlib import Path

import typer
from spacy.tokens import DocBin
from spacy.vocab import Vocab
from typer.testing import CliRunner

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "scripts"))
import convert  # noqa: E402

app = typer.Typer()
app.command()(convert.main)
ADA = {"text": "Ada met Bo.", "spans": [{"start": 0, "end": 3, "label": "PERSON"}]}


def write(path, *lines):
    texts = [line if isinstance(line, str) else json.dumps(line) for line in lines]
    path.write_text("".join(f"{text}\n" for text in texts), encoding="utf8")
    return path


def run(path, *args, lang="en"):
    """Run the command and return its result and the Docs that it wrote."""
    output = path.parent / "out.spacy"
    result = CliRunner().invoke(app, [str(path), str(output), "--lang", lang, *args])
    docs = []
    if result.exit_code == 0:
        docs = list(DocBin().from_disk(output).get_docs(Vocab()))
    return result, docs


def ents(doc):
    return [(ent.text, ent.label_) for ent in doc.ents]


def fails_at(path, line, reason, *args, lang="xx"):
    """The command exits with 1, says where and why, and leaves the output alone."""
    output = path.parent / "out.spacy"
    output.write_bytes(b"as before")
    result, _ = run(path, *args, lang=lang)
    assert result.exit_code == 1
    assert result.stdout == ""
    where = f"{path}:{line}: " if line else f"{path}: "
    assert result.stderr.startswith(where), result.stderr
    assert reason in result.stderr
    assert result.stderr.count("\n") == 1
    assert output.read_bytes() == b"as before"
    assert not [name for name in path.parent.iterdir() if name.name.startswith(".")]
