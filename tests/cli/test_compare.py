"""`spacy llmner compare`: the same texts, one process, one LLM."""

import json

import pytest
import spacy
from ner_helpers import TEXTS, TRAIN, make_examples
from spacy.tokens import DocBin
from typer.testing import CliRunner

from spacy_llmner.cli import app
from spacy_llmner.llm import pool


@pytest.fixture
def folders(tiny_llm, tmp_path):
    """Two pipelines that ask the same LLM without training, and annotated texts."""
    shared = {"@misc": "spacy_llmner.LLM.v1", "name": tiny_llm, "device": "cpu"}
    for name, threshold in (("one", 0.0), ("other", 0.2)):
        nlp = spacy.blank("en")
        config = {"llm": shared, "labels": ["PER", "LOC"], "list_threshold": threshold}
        retrieval = {"@misc": "spacy_llmner.Retrieval.v1", "k": 0}
        nlp.add_pipe("ra_it_ner", config={**config, "retrieval": retrieval})
        nlp.to_disk(tmp_path / name)
    examples = make_examples(spacy.blank("en"))
    DocBin(docs=[eg.reference for eg in examples]).to_disk(tmp_path / "test.spacy")
    return tmp_path


def run(*args):
    return CliRunner().invoke(app, ["compare", *map(str, args)])


def test_compare(folders):
    pool.clear()
    out, html = folders / "x" / "out.json", folders / "x" / "page.html"
    result = run(
        folders / "test.spacy", folders / "one", folders / "other", "-o", out, "--html", html
    )
    assert result.exit_code == 0, result.output
    assert len(pool.loaded()) == 1
    scores = json.loads(out.read_text())
    assert list(scores) == ["ra_it_ner", "ra_it_ner_1", "combined"]
    for r in scores.values():
        assert r["docs_per_second"] > 0 and 0 <= r["ents_f"] <= 1
    assert "docs/s" in result.output and "combined" in result.output
    page = html.read_text()
    # Each text as it should be, as both marked it, and combined.
    assert page.count("<tr>") == 4 * len(TRAIN)
    assert page.count("<th>ra_it_ner_1</th>") == len(TEXTS)


def test_limit(folders):
    html = folders / "page.html"
    assert not run(folders / "test.spacy", folders / "one", "--limit", 2, "--html", html).exit_code
    assert html.read_text().count("<th>reference</th>") == 2


def test_a_pipeline_of_something_else(folders):
    spacy.blank("en").to_disk(folders / "blank")
    result = run(folders / "test.spacy", folders / "blank")
    assert result.exit_code == 1 and "has no component of spacy-llmner" in result.output
    result = run(folders / "none.spacy", folders / "one")
    assert result.exit_code == 1 and "Can't find the data" in result.output
