"""`spacy llmner compare`: the same texts, one process, one LLM."""

import json
import mmap
import os
import re

import pytest
import spacy
from spacy.language import Language
from spacy.scorer import get_ner_prf
from spacy.tokenizer import Tokenizer
from spacy.tokens import DocBin, Span
from spacy.training import Example
from typer.testing import CliRunner

from spacy_llmner.cli import app
from spacy_llmner.cli.compare import compare
from spacy_llmner.cli.compare_page import comparison_page
from spacy_llmner.cli.compare_ways import load_ways
from spacy_llmner.cli.peak import peak_mb, reset_peak
from spacy_llmner.llm import registry as pool
from tests.helpers import TEXTS, TRAIN, make_examples


@pytest.fixture
def folders(tiny_llm, tmp_path):
    """Two untrained pipelines with the same LLM, one with an entity ruler, and annotated texts."""
    shared = {"@misc": "spacy_llmner.LLM.v1", "name": tiny_llm, "device": "cpu"}
    for name, threshold in (("one", 0.0), ("other", 0.2)):
        nlp = spacy.blank("en")
        config = {"llm": shared, "labels": ["PER", "LOC"], "list_threshold": threshold}
        retrieval = {"@misc": "spacy_llmner.Retrieval.v1", "k": 0}
        nlp.add_pipe("ra_it_ner", config={**config, "retrieval": retrieval})
        nlp.to_disk(tmp_path / name)
    ruler = spacy.blank("en")
    patterns = [{"label": "LOC", "pattern": "Varnholm"}, {"label": "PER", "pattern": "Tea"}]
    ruler.add_pipe("entity_ruler").add_patterns(patterns)
    ruler.to_disk(tmp_path / "ruler")
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
        assert r["words_per_second"] > r["docs_per_second"] > 0 and 0 <= r["ents_f"] <= 1
    assert scores["ra_it_ner_1"]["name"] == ["other", "ra_it_ner", "llama"]
    assert (
        "docs/s" in result.output and "words/s" in result.output and "…" not in result.output
    )  # nothing is cut
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
    assert f"folder {folders / 'other'}" in page
    assert f"other: folder {folders / 'other'}; ra_it_ner; LLM llama" in result.output
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
    ways = load_ways(models)
    assert list(ways) == ["ra_it_ner", "ra_it_ner_1", "ra_it_ner_2"]
    assert [way.name for way in ways.values()] == [
        ["probe (1)", "ra_it_ner", "llama"],
        ["probe (2)", "ra_it_ner", "llama"],
        ["probe", "ra_it_ner", "other"],
    ]


def test_components_with_a_number(folders, tmp_path):
    """None of them is left out."""
    nlp = spacy.load(folders / "one")
    nlp.add_pipe("ra_it_ner", name="ra_it_ner_2", source=spacy.load(folders / "one"))
    nlp.to_disk(tmp_path / "two")
    ways = load_ways([str(tmp_path / "two"), str(folders / "one")])
    assert list(ways) == ["ra_it_ner", "ra_it_ner_2", "ra_it_ner_3"]


def test_page(folders, tmp_path):
    """Texts with errors come first, and everything is escaped."""
    nlp = spacy.blank("en")
    gold, found = nlp.make_doc("Bo <i>& Ann"), nlp.make_doc("Bo <i>& Ann")
    gold.set_ents([Span(gold, 0, 1, label="PER")], default="outside")
    found.set_ents([Span(found, 0, 1, label="LOC")], default="outside")
    examples = [Example(gold, gold), Example(found, gold)]
    scores = {**get_ner_prf(examples), "docs_per_second": 1.0, "words_per_second": 4.0}
    facts = {"source": "folder <u>", "components": ["ner"], "llms": ["llm"]}
    name = ["<b>", "ner", "llm"]
    results = {"a": {"name": name, **facts, "examples": examples, **scores}}
    page = comparison_page(nlp, tmp_path / "<data>.spacy", results)
    assert re.findall(r"<h3>(.*?)</h3>", page) == ["Document 2", "Document 1"]
    assert "<b>wrong label</b> Bo (PER -&gt; LOC)" in page
    assert "&lt;data&gt;.spacy" in page and "<data>" not in page and "<i>&" not in page
    assert "folder &lt;u&gt;" in page
    # Where they differ: an entity a row, with the reference and each pipeline.
    assert page.count("Where they differ") == 1
    assert re.findall(
        r'<th scope="row">Bo <small>(\w+)</small></th><td>(.)</td><td>(.*?)</td>', page
    ) == [
        ("LOC", "–", '<span class="wrong">✓</span>'),
        ("PER", "✓", '<span class="wrong">–</span>'),
    ]
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


def test_pipelines_of_other_components(folders):
    """A pipeline without components of this package is compared as a whole, by its doc.ents."""
    models = [folders / "ruler", folders / "one"]
    html, out = folders / "page.html", folders / "out.json"
    result = run(folders / "test.spacy", *models, "--html", html, "-o", out)
    assert result.exit_code == 0, result.output
    assert f"ruler: folder {folders / 'ruler'}; entity_ruler; no LLM" in result.output
    scores = json.loads(out.read_text())
    assert list(scores) == ["ruler", "ra_it_ner", "combined"]
    assert scores["ruler"]["components"] == ["entity_ruler"] and not scores["ruler"]["llms"]
    # It finds both of Varnholm and one Tea: 2 right, 1 wrong, 8 in the data.
    n_gold = sum(len(ents) for _, ents in TRAIN)
    assert scores["ruler"]["ents_p"] == pytest.approx(2 / 3)
    assert scores["ruler"]["ents_r"] == pytest.approx(2 / n_gold)
    assert '<b class="name">ruler<small>entity_ruler</small></b>' in html.read_text()


def test_other_tokens(folders):
    """What is found is compared and combined by characters, however the pipelines split words."""
    nlp = spacy.load(folders / "ruler")
    nlp.tokenizer = Tokenizer(nlp.vocab, token_match=re.compile(r"\S+").match)
    nlp.get_pipe("entity_ruler").add_patterns([{"label": "LOC", "pattern": "Varnholm."}])
    nlp.to_disk(folders / "spaces")
    models = [folders / "ruler", folders / "spaces"]
    out = folders / "out.json"
    assert run(folders / "test.spacy", *models, "-o", out).exit_code == 0
    scores = json.loads(out.read_text())
    # "Varnholm." has one character too many, and Varnholm is found by one pipeline twice, by both once.
    assert scores["ruler"]["ents_per_type"]["LOC"]["p"] == 1.0
    assert scores["combined"]["ents_per_type"]["LOC"]["r"] == pytest.approx(1 / 4)


def test_votes(folders):
    """With one vote, everything that a pipeline finds is in the combined result."""
    out = folders / "out.json"
    options = ("--min-votes", 1, "-o", out)
    assert (
        run(folders / "test.spacy", folders / "ruler", folders / "ruler", *options).exit_code == 0
    )
    scores = json.loads(out.read_text())
    assert list(scores) == ["ruler", "ruler_1", "combined"]
    assert scores["combined"]["ents_f"] == scores["ruler"]["ents_f"] > 0


def test_an_installed_package(folders, monkeypatch):
    """A pipeline can be named by its package."""
    folder = folders / "site"
    package(spacy.load(folders / "ruler"), folder)
    monkeypatch.syspath_prepend(str(folder))
    result = run(folders / "test.spacy", "en_towns", "-o", folders / "out.json")
    assert result.exit_code == 0, result.output
    assert "en_towns: package en_towns 1.2.3; entity_ruler; no LLM" in result.output


def package(nlp, folder):
    """Write an installed package with a pipeline, as pip would."""
    main = folder / "en_towns"
    nlp.meta.update(name="towns", version="1.2.3")
    main.mkdir(parents=True)
    nlp.to_disk(main / "en_towns-1.2.3")
    (main / "meta.json").write_text((main / "en_towns-1.2.3" / "meta.json").read_text())
    (main / "__init__.py").write_text(
        "from spacy.util import load_model_from_init_py\n"
        "def load(**overrides):\n    return load_model_from_init_py(__file__, **overrides)\n"
    )
    info = folder / "en_towns-1.2.3.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: en_towns\nVersion: 1.2.3\n")


def test_a_missing_package(folders):
    """A component of a package that isn't installed: the error names both."""
    path = folders / "ruler" / "config.cfg"
    path.write_text(path.read_text().replace('"entity_ruler"\n', '"from_elsewhere"\n'))
    meta = folders / "ruler" / "meta.json"
    meta.write_text(
        json.dumps({**json.loads(meta.read_text()), "requirements": ["no-such-package>=1"]})
    )
    result = run(folders / "test.spacy", folders / "ruler")
    assert result.exit_code == 1
    for text in (
        "[LLMNER186]",
        "'from_elsewhere'",
        "packages are missing: no-such-package>=1.",
        "--code",
    ):
        assert text in result.output
    assert "Available factories" not in result.output


def test_a_component_in_a_file(folders):
    """With --code, a pipeline can have components that the file registers."""
    code = folders / "code.py"
    code.write_text(
        "from spacy.language import Language\n"
        '@Language.component("test_compare_nothing")\n'
        "def nothing(doc):\n    return doc\n"
    )
    nlp = spacy.blank("en")
    nlp.to_disk(folders / "coded")
    config = nlp.config.copy()
    config["nlp"]["pipeline"] = ["test_compare_nothing"]
    config["components"] = {"test_compare_nothing": {"factory": "test_compare_nothing"}}
    config.to_disk(folders / "coded" / "config.cfg")
    assert "[LLMNER186]" in run(folders / "test.spacy", folders / "coded").output
    result = run(folders / "test.spacy", folders / "coded", "--code", code)
    assert result.exit_code == 0, result.output


def test_a_failing_document(folders):
    """A document that a pipeline drops counts as empty, and doesn't shift the others."""
    Language.component("test_compare_fails", func=_fails)
    nlp = spacy.load(folders / "ruler")
    nlp.add_pipe("test_compare_fails")
    nlp.to_disk(folders / "failing")
    ways = load_ways([str(folders / "failing")])
    ways["failing"].nlp.set_error_handler(lambda *args: None)
    results = compare(ways, folders / "test.spacy")
    assert results["failing"]["n_failed"] == 1
    assert [len(eg.predicted.ents) for eg in results["failing"]["examples"]] == [1, 0, 0, 0, 0, 1]


def _fails(doc):
    if "river" in doc.text:
        raise ValueError("no rivers")
    return doc


def test_an_empty_pipeline(folders):
    spacy.blank("en").to_disk(folders / "blank")
    result = run(folders / "test.spacy", folders / "blank")
    assert result.exit_code == 1 and "[LLMNER103]" in result.output
    result = run(folders / "none.spacy", folders / "one")
    assert result.exit_code == 1 and "Can't find the data" in result.output
