"""spaCy's commands on a saved ensemble."""

import json
import re

import pytest
import spacy
from spacy.tokens import DocBin

from tests.el4ner_ensemble.helpers import MockVoter, config_of
from tests.helpers import TEXTS, TRAIN, assert_same, entities, make_examples

GOLD = {
    name: {label: 0.9}
    for text, ents in TRAIN
    for start, end, label in ents
    for name in [text[start:end]]
}


def make_knowing():
    """A voter that finds all entities. It classifies "tea" as a place, but doesn't verify this."""
    return MockVoter({**GOLD, "tea": {"LOC": 0.9}}, true={("tea", "LOC"): 0.3})


spacy.registry.misc("el4ner_tests.Knowing.v1", func=make_knowing)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    path = tmp_path_factory.mktemp("corpus") / "corpus.spacy"
    docs = [eg.reference for eg in make_examples(spacy.blank("en"))]
    DocBin(docs=docs).to_disk(path)
    return path


@pytest.fixture(scope="module")
def knowing(tmp_path_factory):
    """Folder of an ensemble that finds the correct entities."""
    nlp = spacy.blank("en")
    config = {**config_of({}), "llms": {"a": {"@misc": "el4ner_tests.Knowing.v1"}}}
    nlp.add_pipe("el4ner_ensemble", config=config)
    nlp.initialize(lambda: make_examples(nlp))
    folder = tmp_path_factory.mktemp("knowing")
    nlp.to_disk(folder)
    return folder


def test_evaluate(run, knowing, corpus, tmp_path):
    run("evaluate", knowing, corpus, "--output", tmp_path / "scores.json")
    scores = json.loads((tmp_path / "scores.json").read_text())
    # All correct entities, and "tea".
    assert scores["ents_r"] == 1.0 and scores["ents_p"] == pytest.approx(8 / 9)
    assert scores["ents_per_type"]["PER"]["f"] == 1.0
    assert 0.0 <= scores["ents_ece"] <= 1.0


def test_find_threshold(run, knowing, corpus):
    """Entities below the best threshold are dropped, and nothing else."""
    what = ("el4ner_ensemble", "verify_threshold", "ents_p")
    out = run("find-threshold", knowing, corpus, *what, "--n_trials", "3")
    rows = [line.split() for line in out.splitlines() if re.match(r"[\d.]+ +[\d.]+", line)]
    assert [float(threshold) for threshold, _ in rows] == [0.0, 0.5, 1.0]
    assert [float(score) for _, score in rows] == pytest.approx([8 / 9, 1.0, 0.0], abs=0.01)


def test_apply(run, two, tmp_path):
    """The LLMs read the texts in batches, and give the same answers."""
    two.to_disk(tmp_path / "pipeline")
    texts = tmp_path / "texts.jsonl"
    texts.write_text("".join(json.dumps({"text": text}) + "\n" for text in TEXTS[:3]))
    run("apply", tmp_path / "pipeline", texts, tmp_path / "out.spacy")
    docs = list(DocBin().from_disk(tmp_path / "out.spacy").get_docs(two.vocab))
    assert [doc.text for doc in docs] == TEXTS[:3] and any(doc.ents for doc in docs)
    assert [entities(doc) for doc in docs] == [entities(two(text)) for text in TEXTS[:3]]


def test_package(run, two, tmp_path):
    """A package can be loaded. It has the names of the LLMs, but not their weights."""
    two.to_disk(tmp_path / "pipeline")
    run("package", tmp_path / "pipeline", tmp_path, "--name", "votes", "--build", "none")
    (made,) = tmp_path.glob("en_votes-*")
    meta = json.loads((made / "meta.json").read_text())
    assert any(line.startswith("spacy-llmner") for line in meta["requirements"])
    assert not [path for path in made.rglob("*") if path.name == "model.safetensors"]
    nlp = spacy.load(made / "en_votes" / made.name)
    for text in TEXTS[:2]:
        assert_same(nlp(text), two(text))
