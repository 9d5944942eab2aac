"""`spacy llmner compare`: the same texts, one process, one LLM."""

import json
import mmap
import os
import re

import pytest
import spacy
from spacy.scorer import get_ner_prf
from spacy.tokens import DocBin, Span
from spacy.training import Example
from typer.testing import CliRunner

from spacy_llmner.cli import app
from spacy_llmner.cli.compare import assemble
from spacy_llmner.cli.compare_page import comparison_page
from spacy_llmner.cli.peak import peak_mb, reset_peak
from spacy_llmner.llm import registry as pool
from tests.helpers import TEXTS, TRAIN, make_examples


@pytest.fixture
def folders(tiny_llm, tmp_path):
    """Two untrained pipelines with the same LLM, and annotated texts."""
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
    assert scores["ra_it_ner_1"]["name"] == ["other", "ra_it_ner", "llama"]
    assert "docs/s" in result.output and "…" not in result.output  # nothing is cut
    lines = [line.split() for line in result.output.splitlines()]
    assert lines[lines.index(["one", "other"]) :][:3] == [
        ["one", "other"],
        ["ra_it_ner", "ra_it_ner"],
        ["llama", "llama", "combined"],
    ]
    page = html.read_text()
    assert "<title>Comparison on test.spacy</title>" in page
    # Each text as it should be, as both marked it, and combined.
    assert page.count("<article>") == len(TRAIN) and page.count("<section>") == 4 * len(TRAIN)
    name = '<b class="name">other<small>ra_it_ner</small><small>llama</small></b>'
    assert page.count(name) == len(TEXTS) + 1  # also in the table of scores
    assert "<script" not in page and "Content-Security-Policy" in page


def test_equal_names_are_numbered(folders, other_llm):
    """Pipelines of one folder name, component and LLM; one has another LLM."""
    models = []
    for parent in ("x", "y", "z"):
        nlp = spacy.load(folders / "one")
        if parent == "z":
            nlp.config["components"]["ra_it_ner"]["llm"]["name"] = other_llm
        (folders / parent).mkdir()
        nlp.to_disk(folders / parent / "probe")
        models.append(str(folders / parent / "probe"))
    nlp, names = assemble(models)
    assert nlp.pipe_names == list(names)
    assert list(names.values()) == [
        ["probe (1)", "ra_it_ner", "llama"],
        ["probe (2)", "ra_it_ner", "llama"],
        ["probe", "ra_it_ner", "other"],
        ["combined"],
    ]


def test_page(folders, tmp_path):
    """Texts with errors come first, and everything is escaped."""
    nlp = spacy.blank("en")
    gold, found = nlp.make_doc("Bo <i>& Ann"), nlp.make_doc("Bo <i>& Ann")
    gold.set_ents([Span(gold, 0, 1, label="PER")], default="outside")
    found.set_ents([Span(found, 0, 1, label="LOC")], default="outside")
    examples = [Example(gold, gold), Example(found, gold)]
    scores = {**get_ner_prf(examples), "docs_per_second": 1.0}
    results = {"a": {"name": ["<b>", "ner", "llm"], "examples": examples, **scores}}
    page = comparison_page(nlp, tmp_path / "<data>.spacy", results)
    assert re.findall(r"<h3>(.*?)</h3>", page) == ["Document 2", "Document 1"]
    assert "<b>wrong label</b> Bo (PER -&gt; LOC)" in page
    assert "&lt;data&gt;.spacy" in page and "<data>" not in page and "<i>&" not in page
    assert '<b class="name">&lt;b&gt;<small>ner</small><small>llm</small></b>' in page


def test_documents_with_labels_of_their_own(folders):
    """The components have no labels, so those of the Docs are requested, even for the first text."""
    for name in ("one", "other"):
        nlp = spacy.load(folders / name)
        nlp.get_pipe("ra_it_ner").set_labels([])
        nlp.to_disk(folders / name)
    docs = [eg.reference for eg in make_examples(spacy.blank("en"))]
    for doc in docs:
        doc._.llmner_labels = ["PER"]
    DocBin(docs=docs, store_user_data=True).to_disk(folders / "test.spacy")
    result = run(folders / "test.spacy", folders / "one", folders / "other")
    assert result.exit_code == 0, result.output
    command = ["evaluate", folders / "one", folders / "test.spacy"]
    result = CliRunner().invoke(app, list(map(str, command)))
    assert result.exit_code == 0, result.output


def test_peaks(folders):
    result = run(folders / "test.spacy", folders / "one", "-o", folders / "out.json")
    assert "peak MB" in result.output and "GPU" not in result.output
    scores = json.loads((folders / "out.json").read_text())
    for r in scores.values():
        assert r["peak_mb"] > 50 and r["gpu_peak_mb"] is None


@pytest.mark.skipif(not os.access("/proc/self/clear_refs", os.W_OK), reason="Linux tells it")
def test_a_peak_is_of_its_own_time():
    """Memory that was freed before the measurement doesn't count. Memory that is freed during it does."""
    big = pages(40 << 20)
    reset_peak()
    high = peak_mb()
    big.close()
    reset_peak()
    low = peak_mb()
    assert low < high - 30
    pages(40 << 20).close()
    assert peak_mb() > low + 30


def pages(n):
    """RETURNS (mmap): Memory that is returned to the system when it is closed. (malloc may keep it.)"""
    block = mmap.mmap(-1, n)
    for start in range(0, n, mmap.PAGESIZE):
        block[start] = 1
    return block


def test_pipelines_that_combine(folders):
    """The llmner_combine of a pipeline is not compared, whatever its name."""
    for model, name in (("one", "combined"), ("other", "llmner_combine")):
        nlp = spacy.load(folders / model)
        config = {"keys": ["llmner"], "min_votes": 1, "spans_key": "both"}
        nlp.add_pipe("llmner_combine", name=name, config=config)
        nlp.to_disk(folders / f"{model}_combining")
    models = [folders / "one_combining", folders / "other_combining"]
    result = run(folders / "test.spacy", *models, "-o", folders / "out.json")
    assert result.exit_code == 0, result.output
    scores = json.loads((folders / "out.json").read_text())
    assert list(scores) == ["ra_it_ner", "ra_it_ner_1", "combined"]


def test_limit(folders):
    html = folders / "page.html"
    assert not run(folders / "test.spacy", folders / "one", "--limit", 2, "--html", html).exit_code
    assert html.read_text().count('<b class="name">reference</b>') == 2


def test_a_pipeline_of_something_else(folders):
    spacy.blank("en").to_disk(folders / "blank")
    result = run(folders / "test.spacy", folders / "blank")
    assert result.exit_code == 1 and "has no component of spacy-llmner" in result.output
    result = run(folders / "none.spacy", folders / "one")
    assert result.exit_code == 1 and "Can't find the data" in result.output
