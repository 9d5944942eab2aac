"""Pipelines that version 0.1.0 saved before its modules were renamed load, and find what they found.

`data/saved_by_0.1.0.zip` has a tiny random LLM, pipelines with one trained component each, and in
`expected.json` their results: the entities, and all spans with their scores.
"""

import json
import zipfile
from pathlib import Path

import pytest
import spacy

from spacy_llmner.el4ner_ensemble.voter import session

ARCHIVE = Path(__file__).parent / "data" / "saved_by_0.1.0.zip"
PIPELINES = (
    "ember_probe",
    "ember_paper",
    "ember_few_shot",
    "padellm_ner",
    "ra_it_ner",
    "el4ner_ensemble",
)


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    folder = tmp_path_factory.mktemp("saved")
    zipfile.ZipFile(ARCHIVE).extractall(folder)
    return folder / "saved_by_0.1.0"


@pytest.fixture(autouse=True)
def usual_lists(monkeypatch):
    """The tests of the ensemble shorten them for the whole session."""
    monkeypatch.setattr(session, "MAX_LIST_TOKENS", 256)


@pytest.mark.parametrize("name", PIPELINES)
def test_same_entities(saved, name):
    nlp = spacy.load(saved / name, config={"paths.llm": str(saved / "llm")})
    expected = json.loads((saved / "expected.json").read_text())[name]
    assert any(row["ents"] for row in expected)
    for row in expected:
        doc = nlp(row["text"])
        assert [[e.start_char, e.end_char, e.label_] for e in doc.ents] == row["ents"]
        group = doc.spans["llmner"]
        found = [[s.start_char, s.end_char, s.label_] for s in group]
        assert found == [[start, end, label] for start, end, label, _ in row["spans"]]
        scores = [score for *_, score in row["spans"]]
        assert group.attrs["scores"] == pytest.approx(scores, abs=1e-4)


@pytest.mark.parametrize("name", PIPELINES)
def test_saved_again(saved, name, tmp_path):
    nlp = spacy.load(saved / name, config={"paths.llm": str(saved / "llm")})
    nlp.to_disk(tmp_path)
    again = spacy.load(tmp_path, config={"paths.llm": str(saved / "llm")})
    text = "Mira Stone left Port Ellam for Varnholm with Oskar Blum."
    assert [(e.text, e.label_) for e in again(text).ents] == [
        (e.text, e.label_) for e in nlp(text).ents
    ]
