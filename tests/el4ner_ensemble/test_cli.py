"""`spacy train` with the config of the project."""

from pathlib import Path

import pytest
import spacy
from spacy.cli.train import train as train_cli
from spacy.tokens import DocBin
from spacy.util import load_config

from tests.helpers import TEXTS, assert_valid, make_examples

ROOT = Path(__file__).parent.parent.parent
CONFIG = ROOT / "configs" / "el4ner_ensemble.cfg"


@pytest.fixture
def corpus(tmp_path):
    docs = [eg.reference for eg in make_examples(spacy.blank("en"))]
    DocBin(docs=docs).to_disk(tmp_path / "data.spacy")
    return str(tmp_path / "data.spacy")


def test_spacy_train(roomy, corpus, tmp_path):
    """There is one step, in which nothing is trained: the pool is filled, and the dev corpus is scored."""
    overrides = {
        "paths.train": corpus,
        "paths.dev": corpus,
        "paths.llm": roomy[0],
    }
    config = load_config(CONFIG, interpolate=False)
    voters = config["components"]["el4ner_ensemble"]["llms"]
    voters["second"] = {**voters["qwen"], "llm": {**voters["qwen"]["llm"], "name": roomy[1]}}
    config["components"]["el4ner_ensemble"]["encoder"] = {"@misc": "el4ner_tests.Encoder.v1"}
    config.to_disk(tmp_path / "config.cfg")
    train_cli(tmp_path / "config.cfg", tmp_path / "out", overrides=overrides)
    nlp = spacy.load(tmp_path / "out" / "model-best")
    assert nlp.get_pipe("el4ner_ensemble").labels == ("LOC", "PER")
    assert "ents_f" in nlp.meta["performance"]
    for doc in nlp.pipe(TEXTS[:3]):
        assert_valid(doc, doc.text)
