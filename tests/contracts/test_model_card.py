"""The model card in meta.json: what a saved pipeline is, also in the README that `spacy package` writes."""

import pytest
import spacy
import srsly
from spacy.cli.init_config import init_config
from spacy.tokens import DocBin
from spacy.training.initialize import init_nlp
from spacy.training.loop import train

from spacy_llmner import __version__
from spacy_llmner.pipeline.model_card import CARD, UsedModel, update_card
from tests.helpers import TRAIN, make_examples

FIELDS = ("description", "sources", "notes", "requirements")


def meta_of(folder):
    return srsly.read_json(folder / "meta.json")


def size_of(data):
    """RETURNS (Dict): The counts in the card."""
    docs = [spacy.blank("en")(text) for text, _ in data]
    return {
        "texts": len(data),
        "tokens": sum(map(len, docs)),
        "entities": sum(len(ents) for _, ents in data),
    }


def test_saved(component, trained, tmp_path):
    """The card has the LLM, the size of the training data and the requirement."""
    trained.to_disk(tmp_path)
    meta = meta_of(tmp_path)
    facts = meta[CARD]["components"][component.name]
    assert facts["factory"] == component.name
    assert facts["corpus"] == size_of(component.data)
    assert len([m for m in facts["models"] if m["use"].startswith("LLM")]) == component.n_llms
    for model in facts["models"]:
        assert model["name"] in meta["notes"] and model["name"] in str(meta["sources"])
        if model["use"].startswith("LLM"):
            assert model["kind"] == "folder" and "/" not in model["name"]
            assert model["fingerprint"].startswith("2-") and model["fingerprint"] in meta["notes"]
    assert "LOC, PER" in meta["description"] and component.name in meta["description"]
    (requirement,) = meta["requirements"]
    assert requirement.startswith(f"spacy-llmner>={__version__},<")
    assert str(size_of(component.data)["tokens"]) in meta["notes"]


def test_saved_again(component, trained, tmp_path):
    """Nothing is added twice."""
    trained.to_disk(tmp_path / "one")
    spacy.load(tmp_path / "one").to_disk(tmp_path / "two")
    spacy.load(tmp_path / "two").to_disk(tmp_path / "two")
    assert meta_of(tmp_path / "one") == meta_of(tmp_path / "two")


@pytest.fixture
def untrained(tiny_llm):
    nlp = spacy.blank("en")
    llm = {"@misc": "spacy_llmner.LLM.v1", "name": tiny_llm, "device": "cpu"}
    nlp.add_pipe("padellm_ner", config={"llm": llm})
    return nlp


def test_own_values_win(untrained, tmp_path):
    own = {"description": "Mine.", "sources": ["A book"], "notes": "None.", "requirements": ["x"]}
    untrained.meta.update(own)
    untrained.to_disk(tmp_path)
    assert {field: meta_of(tmp_path)[field] for field in FIELDS} == own
    # Also if they were changed after the card was written.
    untrained.meta.update(dict.fromkeys(FIELDS))
    untrained.to_disk(tmp_path)
    nlp = spacy.load(tmp_path)
    assert nlp.meta["description"] != "Mine."
    nlp.meta["description"] = "Yours."
    nlp.get_pipe("padellm_ner").add_label("TOWN")
    nlp.to_disk(tmp_path)
    meta = meta_of(tmp_path)
    assert meta["description"] == "Yours."
    assert "TOWN" in meta[CARD]["fields"]["description"] and "llama" in meta["notes"]


def test_sourced_and_removed(untrained, tmp_path):
    """The card is about the components that the saved pipeline has, by the names that they have there."""
    nlp = spacy.blank("en")
    nlp.add_pipe("padellm_ner", name="people", config={"llm": "smollm2-135m-instruct"})
    nlp.add_pipe("padellm_ner", name="towns", source=untrained)
    nlp.to_disk(tmp_path)
    meta = meta_of(tmp_path)
    assert list(meta[CARD]["components"]) == ["people", "towns"]
    assert [source["name"] for source in meta["sources"]] == [
        "smollm2-135m-instruct (LLM, not included)",
        "llama (LLM, not included)",
    ]
    assert meta["sources"][0]["license"] == "Apache-2.0"
    assert "spacy llmner download smollm2-135m-instruct" in meta["notes"]
    assert "none, or not known" in meta["notes"]
    nlp = spacy.load(tmp_path)
    nlp.remove_pipe("people")
    nlp.to_disk(tmp_path)
    assert list(meta_of(tmp_path)[CARD]["components"]) == ["towns"]
    assert "smollm2" not in str(meta_of(tmp_path))


def test_hub_id(untrained, tmp_path):
    nlp = spacy.blank("en")
    llm = {"@misc": "spacy_llmner.LLM.v1", "name": "someone/llm", "revision": "v2"}
    nlp.add_pipe("padellm_ner", config={"llm": llm})
    nlp.to_disk(tmp_path)
    (model,) = meta_of(tmp_path)[CARD]["components"]["padellm_ner"]["models"]
    assert model["url"] == "https://huggingface.co/someone/llm" and model["revision"] == "v2"


def test_without_a_pipeline(untrained, tmp_path):
    """A component that is saved by itself leaves other files alone."""
    untrained.get_pipe("padellm_ner").to_disk(tmp_path / "alone")
    assert not (tmp_path / "meta.json").exists()
    (tmp_path / "meta.json").write_text("{}")
    update_card(tmp_path / "alone", "padellm_ner", [UsedModel("LLM", "x")], None)
    assert (tmp_path / "meta.json").read_text() == "{}"


def test_spacy_train_and_package(tiny_llm, tmp_path, run):
    """`spacy package` writes the card and spaCy's scores into the README."""
    nlp = spacy.blank("en")
    docs = [eg.reference for eg in make_examples(nlp)]
    DocBin(docs=docs).to_disk(tmp_path / "train.spacy")
    config = init_config(lang="en", pipeline=["ner"])
    config["components"] = {
        "ember_probe": {
            "factory": "ember_probe",
            "llm": {"@misc": "spacy_llmner.LLM.v1", "name": tiny_llm, "device": "cpu"},
            "model": {"@architectures": "spacy_llmner.EmberProbe.v1", "width": 16},
            "feature_cache": "off",
        }
    }
    config["nlp"]["pipeline"] = ["ember_probe"]
    corpus = str(tmp_path / "train.spacy")
    config["paths"].update(train=corpus, dev=corpus)
    config["training"].update(max_steps=2, eval_frequency=1)
    (tmp_path / "out").mkdir()
    train(init_nlp(config.interpolate()), tmp_path / "out")
    meta = meta_of(tmp_path / "out" / "model-best")
    assert meta[CARD]["components"]["ember_probe"]["corpus"] == size_of(TRAIN)
    assert meta["performance"]["ents_f"] >= 0.0
    options = ("--name", "entities", "--version", "1.2.3", "--build", "none")
    run("package", tmp_path / "out" / "model-best", tmp_path, *options)
    folder = tmp_path / "en_entities-1.2.3"
    readme = (folder / "README.md").read_text()
    for text in (meta["description"], meta["notes"], "`ENTS_F`", "### Label Scheme", "`PER`"):
        assert text in readme
    requirements = meta_of(folder)["requirements"]
    assert [r for r in requirements if r.startswith("spacy-llmner")] == meta["requirements"]


def test_streamed_corpus(tiny_llm):
    """The size of a corpus that is streamed is not known."""
    nlp = spacy.blank("en")
    llm = {"@misc": "spacy_llmner.LLM.v1", "name": tiny_llm, "device": "cpu"}
    pipe = nlp.add_pipe("ember_probe", config={"llm": llm, "feature_cache": "off"})
    nlp.config["training"]["max_epochs"] = -1
    nlp.initialize(lambda: make_examples(nlp))
    assert pipe.cfg["corpus"] is None
