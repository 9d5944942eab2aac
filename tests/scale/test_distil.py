"""`spacy llmner distil` with a stub teacher: the whole way, and what is refused."""

import json
import subprocess
import sys
import warnings

import pytest
import spacy
from spacy.cli.init_config import init_config
from spacy.tokens import DocBin
from spacy.util import load_config
from typer.testing import CliRunner

from spacy_llmner.cli import app
from spacy_llmner.cli.distil import distil, prepare
from spacy_llmner.cli.distil_student import student_config
from spacy_llmner.errors import LLMNERError
from spacy_llmner.scale.annotator import import_code
from tests.scale.conftest import CODE
from tests.scale.test_distil_selection import iob, make_doc

CITIES = ("Bonn", "Ulm", "Trier", "Kiel")
SCORES = {**{city: ["CITY", 0.9] for city in CITIES}, "Essen": ["CITY", 0.4]}
run = CliRunner().invoke


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
    """A pipeline that is certain of four cities, and not of Essen."""
    import_code(CODE)
    nlp = spacy.blank("en")
    nlp.add_pipe("teacher", config={"scores": SCORES})
    folder = tmp_path_factory.mktemp("teacher") / "pipeline"
    nlp.to_disk(folder)
    return str(folder)


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    """A training config for spaCy's `ner` with few steps."""
    config = init_config(lang="en", pipeline=["ner"], optimize="efficiency")
    config["training"].update(max_steps=40, eval_frequency=20)
    path = tmp_path_factory.mktemp("config") / "ner.cfg"
    config.to_disk(path)
    return str(path)


@pytest.fixture(scope="module")
def texts(tmp_path_factory):
    """A hundred different texts with a certain city, ten of them also with Essen, and others."""
    path = tmp_path_factory.mktemp("texts") / "texts.txt"
    lines = [f"Train {i} goes to {CITIES[i % 4]}." for i in range(100)]
    lines[::10] = [line.replace(".", " and Essen.") for line in lines[::10]]
    lines += [f"Bus {i} is late." for i in range(150)]
    lines += [f"Essen {i}." for i in range(5)] + lines[:3] + ["We like Bonn."]
    path.write_text("\n".join(lines))
    return str(path)


def labelled_file(path, n=20, label="CITY", text="We like Bonn."):
    docs = [make_doc(f"{text} {i}" if i else text, (2, 3, label, None)) for i in range(n)]
    DocBin(docs=docs).to_disk(path)
    return path


@pytest.fixture(scope="module")
def done(teacher, texts, config, tmp_path_factory):
    """RETURNS (Tuple[Result, Path]): What the command printed, and its output folder."""
    folder = tmp_path_factory.mktemp("done")
    labelled = labelled_file(folder / "labelled.spacy")
    arguments = ["--student", config, "--labelled", str(labelled), "--code", CODE]
    arguments += ["--training.patience", "9999"]
    return run(app, ["distil", teacher, texts, str(folder / "out"), *arguments]), folder / "out"


def read(path):
    return list(DocBin().from_disk(path).get_docs(spacy.blank("en").vocab))


def test_everything_is_counted(done):
    result, out = done
    assert result.exit_code == 0, result.output
    saved = json.loads((out / "distil.json").read_text())
    left_out = list(saved.pop("left_out").items())
    scores = saved.pop("scores")
    assert saved == {
        "min_score": 0.6,
        "doubt_score": 0.2,
        "texts": 259,
        "kept": 200,
        "with_entities": 100,
        "entities": 100,
        "doubtful_passages": 10,
        "with_doubtful_passages": 10,
        "labelled": 20,
        "evaluated_on": str(out / "labelled_dev.spacy"),
    }
    assert [n for _, n in left_out] == [5, 50, 0, 3, 1, 0]
    for reason, n in left_out:
        assert f"left out: {reason}" in result.output and f"{n} " in result.output
    assert "marked as unknown" in result.output
    assert list(scores) == ["teacher", "student: ner.cfg", "ner.cfg, labelled texts alone"]
    for name, row in scores.items():
        assert name in result.output and row["f"] == 1.0 and row["words_per_second"] > 0
    assert "give other labelled texts with --test" in result.output.replace("\n", " ")


def test_settings_of_the_training(done):
    for folder in ("model-best", "labelled_only/model-best"):
        config = load_config(done[1] / folder / "config.cfg")
        assert config["training"]["patience"] == 9999


def test_the_data(done):
    """The student is trained on certain annotation and four fifths of the labelled texts."""
    out = done[1]
    train, dev = read(out / "train.spacy"), read(out / "dev.spacy")
    gold, gold_dev = read(out / "labelled_train.spacy"), read(out / "labelled_dev.spacy")
    assert (len(train), len(dev), len(gold), len(gold_dev)) == (180 + 16, 20 + 4, 16, 4)
    assert not {doc.text for doc in train} & {doc.text for doc in dev}
    marks = [iob(doc) for doc in [*train, *dev] if "Essen" in doc.text]
    assert len(marks) == 10 and all(mark == "OOOOBO-O" for mark in marks)


# spaCy imports every installed package with components. This process has spaCy alone.
WITHOUT_LLM = """
import sys
from importlib.metadata import EntryPoints, distribution
import catalogue
catalogue.AVAILABLE_ENTRY_POINTS = EntryPoints(distribution("spacy-legacy").entry_points)
sys.modules.update(dict.fromkeys(["spacy_llmner", "transformers", "peft"]))  # not importable
import spacy
nlp = spacy.load(sys.argv[1])
assert nlp.pipe_names == ["tok2vec", "ner"], nlp.pipe_names
assert [ent.text for ent in nlp("Train 7 goes to Kiel.").ents] == ["Kiel"]
"""


def test_the_student_needs_no_llm(done):
    """It loads and works in a process that has neither this package nor transformers."""
    result, out = done
    assert "It needs no LLM" in result.output
    subprocess.run([sys.executable, "-c", WITHOUT_LLM, str(out / "model-best")], check=True)


def test_annotation_is_continued(done, teacher, texts, config):
    """The second call annotates what is missing only, and can have another `min_score`."""
    out = done[1]
    shards = sorted((out / "annotations" / "shards").iterdir())
    assert len(shards) == 2
    before = [shard.stat().st_mtime_ns for shard in shards]
    shards[1].unlink()
    counts = distil(teacher, texts, out, student=config, min_score=0.3)
    assert shards[0].stat().st_mtime_ns == before[0] and shards[1].exists()
    assert counts["entities"] == 116 and counts["doubtful_passages"] == 0


def test_without_labelled_texts(teacher, texts, config, tmp_path, capsys):
    results = distil(teacher, texts, tmp_path / "out", student=config)
    out = " ".join(capsys.readouterr().out.split())
    assert list(results["scores"]) == ["teacher", "student: ner.cfg"]
    assert results["evaluated_on"] == str(tmp_path / "out" / "dev.spacy")
    assert "F1 is the agreement with the certain annotation of the teacher" in out


def test_test_texts(teacher, texts, config, tmp_path, capsys):
    """They are used for the scores alone."""
    test = labelled_file(tmp_path / "test.spacy")
    results = distil(teacher, texts, tmp_path / "out", student=config, test=test)
    assert results["evaluated_on"] == str(test) and results["labelled"] == 0
    known = [n for reason, n in results["left_out"].items() if "test texts" in reason]
    assert known == [1]
    assert "None of the pipelines was trained on these texts here" in capsys.readouterr().out


def test_failed_texts_are_counted(teacher, config, tmp_path):
    lines = [json.dumps({"text": f"Train {i} to Bonn."}) for i in range(30)]
    (tmp_path / "a.jsonl").write_text("\n".join([*lines, "{broken"]))
    results = distil(teacher, str(tmp_path / "a.jsonl"), tmp_path / "out", student=config)
    assert results["left_out"]["failed: see annotations/failed.jsonl"] == 1


def test_ner_and_ember_probe(teacher, tmp_path):
    """The configs of the students that have a name."""
    nlp = spacy.load(teacher)
    train = labelled_file(tmp_path / "train.spacy")
    config = student_config("ner", nlp, train, train, seed=3)
    assert config["nlp"]["pipeline"] == ["tok2vec", "ner"] and config["nlp"]["lang"] == "en"
    assert config["training"]["seed"] == 3 and config["paths"]["train"] == str(train)
    config = student_config("ember_probe", nlp, train, train)
    assert config["nlp"]["pipeline"] == ["ember_probe"] and config["paths"]["dev"] == str(train)
    assert config["paths"]["llm"] == "smollm2-135m-instruct"


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"student": "nerr"}, "LLMNER194.*'nerr'"),
        ({"overrides": {"trainin.max_steps": 9}}, "LLMNER195.*'ner'.*trainin"),
        ({"min_score": 0.1}, "doubt_score.*at most `min_score`, which is 0.1"),
        ({"min_score": 2}, "min_score.*between 0 and 1"),
        ({"min_score": 0.95, "doubt_score": 0.95}, "LLMNER193.*Only 0 of the texts.*0.95"),
        ({"labelled": "LABELLED"}, "LLMNER196.*town.*CITY.*nothing in common"),
        ({"test": "LABELLED"}, "LLMNER196"),
        ({"labelled": "FEW"}, "LLMNER197.*Only 9 of the labelled texts"),
        ({"labelled": "missing.spacy"}, "LLMNER093"),
    ],
)
def test_what_is_refused(teacher, texts, tmp_path, settings, message):
    labelled = labelled_file(tmp_path / "labelled.spacy", label="town")
    for key in {"labelled", "test"} & settings.keys():
        few = labelled_file(tmp_path / "few.spacy", n=9)
        files = {"LABELLED": labelled, "FEW": few}
        name = files.get(settings[key], tmp_path / settings[key])
        settings = {**settings, key: name}
    with pytest.raises(LLMNERError, match=message):
        distil(teacher, texts, tmp_path / "out", **settings)


def test_configs_that_are_refused(teacher, texts, tmp_path):
    path = tmp_path / "a.cfg"
    for content, message in (("[paths]\ntrain = null\n", "no paths.dev"), ("nonsense", "a.cfg")):
        path.write_text(content)
        with pytest.raises(LLMNERError, match=f"LLMNER195.*{message}"):
            distil(teacher, texts, tmp_path / "out", student=str(path))


def test_folders_with_other_files(teacher, texts, tmp_path):
    (tmp_path / "notes.txt").touch()
    with pytest.raises(LLMNERError, match="LLMNER184.*notes.txt"):
        distil(teacher, texts, tmp_path)


def test_another_teacher(done, teacher, texts, config, tmp_path):
    """Its annotation can't be mixed with that of the first."""
    nlp = spacy.load(teacher)
    nlp.add_pipe("sentencizer")
    nlp.to_disk(tmp_path / "other")
    result = run(app, ["distil", str(tmp_path / "other"), texts, str(done[1])])
    assert result.exit_code == 1 and "LLMNER173" in result.output
    # The annotation of the first can still be used.
    prepare(teacher, texts, done[1])


def test_labels_that_differ(teacher, texts, config, tmp_path):
    nlp = spacy.blank("en")
    docs = [nlp("We like Bonn."), nlp("We like Ada.")]
    docs[0].set_ents([docs[0].char_span(8, 12, "CITY")])
    docs[1].set_ents([docs[1].char_span(8, 11, "PERSON")])
    DocBin(docs=docs).to_disk(tmp_path / "test.spacy")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        distil(teacher, texts, tmp_path / "out", student=config, test=tmp_path / "test.spacy")
    messages = [str(w.message) for w in caught if "LLMNER-W028" in str(w.message)]
    assert len(messages) == 1 and "CITY, PERSON" in messages[0]
