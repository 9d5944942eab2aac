import json
import re
from typing import Any

import pytest
import spacy
import typer
from rich.console import Console
from spacy.language import Language
from spacy.tokens import Doc, DocBin, Span
from spacy.util import ignore_error
from thinc.api import Config
from typer.testing import CliRunner

from spacy_llmner.cli import _util
from spacy_llmner.cli import evaluate as module
from spacy_llmner.cli.evaluate import evaluate, evaluate_cli
from spacy_llmner.cli.evaluation import label_colors
from spacy_llmner.errors import LLMNERError

app = typer.Typer()
app.command()(evaluate_cli)

TEXTS = ["Ada Hale met Bo in Bonn.", "Rain fell on Bonn & <Rome>.", "Nobody came."]
GOLD = [[(0, 2, "PERSON"), (3, 4, "PERSON"), (5, 6, "LOC")], [(3, 4, "LOC"), (6, 7, "LOC")], []]
PATTERNS = [
    {"label": "PERSON", "pattern": "Ada Hale"},
    {"label": "WORK", "pattern": "Bo"},
    {"label": "LOC", "pattern": "Bonn"},
    {"label": "PERSON", "pattern": "Nobody"},
]


@Language.component("test_evaluate_no_scorer")
def no_scorer(doc):
    doc.set_ents([Span(doc, 0, 1, label="PERSON")])
    return doc


@Language.component("test_evaluate_failing")
def failing(doc):
    if "Rain" in doc.text:
        raise RuntimeError("rain")
    return doc


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    nlp = spacy.blank("en")
    ruler: Any = nlp.add_pipe("entity_ruler")
    ruler.add_patterns(PATTERNS)
    path = tmp_path_factory.mktemp("pipeline") / "model"
    nlp.to_disk(path)
    return str(path)


@pytest.fixture
def data(tmp_path):
    return write(tmp_path / "test.spacy")


def write(path, spans_key=None, outside=True):
    nlp = spacy.blank("en")
    doc_bin = DocBin()
    for text, gold in zip(TEXTS, GOLD):
        doc = nlp.make_doc(text)
        spans = [Span(doc, start, end, label=label) for start, end, label in gold]
        if outside:
            doc.set_ents(spans, default="outside")
        if spans_key:
            doc.spans[spans_key] = spans
        doc_bin.add(doc)
    doc_bin.to_disk(path)
    return path


def run(*args):
    return CliRunner().invoke(app, [str(arg) for arg in args])


def fails(reason, *args):
    result = run(*args)
    assert result.exit_code == 1
    assert result.stdout == ""
    assert reason in result.stderr and "Traceback" not in result.stderr
    assert result.stderr.count("\n") == 1


def row(stdout, label):
    (line,) = [line for line in stdout.splitlines() if re.match(rf"\W*{label} ", line)]
    return re.findall(r"[\w.-]+", line)[1:]


def test_scores_are_those_of_spacy(model, data, tmp_path):
    output = tmp_path / "new" / "metrics.json"
    result = run(model, data, "--output", output)
    assert result.exit_code == 0, result.output
    scores = json.loads(output.read_text())
    nlp = spacy.load(model)
    expected = nlp.evaluate(list(spacy.training.Corpus(data)(nlp)))
    for key in ("ents_p", "ents_r", "ents_f", "ents_per_type", "token_acc"):
        assert scores[key] == expected[key]
    # Right: Ada Hale, Bonn, Bonn. Wrong: Bo (WORK), Nobody. Missed: Bo, Rome.
    assert (scores["ents_p"], scores["ents_r"]) == (3 / 5, 3 / 5)
    assert (scores["n_docs"], scores["n_ents_gold"], scores["n_ents_predicted"]) == (3, 5, 5)
    assert scores["n_words"] == sum(len(nlp.make_doc(text)) for text in TEXTS)
    assert scores["n_failed"] == 0
    assert scores["speed"] == pytest.approx(scores["n_words"] / scores["seconds"])


def test_terminal(model, data):
    stdout = run(model, data).stdout
    assert row(stdout, "LOC") == ["100.0", "66.7", "80.0", "3", "2"]
    assert row(stdout, "PERSON") == ["50.0", "50.0", "50.0", "2", "2"]
    assert row(stdout, "WORK") == ["0.0", "0.0", "0.0", "0", "1"]
    assert row(stdout, "all") == ["60.0", "60.0", "60.0", "5", "5"]
    assert "3 docs, 19 words" in stdout
    assert re.search(r"[\d,]+ words/s: \d+\.\d\d s", stdout)
    assert "[Ada Hale PERSON] met [Bo WORK] in [Bonn LOC].\n" in stdout
    assert "in [Bonn LOC].\n  wrong label: Bo (PERSON -> WORK)\n" in stdout
    assert "Rain fell on [Bonn LOC] & <Rome>.\n  missed: Rome (LOC)\n" in stdout
    assert "failed" not in stdout and "Calibration" not in stdout


@pytest.mark.parametrize("show", [0, 1])
def test_number_of_docs_shown(model, data, show):
    stdout = run(model, data, "--show", show).stdout
    assert ("[Ada Hale PERSON]" in stdout) == (show == 1)
    assert "Rain fell" not in stdout


def test_entities_are_coloured_like_displacy(model, data):
    console = Console(force_terminal=True, color_system="truecolor", width=100, record=True)
    with console.capture() as capture:
        module._print(console, evaluate(model, data), 5)
    # PERSON is #aa9cfc in displaCy.
    assert re.search(r"\x1b\[[\d;]*48;2;170;156;252m Ada Hale ", capture.get())
    assert "[Ada Hale" not in capture.get()


def test_long_documents_are_cut_in_the_terminal():
    doc = spacy.blank("en")("Bonn " * 500)
    doc.ents = [Span(doc, 1, 2, label="LOC"), Span(doc, 400, 401, label="LOC")]
    text = module._marked(doc, {"LOC": "#ffffff"}, in_color=False).plain
    assert text.startswith("Bonn [Bonn LOC] Bonn") and text.endswith("…")
    assert len(text) < 500 and text.count("LOC") == 1


def test_limit(model, data):
    assert evaluate(model, data, limit=1).scores["n_docs"] == 1
    assert evaluate(model, data).scores["n_docs"] == 3


def test_same_label_same_colour(model, data):
    colors = label_colors(evaluate(model, data))
    assert set(colors) == {"PERSON", "LOC", "WORK"}
    assert len(set(colors.values())) == 3


def test_spans_key(tmp_path):
    nlp = spacy.blank("en")
    ruler: Any = nlp.add_pipe("span_ruler", config={"spans_key": "all"})
    ruler.add_patterns(PATTERNS)
    nlp.to_disk(tmp_path / "model")
    data = write(tmp_path / "test.spacy", spans_key="all")
    result = run(tmp_path / "model", data, "--spans-key", "all", "-o", tmp_path / "m.json")
    assert result.exit_code == 0, result.output
    scores = json.loads((tmp_path / "m.json").read_text())
    assert scores["spans_all_f"] == 3 / 5
    assert scores["spans_all_per_type"]["LOC"]["r"] == 2 / 3
    assert scores["ents_f"] == 0.0
    assert "doc.spans['all']" in result.stdout
    fails(
        "no spans under the key 'sc' (existing keys: all)",
        tmp_path / "model",
        data,
        "--spans-key",
        "sc",
    )


def test_pipe_without_a_scorer(tmp_path, data):
    nlp = spacy.blank("en")
    nlp.add_pipe("test_evaluate_no_scorer")
    nlp.to_disk(tmp_path / "model")
    assert evaluate(str(tmp_path / "model"), data).scores["ents_p"] == 0.0


def test_pipeline_that_finds_nothing(tmp_path, data):
    spacy.blank("en").to_disk(tmp_path / "model")
    result = run(tmp_path / "model", data)
    assert result.exit_code == 0
    assert row(result.stdout, "all") == ["0.0", "0.0", "0.0", "5", "0"]


def test_failed_documents_do_not_shift_the_others(model, data, monkeypatch):
    nlp = spacy.load(model)
    nlp.add_pipe("test_evaluate_failing", first=True)
    nlp.set_error_handler(ignore_error)
    monkeypatch.setattr(_util, "load_model", lambda name, config: nlp)
    result = run(model, data)
    assert "1 docs failed and count as empty" in result.stdout
    assert row(result.stdout, "LOC") == ["100.0", "33.3", "50.0", "3", "1"]


def test_calibration_error_is_shown_where_there_is_one(model, data, monkeypatch):
    ruler = type(spacy.load(model).get_pipe("entity_ruler"))
    monkeypatch.setattr(ruler, "score", lambda self, examples, **kwargs: {"ents_ece": 0.125})
    assert "Calibration error of the scores: 0.125" in run(model, data).stdout


def test_f_of_sets_of_strings(model, data):
    result = evaluate(model, data)
    shown = f"regardless of position: {100 * result.scores['ents_set_f']:.1f}"
    assert 0 < result.scores["ents_set_f"] < 1 and shown in run(model, data).stdout


def test_folder_of_data(model, data):
    assert evaluate(model, data.parent).scores["n_docs"] == 3


def test_code(tmp_path, data):
    code = tmp_path / "code.py"
    code.write_text(
        "from spacy.language import Language\n\n"
        "@Language.component('test_evaluate_from_code')\n"
        "def component(doc):\n    return doc\n"
    )
    spacy.blank("en").to_disk(tmp_path / "model")
    config = Config().from_disk(tmp_path / "model" / "config.cfg")
    config["nlp"]["pipeline"] = ["own"]
    config["components"]["own"] = {"factory": "test_evaluate_from_code"}
    config.to_disk(tmp_path / "model" / "config.cfg")
    assert run(tmp_path / "model", data).exit_code == 1
    assert run(tmp_path / "model", data, "--code", code).exit_code == 0


# Failures


def test_wrong_model_path(tmp_path, data):
    missing = tmp_path / "none"
    fails(f"Can't find the pipeline '{missing}'", missing, data)
    (tmp_path / "out" / "model-best").mkdir(parents=True)
    best = tmp_path / "out" / "model-best"
    reason = f"it contains no config.cfg. Did you mean '{best}'?"
    fails(reason, tmp_path / "out", data)


def test_wrong_data_path(model, tmp_path):
    fails("Can't find the data", model, tmp_path / "none.spacy")
    other = tmp_path / "a.jsonl"
    other.write_text("{}")
    v2 = tmp_path / "v2.json"
    v2.write_text('[{"id": 0, "paragraphs": []}]')
    fails(f"of spaCy v2. Convert it with: python -m spacy convert {v2} FOLDER", model, v2)
    fails("are not a .spacy file. Convert them with: python -m spacy llmner convert", model, other)
    (tmp_path / "empty").mkdir()
    fails("contains no .spacy files", model, tmp_path / "empty")


def test_broken_data(model, tmp_path):
    path = tmp_path / "a.spacy"
    path.write_bytes(b"no docbin")
    fails("they are broken or not in .spacy format", model, path)
    DocBin().to_disk(path)
    fails("contain no non-empty documents", model, path)
    DocBin(docs=[Doc(spacy.blank("en").vocab)]).to_disk(path)
    fails("contain no non-empty documents", model, path)


def test_data_without_entity_annotation(model, tmp_path):
    path = write(tmp_path / "a.spacy", outside=False)
    fails("doc.set_ents([], default='outside')", model, path)


def test_no_gpu(model, data, monkeypatch):
    def no_gpu(gpu_id, silent):
        raise ValueError("No GPU devices detected")

    monkeypatch.setattr(_util, "setup_gpu", no_gpu)
    fails("spaCy can't use the GPU 0 (No GPU devices detected)", model, data, "--gpu-id", "0")


def test_output_that_cannot_be_written(model, data, tmp_path):
    (tmp_path / "file").touch()
    fails("file", model, data, "--output", tmp_path / "file" / "metrics.json")


def test_library_function_prints_nothing_and_raises(model, data, capfd):
    evaluate(model, data, progress=True)
    assert capfd.readouterr() == ("", "")
    with pytest.raises(LLMNERError, match="Can't find the data"):
        evaluate(model, data.parent / "none")
