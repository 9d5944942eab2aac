"""`spacy llmner calibrate`: calibration on held-out texts improves a pipeline."""

import json

import pytest
import spacy
from spacy.tokens import DocBin
from typer.testing import CliRunner

from spacy_llmner.cli import app
from spacy_llmner.cli.calibrate import calibrate
from tests.el4ner_ensemble.helpers import MockVoter
from tests.helpers import make_examples

DATA = [
    ("Mira went to Bonn.", [(0, 4, "PER"), (13, 17, "LOC")]),
    ("Rome likes Mira.", [(0, 4, "LOC"), (11, 15, "PER")]),
    ("Bonn is far.", [(0, 4, "LOC")]),
]


NAMES = {"Mira": "PER", "Bonn": "LOC", "Rome": "LOC"}


def knows(right):
    """A voter that finds all names, and gives this probability to the correct label."""
    return MockVoter(
        {
            name: {label: right, "PER" if label == "LOC" else "LOC": 1.0 - right}
            for name, label in NAMES.items()
        }
    )


spacy.registry.misc("calibrate_tests.Knows.v1", func=lambda: knows(0.7))
spacy.registry.misc("calibrate_tests.Errs.v1", func=lambda: knows(0.1))


@pytest.fixture
def folder(tmp_path):
    """An ensemble of a good voter and a bad one that is more confident, and held-out texts."""
    nlp = spacy.blank("en")
    llms = {
        "errs": {"@misc": "calibrate_tests.Errs.v1"},
        "knows": {"@misc": "calibrate_tests.Knows.v1"},
    }
    config = {"llms": llms, "labels": ["LOC", "PER"], "k": 0, "retrieval": "none", "verify": False}
    nlp.add_pipe("el4ner_ensemble", config=config)
    nlp.to_disk(tmp_path / "nlp")
    docs = [eg.reference for eg in make_examples(nlp, DATA)]
    DocBin(docs=docs).to_disk(tmp_path / "dev.spacy")
    return tmp_path


def run(*args):
    return CliRunner().invoke(app, ["calibrate", *map(str, args)])


def entities(nlp):
    return [(ent.text, ent.label_) for ent in nlp("Mira saw Rome.").ents]


def test_calibrate(folder):
    assert entities(spacy.load(folder / "nlp")) == [("Mira", "LOC"), ("Rome", "PER")]
    result = run(folder / "nlp", folder / "dev.spacy", folder / "out" / "calibrated")
    assert result.exit_code == 0, result.output
    assert "Reading 3 texts" in result.output
    assert (
        "F 0.0 -> 100.0 on these texts, without verification. Vote weights: errs 1, knows"
        in result.output
    )
    assert f"Saved {folder / 'out' / 'calibrated'}" in result.output.replace("\n", "")
    nlp = spacy.load(folder / "out" / "calibrated")
    assert entities(nlp) == [("Mira", "PER"), ("Rome", "LOC")]
    assert nlp.get_pipe("el4ner_ensemble").cfg["weights"]["knows"] > 1.0


def test_limit(folder, monkeypatch):
    seen = []
    monkeypatch.setattr(
        "spacy_llmner.cli.calibrate.calibrate", lambda nlp, examples: seen.append(examples) or {}
    )
    assert run(folder / "nlp", folder / "dev.spacy", folder / "out", "--limit", 2).exit_code == 0
    assert [eg.text for eg in seen[0]] == [text for text, _ in DATA[:2]]


def test_each_in_its_place():
    """Texts for a component are annotated by the components before it, and by no others."""
    nlp = spacy.blank("en")
    seen = {}

    class Fits:
        def __init__(self, name):
            self.name = name

        def __call__(self, doc):
            doc.user_data.setdefault("by", []).append(self.name)
            return doc

        def calibrate(self, examples):
            seen[self.name] = [eg.predicted.user_data.get("by") for eg in examples]
            return 0.5

    @spacy.Language.factory("calibrate_tests_fits")
    def make(nlp, name):
        return Fits(name)

    nlp.add_pipe("calibrate_tests_fits", name="one")
    nlp.add_pipe("sentencizer")
    nlp.add_pipe("calibrate_tests_fits", name="other")
    examples = make_examples(nlp, DATA[:1])
    assert calibrate(nlp, examples) == {"one": 0.5, "other": 0.5}
    assert seen == {"one": [None], "other": [["one"]]}
    assert not examples[0].predicted.user_data.get("by")
    assert nlp.pipe_names == ["one", "sentencizer", "other"]


def test_ra_it_ner_says_when_examples_help(folder, tiny_llm, monkeypatch):
    from spacy_llmner.ra_it_ner.component import RAIT

    nlp = spacy.blank("en")
    nlp.add_pipe("ra_it_ner", config={"llm": {"name": tiny_llm}, "labels": ["PER"]})
    nlp.to_disk(folder / "open")

    def fitted(pipe, examples):
        pipe.cfg["example_threshold"] = 0.625
        return 0.625

    monkeypatch.setattr(RAIT, "calibrate", fitted)
    monkeypatch.setattr(RAIT, "check_calibration", lambda pipe, examples: examples)
    result = run(folder / "open", folder / "dev.spacy", folder / "out")
    assert "ra_it_ner: examples are shown if their similarity is at least 0.62" in result.output
    assert (
        json.loads((folder / "out" / "ra_it_ner" / "cfg").read_text())["example_threshold"] == 0.625
    )


def test_bad_input(folder):
    """The message says what is wrong, and nothing is saved."""
    bare = spacy.blank("en")
    bare.add_pipe("sentencizer")
    bare.to_disk(folder / "bare")
    outside = bare.make_doc("Nobody came.")
    outside.set_ents([], default="outside")
    DocBin(docs=[outside]).to_disk(folder / "outside.spacy")
    for model, data, message in (
        ("bare", "dev.spacy", "no component that can be calibrated. It has: sentencizer"),
        ("nlp", "none.spacy", "Can't find the data"),
        ("none", "dev.spacy", "Can't find the pipeline"),
        ("nlp", "outside.spacy", "can't be calibrated: of 1 texts, 1 are annotated and 0"),
    ):
        result = run(folder / model, folder / data, folder / "out")
        assert result.exit_code == 1 and message in result.output.replace("\n", " ")
        assert "Reading" not in result.output
    assert not (folder / "out").exists()
