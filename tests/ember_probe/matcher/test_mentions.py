"""ember_probe with mode "mentions": names of any kind, without labels or with the best of some labels."""

import pytest
import spacy

from spacy_llmner.errors import LLMNERError
from tests.ember_probe.helpers import make_sgd

TEXT = "Ada Hale met Bo Lund in Bonn and saw apple in Port Ellam"
# The tiny matcher was trained on towns in all texts, and on people and fruit in half of them.
TOWNS = ["Bonn", "Port Ellam"]
MENTIONS = {"mode": "mentions", "threshold": 0.2}


def found(doc):
    return [(ent.text, ent.label_) for ent in doc.ents]


@pytest.fixture
def nlp(make):
    return make([], MENTIONS)


def test_names_of_any_kind(nlp):
    doc = nlp(TEXT)
    assert nlp.get_pipe("ember_probe").labels == ("ENTITY",)
    assert set(found(doc)) >= {(town, "ENTITY") for town in TOWNS}
    assert all(0 < ent._.llmner_score <= 1 for ent in doc.ents)


def test_the_best_label_of_a_list(make):
    assert set(found(make(["person", "town"], MENTIONS)(TEXT))) >= {(t, "town") for t in TOWNS}


def test_labels_do_not_decide_what_is_found(nlp):
    ember = nlp.get_pipe("ember_probe")
    expected = [(ent.text, ent._.llmner_score) for ent in nlp(TEXT).ents]
    for labels in (["person"], ["fruit", "person", "town"], ["ENTITY"]):
        ember.set_labels(labels)
        ents = nlp(TEXT).ents
        assert [ent.text for ent in ents] == [text for text, _ in expected]
        assert {ent.label_ for ent in ents} <= set(labels)
        scores = [score for _, score in expected]
        assert [ent._.llmner_score for ent in ents] == pytest.approx(scores, abs=1e-5)


def test_a_doc_can_have_its_own_labels(nlp):
    doc = nlp.make_doc(TEXT)
    doc._.llmner_labels = ["person", "town"]
    assert "town" in {ent.label_ for ent in nlp(doc).ents}
    assert {ent.label_ for ent in nlp(TEXT).ents} == {"ENTITY"}


def test_saved_and_loaded(make, tmp_path):
    nlp = make(["person", "town"], MENTIONS)
    expected = found(nlp(TEXT))
    nlp.to_disk(tmp_path / "pipeline")
    assert found(spacy.load(tmp_path / "pipeline")(TEXT)) == expected
    with pytest.raises(LLMNERError, match="mode|trained"):
        spacy.load(tmp_path / "pipeline", config={"components.ember_probe.mode": "labels"})(TEXT)


def test_read_in_pieces_like_a_finished_text(make):
    nlp = make(["person", "town"], MENTIONS)
    reader = nlp.get_pipe("ember_probe").reader()
    for piece in ("Ada Ha", "le met Bo Lund in B", "onn and saw apple in Port Ell", "am"):
        reader.push(piece)
    reader.close()
    doc = nlp(TEXT)
    assert found(reader.doc) == found(doc)
    scores = [[ent._.llmner_score for ent in d.ents] for d in (reader.doc, doc)]
    assert scores[0] == pytest.approx(scores[1], abs=1e-3)


@pytest.mark.parametrize("how", ["fit", "initialize", "update"])
def test_it_is_not_trained(nlp, how):
    ember = nlp.get_pipe("ember_probe")
    example = spacy.training.Example.from_dict(
        nlp.make_doc("Ada Hale"), {"entities": [(0, 8, "ENTITY")]}
    )
    with pytest.raises(LLMNERError, match="remove `mode`"):
        if how == "fit":
            ember.fit([example])
        elif how == "initialize":
            ember.initialize(lambda: [example], nlp=nlp)
        else:
            ember.update([example], sgd=make_sgd())


def test_needs_the_model_for_labels_in_words(make, tiny_llm):
    with pytest.raises(LLMNERError, match="one of labels, mentions"):
        make([], {"mode": "everything"})
    config = {
        "llm": str(tiny_llm),
        "mode": "mentions",
        "model": {"@architectures": "spacy_llmner.EmberFewShot.v2"},
    }
    with pytest.raises(LLMNERError, match="EmberMatch"):
        spacy.blank("en").add_pipe("ember_probe", config=config)
