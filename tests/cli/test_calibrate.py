"""`spacy llmner calibrate`: what can't be calibrated is an error before any text is read."""

import pytest
import spacy
from spacy.tokens import DocBin
from thinc.api import Config
from typer.testing import CliRunner

from spacy_llmner.cli import app
from spacy_llmner.cli import calibrate as module
from tests.helpers import make_examples


@pytest.fixture
def data(tmp_path):
    docs = [eg.reference for eg in make_examples(spacy.blank("en"))]
    DocBin(docs=docs).to_disk(tmp_path / "dev.spacy")
    return tmp_path / "dev.spacy"


def fails(message, model, data):
    result = CliRunner().invoke(app, ["calibrate", str(model), str(data), str(model / "out")])
    assert result.exit_code == 1
    assert message in result.stderr and result.stderr.count("\n") == 1
    assert result.stdout == ""  # not "Reading 6 texts"
    assert not (model / "out").exists()


def save(folder, factory, **config):
    nlp = spacy.blank("en")
    nlp.add_pipe(factory, config=config)
    nlp.to_disk(folder)
    return folder


@pytest.mark.parametrize("factory", ["ember_probe", "padellm_ner", "sentencizer"])
def test_pipeline_without_a_component_to_calibrate(factory, data, tiny_llm, tmp_path, monkeypatch):
    config = {} if factory == "sentencizer" else {"llm": tiny_llm}
    model = save(tmp_path / "nlp", factory, **config)
    monkeypatch.setattr(module, "read_examples", None)  # not called
    fails(f"no component that can be calibrated. It has: {factory}", model, data)


def test_component_without_examples(data, tiny_llm, tmp_path):
    model = save(tmp_path / "nlp", "ra_it_ner", llm=tiny_llm, labels=["PER"])
    fails("'ra_it_ner' can't be calibrated: it has 0 examples", model, data)


def test_component_without_labels(data, pipelines, tmp_path):
    pipelines("ra_it_ner").to_disk(tmp_path / "nlp")
    nlp = spacy.load(tmp_path / "nlp")
    nlp.get_pipe("ra_it_ner").set_labels([])
    nlp.to_disk(tmp_path / "nlp")
    fails("'ra_it_ner' has no labels to look for", tmp_path / "nlp", data)
    voters = {"a": {"@misc": "spacy_llmner.Voter.v1", "llm": "none"}}
    model = save(tmp_path / "ensemble", "el4ner_ensemble", llms=voters)
    fails("'el4ner_ensemble' has no labels", model, data)


def test_component_whose_llm_is_missing(data, pipelines, tmp_path):
    pipelines("ra_it_ner").to_disk(tmp_path / "nlp")
    config = Config().from_disk(tmp_path / "nlp" / "config.cfg", interpolate=False)
    config["components"]["ra_it_ner"]["llm"]["name"] = str(tmp_path / "none")
    config.to_disk(tmp_path / "nlp" / "config.cfg")
    fails("Can't find the LLM", tmp_path / "nlp", data)
    voters = {"a": {"@misc": "spacy_llmner.Voter.v1", "llm": str(tmp_path / "none")}}
    ensemble = {"llms": voters, "labels": ["PER"], "k": 0, "retrieval": "none"}
    fails("Can't find the LLM", save(tmp_path / "other", "el4ner_ensemble", **ensemble), data)
