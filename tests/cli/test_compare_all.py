"""`spacy llmner compare` with `el4ner_ensemble`: alone, after a tagger, and with all other components."""

import json

import pytest
import spacy
from spacy.tokens import DocBin
from typer.testing import CliRunner

from spacy_llmner.cli import app
from spacy_llmner.cli.compare import compare
from spacy_llmner.cli.compare_ways import load_ways
from spacy_llmner.el4ner_ensemble.voter import session
from spacy_llmner.llm import registry as pool
from tests.helpers import TRAIN, make_examples

OTHERS = ["ember_probe", "padellm_ner", "ra_it_ner"]
NOT_SCORES = {
    *("name", "source", "components", "llms", "docs_per_second", "words_per_second"),
    *("peak_mb", "gpu_peak_mb"),
}


@pytest.fixture(scope="module", autouse=True)
def short_lists():
    """Keep the lists of the random LLMs short, since they would fill them."""
    usual, session.MAX_LIST_TOKENS = session.MAX_LIST_TOKENS, 16
    yield
    session.MAX_LIST_TOKENS = usual


@pytest.fixture(scope="module")
def folders(make_tiny, tmp_path_factory):
    """A pipeline for each component, all with one LLM, and annotated texts."""
    root = tmp_path_factory.mktemp("compared")
    make_tiny(root / "llm", "llama", 7)
    config = json.loads((root / "llm" / "config.json").read_text())
    config["max_position_embeddings"] = 2048
    (root / "llm" / "config.json").write_text(json.dumps(config))
    llm = {"@misc": "spacy_llmner.LLM.v1", "name": str(root / "llm"), "device": "cpu"}
    ember = {"@architectures": "spacy_llmner.EmberProbe.v1", "width": 16}
    retrieval = {"@misc": "spacy_llmner.Retrieval.v1", "k": 0}
    voters = {"a": {"@misc": "spacy_llmner.Voter.v1", "llm": llm}}
    ensemble = {
        "llms": voters,
        "encoder": {"@misc": "spacy_llmner.LLMEncoder.v1", "llm": llm},
        "k": 1,
        "pre_extract": "gold",
        "verify_threshold": 0.0,
    }
    settings = {
        "ember_probe": {"llm": llm, "feature_cache": "off", "model": ember},
        "padellm_ner": {"llm": llm},
        "ra_it_ner": {"llm": llm, "retrieval": retrieval, "list_threshold": 0.0},
        "el4ner_ensemble": ensemble,
    }
    for name, cfg in settings.items():
        nlp = spacy.blank("en")
        nlp.add_pipe(name, config=cfg)
        nlp.initialize(lambda nlp=nlp: make_examples(nlp))
        nlp.to_disk(root / name)
    tagged = spacy.blank("en")
    ruler = tagged.add_pipe("attribute_ruler", name="tags")
    ruler.add([[{}]], {"POS": "ADV"})
    ruler.add([[{"ORTH": "Varnholm"}]], {"POS": "PROPN"})
    tagged.add_pipe("el4ner_ensemble", source=spacy.load(root / "el4ner_ensemble"))
    tagged.to_disk(root / "tagged")
    docs = [eg.reference for eg in make_examples(spacy.blank("en"))]
    DocBin(docs=docs).to_disk(root / "test.spacy")
    return root


def run(folders, *names):
    """RETURNS (Dict): The scores, by component."""
    out = folders / "out.json"
    args = ["compare", folders / "test.spacy", *(folders / name for name in names), "-o", out]
    result = CliRunner().invoke(app, list(map(str, args)))
    assert result.exit_code == 0, result.output
    return json.loads(out.read_text())


def scores_of(result):
    return {key: value for key, value in result.items() if key not in NOT_SCORES}


def group_of(doc, key):
    """RETURNS (Dict): Scores by span."""
    group = doc.spans[key]
    return {(s.start, s.end, s.label_): x for s, x in zip(group, group.attrs["scores"])}


def close_to(scores):
    return pytest.approx(scores, abs=1e-4)


def test_an_ensemble_with_its_pool(folders):
    compared = run(folders, "el4ner_ensemble")
    assert list(compared) == ["el4ner_ensemble", "combined"]
    one, both = map(scores_of, compared.values())
    assert one == both
    alone = spacy.load(folders / "el4ner_ensemble")
    docs = list(alone.pipe(text for text, _ in TRAIN))
    found = {(k, e.start_char, e.end_char, e.label_) for k, d in enumerate(docs) for e in d.ents}
    gold = {(k, *ent) for k, (_, ents) in enumerate(TRAIN) for ent in ents}
    assert found
    assert one["ents_p"] == pytest.approx(len(found & gold) / len(found))
    ways = load_ways([str(folders / "el4ner_ensemble")])
    assert len(ways["el4ner_ensemble"].component.pool) == len(TRAIN)


def test_a_tagger_in_front(folders):
    """The ensemble after the tagger uses its tags."""
    ways = load_ways([str(folders / "tagged")])
    way = ways["el4ner_ensemble"]
    assert way.pipes == ["tags", "el4ner_ensemble"]
    doc = way.nlp("Nobody saw Varnholm.")
    assert [token.pos_ for token in doc] == ["ADV", "ADV", "PROPN", "ADV"]
    results = compare(ways, folders / "test.spacy")
    assert list(results) == ["el4ner_ensemble", "combined"]
    alone = spacy.load(folders / "tagged")
    expected = list(alone.pipe(text for text, _ in TRAIN))
    for doc, eg in zip(expected, results["el4ner_ensemble"]["examples"]):
        assert group_of(eg.predicted, "llmner") == close_to(group_of(doc, "llmner"))


def test_each_ensemble_has_its_own_tagger(folders):
    """Two pipelines have different taggers with the same name."""
    other = spacy.load(folders / "tagged")
    other.get_pipe("tags").clear()
    other.get_pipe("tags").add([[{}]], {"POS": "PRON"})
    other.to_disk(folders / "other tags")
    ways = load_ways([str(folders / name) for name in ("tagged", "other tags")])
    noted = []
    for way in ways.values():
        read = way.component.predict
        way.component.predict = lambda docs, read=read: (
            noted.append([token.pos_ for token in docs[0]]) or read(docs)
        )
        way.nlp("Varnholm sings")
    assert noted == [["PROPN", "ADV"], ["PRON", "PRON"]]


def test_all_four(folders):
    """With one LLM, each component finds the same as when it runs alone."""
    pool.clear()
    names = [*OTHERS, "el4ner_ensemble"]
    results = compare(load_ways([str(folders / name) for name in names]), folders / "test.spacy")
    assert list(results) == [*names, "combined"]
    assert len(pool.loaded()) == 1
    for name in names:
        alone = list(spacy.load(folders / name).pipe(text for text, _ in TRAIN))
        found = [group_of(doc, "llmner") for doc in alone]
        docs = [eg.predicted for eg in results[name]["examples"]]
        assert [group_of(doc, "llmner") for doc in docs] == list(map(close_to, found))
        assert any(found) or name not in names[2:]


def test_two_components_in_a_pipeline(folders):
    """Each is compared alone, although both write to the same span group."""
    nlp = spacy.load(folders / "ra_it_ner")
    nlp.add_pipe("el4ner_ensemble", source=spacy.load(folders / "el4ner_ensemble"))
    nlp.to_disk(folders / "both")
    both = run(folders, "both")
    assert list(both) == ["ra_it_ner", "el4ner_ensemble", "combined"]
    for name in ("ra_it_ner", "el4ner_ensemble"):
        assert both[name]["ents_f"] == close_to(run(folders, name)[name]["ents_f"])


def test_two_ensembles(folders):
    """If an ensemble is compared with itself, both find the same."""
    one, other, both = map(scores_of, run(folders, *["el4ner_ensemble"] * 2).values())
    assert one == other == both
