import json

import pytest
import spacy
import typer
from spacy.language import Language
from spacy.tokens import DocBin, Span
from typer.testing import CliRunner

from spacy_llmner.cli.export import export_cli
from spacy_llmner.pipeline.predictions import PredictedSpan, Prediction, write_prediction
from tests.corpora.helpers import ents, write_list
from tests.corpora.helpers import run as convert

app = typer.Typer()
app.command()(export_cli)

TEXTS = ["🚀 Ada Hale met  Bo 🚀🚀 in Bonn.", "Nobody came."]
ENTITIES = [[("Ada Hale", "PER"), ("Bo", "PER"), ("Bonn", "LOC")], []]


@Language.component("test_export_finder")
def finder(doc):
    """Finds names like a component of this package, and a nested one."""
    words = {"Ada": ("PER", 2, 0.9), "Bo": ("PER", 1, 0.7), "Bonn": ("LOC", 1, 0.5)}
    found = [
        PredictedSpan(token.i, token.i + n, label, score)
        for token in doc
        if token.text in words
        for label, n, score in [words[token.text]]
    ]
    nested = [
        PredictedSpan(s.start, s.start + 1, "NAME", 0.4) for s in found if s.end > s.start + 1
    ]
    write_prediction(doc, Prediction(found, found + nested), "all", True, "finder")
    return doc


@Language.component("test_export_unscored")
def unscored(doc):
    doc.set_ents([Span(doc, 0, 1, label="X")])
    return doc


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    nlp = spacy.blank("en", meta={"name": "names", "version": "1.2.0"})
    nlp.add_pipe("test_export_finder")
    path = tmp_path_factory.mktemp("pipeline") / "model"
    nlp.to_disk(path)
    return str(path)


@pytest.fixture
def texts(tmp_path):
    path = tmp_path / "texts.txt"
    path.write_text("\n".join([TEXTS[0], "", f" {TEXTS[1]} "]), encoding="utf8")
    return path


def run(model, texts, tool, *args, name="out.jsonl"):
    """Run the command and return its result and the content of its file."""
    output = texts.parent / "new" / name
    result = CliRunner().invoke(app, [model, str(texts), str(output), "--format", tool, *args])
    return result, output.read_text(encoding="utf8") if output.exists() else None


def rows_of(content):
    return [json.loads(line) for line in content.splitlines()]


def test_prodigy(model, texts, tmp_path):
    result, content = run(model, texts, "prodigy")
    assert result.exit_code == 0, result.output
    assert "2 texts with 3 entities" in result.output
    row, other = rows_of(content)
    assert row["text"] == TEXTS[0]
    for token in row["tokens"]:
        assert TEXTS[0][token["start"] : token["end"]] == token["text"]
    assert [token["id"] for token in row["tokens"]] == list(range(len(row["tokens"])))
    spaced = [token["text"] + " " * token["ws"] for token in row["tokens"]]
    assert "".join(spaced) == TEXTS[0]
    assert row["spans"][0] == {
        "start": 2,
        "end": 10,
        "token_start": 1,
        "token_end": 2,
        "label": "PER",
        "score": 0.9,
    }
    assert (other["text"], other["spans"]) == (TEXTS[1], [])
    _, docs = convert(tmp_path / "new" / "out.jsonl")
    assert [ents(doc) for doc in docs] == ENTITIES


def test_doccano(model, texts, tmp_path):
    _, content = run(model, texts, "doccano")
    assert rows_of(content) == [
        {"text": TEXTS[0], "label": [[3, 11, "PER"], [17, 19, "PER"], [28, 32, "LOC"]]},
        {"text": TEXTS[1], "label": []},
    ]
    _, docs = convert(tmp_path / "new" / "out.jsonl")
    assert [ents(doc) for doc in docs] == ENTITIES


def test_label_studio(model, texts, tmp_path):
    _, content = run(model, texts, "label-studio", name="out.json")
    task, other = json.loads(content)
    assert task["data"] == {"text": TEXTS[0]}
    (prediction,) = task["predictions"]
    assert prediction["model_version"] == "en_names-1.2.0"
    assert prediction["score"] == pytest.approx(0.7)
    assert prediction["result"][0] == {
        "id": "1",
        "from_name": "label",
        "to_name": "text",
        "type": "labels",
        "value": {"start": 2, "end": 10, "text": "Ada Hale", "labels": ["PER"], "score": 0.9},
    }
    empty = {"model_version": "en_names-1.2.0", "result": []}
    assert other == {"data": {"text": TEXTS[1]}, "predictions": [empty]}
    # An annotator submits what is suggested.
    tasks = [{**t, "annotations": t["predictions"]} for t in (task, other)]
    _, docs = convert(write_list(tmp_path / "export.json", *tasks))
    assert [ents(doc) for doc in docs] == ENTITIES


@pytest.mark.parametrize("tool", ["prodigy", "doccano", "label-studio"])
def test_spans_key(model, texts, tmp_path, tool):
    """Nested spans, and the way back."""
    result, content = run(model, texts, tool, "--spans-key", "all", name="out.json")
    assert "2 texts with 4 entities" in result.output
    path = tmp_path / "new" / "out.json"
    if tool == "label-studio":
        tasks = [{**t, "annotations": t["predictions"]} for t in json.loads(content)]
        write_list(path, *tasks)
    _, docs = convert(path, "--nested")
    found = [[(s.text, s.label_) for s in doc.spans["sc"]] for doc in docs]
    assert found == [[*ENTITIES[0], ("Ada", "NAME")], []]
    result, _ = run(model, texts, tool, "--spans-key", "none")
    assert result.exit_code == 1 and "no spans under the key 'none'" in result.output


@pytest.mark.parametrize("name", ["texts.spacy", "texts.jsonl", "texts.json"])
def test_texts(model, tmp_path, name):
    path = tmp_path / name
    nlp = spacy.blank("en")
    if name == "texts.spacy":
        DocBin(docs=[nlp(text) for text in [*TEXTS, ""]]).to_disk(path)
    elif name == "texts.jsonl":
        path.write_text("".join(json.dumps({"text": text}) + "\n" for text in [*TEXTS, " "]))
    else:
        write_list(path, *({"text": text} for text in TEXTS))
    _, content = run(model, path, "prodigy")
    assert [row["text"] for row in rows_of(content)] == TEXTS


def test_component_without_scores(texts, tmp_path):
    nlp = spacy.blank("en")
    nlp.add_pipe("test_export_unscored")
    nlp.to_disk(tmp_path / "model")
    _, content = run(str(tmp_path / "model"), texts, "prodigy")
    assert "score" not in rows_of(content)[0]["spans"][0]
    _, content = run(str(tmp_path / "model"), texts, "label-studio")
    prediction = json.loads(content)[0]["predictions"][0]
    assert "score" not in prediction and "score" not in prediction["result"][0]["value"]


def test_messages(model, tmp_path):
    def fails(message, path, tool="prodigy", pipeline=model):
        result, content = run(pipeline, path, tool)
        assert result.exit_code == 1
        assert message in result.output
        assert content is None and not list((tmp_path / "new").glob("*"))

    texts = tmp_path / "a.jsonl"
    fails("a.jsonl: the file does not exist", texts)
    texts.write_text('{"text": "Nobody"}\n{"txt": "Bo"}\n')
    fails(f'{texts}:2: not a JSON object with a string under the key "text"', texts)
    texts.write_text("\n")
    fails("contains no texts that can be used: it is empty", texts)
    fails("Can't find the pipeline", texts, pipeline=str(tmp_path / "none"))
    v2 = tmp_path / "v2.json"
    v2.write_text('[{"id": 0, "paragraphs": []}]')
    fails("is in the JSON format of spaCy v2", v2)
    broken = tmp_path / "a.spacy"
    broken.write_bytes(b"nonsense")
    fails("Can't read the data", broken)
