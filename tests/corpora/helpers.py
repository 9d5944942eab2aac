"""What the tests of corpus formats share: ways to write a corpus and to convert it."""

import json

import typer
from spacy.tokens import DocBin
from spacy.vocab import Vocab
from typer.testing import CliRunner

from spacy_llmner.cli.convert import convert_cli

app = typer.Typer()
app.command()(convert_cli)
ADA = {"text": "Ada met Bo.", "spans": [{"start": 0, "end": 3, "label": "PERSON"}]}


def write(path, *lines):
    texts = [line if isinstance(line, str) else json.dumps(line) for line in lines]
    path.write_text("".join(f"{text}\n" for text in texts), encoding="utf8")
    return path


def write_list(path, *items):
    """Write a JSON list, as Label Studio does."""
    path.write_text(json.dumps(items, indent=1), encoding="utf8")
    return path


def run(path, *args, lang="en", app=app):
    """Run the command and return its result and the Docs that it wrote."""
    output = path.parent / "out.spacy"
    result = CliRunner().invoke(app, [str(path), str(output), "--lang", lang, *args])
    docs = []
    if result.exit_code == 0:
        docs = list(DocBin().from_disk(output).get_docs(Vocab()))
    return result, docs


def ents(doc):
    return [(ent.text, ent.label_) for ent in doc.ents]


def fails(path, reason, *args, lang="xx"):
    """The command exits with 1, says why, and leaves the output alone."""
    output = path.parent / "out.spacy"
    output.write_bytes(b"as before")
    result, _ = run(path, *args, lang=lang)
    assert result.exit_code == 1
    assert result.stdout == ""
    assert reason in result.stderr
    assert result.stderr.count("\n") == 1
    assert output.read_bytes() == b"as before"
    assert not list(path.parent.glob("new-*"))


def fails_at(path, line, reason, *args, lang="xx"):
    """As `fails`, and the message says in which line."""
    fails(path, f"[LLMNER113] {path}:{line}: ", *args, lang=lang)
    fails(path, reason, *args, lang=lang)
