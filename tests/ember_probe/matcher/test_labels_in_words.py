"""ember_probe with labels in words: found without training, changed at any time."""

import shutil
import warnings
from concurrent.futures import ThreadPoolExecutor

import pytest
import spacy
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from spacy.training import Example

from spacy_llmner.ember_probe.matcher import labels as label_reader
from spacy_llmner.ember_probe.matcher import word_label_pipe
from spacy_llmner.errors import LLMNERError
from tests.ember_probe.helpers import make_sgd
from tests.ember_probe.matcher.conftest import WIDTH

TEXT = "Ada Hale met Bo Lund in Bonn and saw apple in Port Ellam"
PEOPLE = [("Ada Hale", "person"), ("Bo Lund", "person")]
TOWNS = [("Bonn", "town"), ("Port Ellam", "town")]


def found(doc):
    return [(ent.text, ent.label_) for ent in doc.ents]


def test_labels_are_found_at_once(make):
    assert found(make(["person", "town"])(TEXT)) == sorted(
        PEOPLE + TOWNS, key=lambda e: TEXT.index(e[0])
    )


def test_only_the_labels_asked_for(make):
    assert found(make(["person"])(TEXT)) == PEOPLE
    assert found(make(["town"])(TEXT)) == TOWNS


def test_labels_can_change_at_any_time(make):
    nlp = make(["person"])
    ember = nlp.get_pipe("ember_probe")
    assert found(nlp(TEXT)) == PEOPLE
    ember.set_labels(["town", "fruit"])
    assert ember.labels == ("town", "fruit")
    assert ("apple", "fruit") in found(nlp(TEXT)) and set(TOWNS) < set(found(nlp(TEXT)))
    assert ember.add_label("person") == 1 and ember.add_label("person") == 0
    assert set(PEOPLE) < set(found(nlp(TEXT)))
    ember.set_labels(["person", "person "])
    assert ember.labels == ("person",) and found(nlp(TEXT)) == PEOPLE


def test_the_order_of_labels_does_not_matter(make):
    one, two = make(["person", "town", "fruit"])(TEXT), make(["fruit", "person", "town"])(TEXT)
    assert found(one) == found(two)
    scores = [[ent._.llmner_score for ent in doc.ents] for doc in (one, two)]
    assert scores[0] == pytest.approx(scores[1], abs=1e-5)


def test_the_llm_reads_each_label_once(make, monkeypatch):
    read = []
    original = label_reader.read_phrases
    monkeypatch.setattr(
        label_reader,
        "read_phrases",
        lambda llm, layers, phrases: read.extend(phrases) or original(llm, layers, phrases),
    )
    nlp = make(["person", "town"])
    ember = nlp.get_pipe("ember_probe")
    nlp(TEXT)
    ember.set_labels(["town", "fruit"])
    ember.set_labels(["person", "fruit"])
    assert sorted(read) == ["fruit", "person", "town"]


def test_each_doc_can_have_its_own_labels(make):
    nlp = make(["person"])
    docs = [nlp.make_doc(TEXT) for _ in range(4)]
    docs[1]._.llmner_labels = ["town"]
    docs[2]._.llmner_labels = []
    docs[3]._.llmner_labels = ["town"]
    docs = list(nlp.pipe(docs))
    assert [found(doc) for doc in docs] == [PEOPLE, TOWNS, [], TOWNS]
    assert nlp.get_pipe("ember_probe").labels == ("person",)


def test_words_and_descriptions_of_labels(make):
    nlp = make(["PER", "T"], label_words={"T": ["town", "city"]})
    assert {(ent, {"person": "PER", "town": "T"}[label]) for ent, label in PEOPLE + TOWNS} == set(
        found(nlp(TEXT))
    )
    described = make(["person"], label_descriptions={"person": "a human being"})
    assert described(TEXT).has_annotation("ENT_IOB")


def test_words_for_labels_that_are_not_there(make):
    """A warning names them, once, when the words are read. What is asked for later is used."""
    words = {"T": "town", "person": "person"}
    nlp = make(["PER"], label_words=words, label_descriptions={"PERS": "a human being"})
    with pytest.warns(UserWarning) as caught:
        nlp(TEXT)
    texts = [str(w.message) for w in caught if "W021" in str(w.message)]
    assert ["label_words" in text for text in texts] == [True, False]
    assert "ignored: T, person." in texts[0] and "The labels are: PER." in texts[0]
    assert "ignored: PERS." in texts[1]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        nlp.get_pipe("ember_probe").set_labels(["T"])
        assert found(nlp(TEXT)) == [(name, "T") for name, _ in TOWNS]


def test_words_for_the_labels_of_a_text(make):
    """No warning if an entry is for a label that the first text or stream asks for."""
    nlp = make(["person"], label_words={"T": "town"})
    doc = nlp.make_doc(TEXT)
    doc._.llmner_labels = ["person", "T"]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert ("Bonn", "T") in found(nlp(doc))
        ember = make(["person"], label_words={"T": "town"}).get_pipe("ember_probe")
        ember.reader(labels=["T"]).close()


def test_saved_and_loaded(make, matcher, tmp_path):
    nlp = make(["person", "town"])
    unused = make(["town"])
    unused.to_disk(tmp_path / "unused")
    expected = found(nlp(TEXT))
    nlp.to_disk(tmp_path / "pipeline")
    again = spacy.load(tmp_path / "pipeline")
    assert found(again(TEXT)) == expected
    again.get_pipe("ember_probe").set_labels(["town"])
    assert found(again(TEXT)) == TOWNS
    assert found(spacy.load(tmp_path / "unused")(TEXT)) == TOWNS
    copied = make(["fruit"]).from_bytes(nlp.to_bytes())
    assert found(copied(TEXT)) == expected


def test_a_saved_pipeline_needs_no_weights_folder(make, matcher, tmp_path):
    shutil.copytree(matcher, tmp_path / "weights")
    nlp = make(["town"], weights=str(tmp_path / "weights"))
    nlp(TEXT)
    nlp.to_disk(tmp_path / "pipeline")
    shutil.rmtree(tmp_path / "weights")
    again = spacy.load(tmp_path / "pipeline")
    again.get_pipe("ember_probe").set_labels(["person"])
    assert found(again(TEXT)) == PEOPLE


def test_many_labels(make):
    labels = ["person", *(f"kind {n}" for n in range(199))]
    doc = make(labels)(TEXT)
    assert {ent.label_ for ent in doc.ents} <= set(labels)


def test_a_stream_scores_words_like_a_finished_text(make):
    nlp = make(["person", "town"])
    nlp(TEXT)
    ember = nlp.get_pipe("ember_probe")
    doc = nlp.make_doc(TEXT)
    predictor = ember.predictor()
    features = ember.read([doc])
    rows = predictor.rows(doc, features[0])
    batch = predictor.batch([doc], features)
    stream = predictor.probe.stream()
    words = []
    for k in range(len(doc)):
        word = type(features[0])(features[0].hidden[k : k + 1])
        words.append(stream.push(word, batch.surface[0, k].numpy()))
    words.append(stream.end())
    for row, expected in zip([w for w in words if w is not None], rows):
        assert torch.allclose(torch.tensor(row), torch.tensor(expected), atol=1e-3)


def test_streams_have_the_labels(make):
    stream = (
        make(["person", "town"]).get_pipe("ember_probe").stream("Ada Hale met", max_new_tokens=8)
    )
    list(stream)
    assert {ent.label_ for ent in stream.doc.ents} <= {"person", "town"}


def test_each_stream_can_have_its_own_labels(make):
    nlp = make(["person"])
    ember = nlp.get_pipe("ember_probe")
    for labels in (["town"], ["town", "person", "town "], None):
        options = {"labels": labels, "max_new_tokens": 0}
        stream = ember.stream(TEXT, **options)
        list(stream)
        with ember.streams() as pool:
            pooled = pool.start(TEXT, **options)
            list(pooled)
        reader = ember.reader(labels=labels)
        reader.push(TEXT)
        reader.close()
        doc = nlp.make_doc(TEXT)
        doc._.llmner_labels = labels
        expected = found(nlp(doc))
        assert found(stream.doc) == found(pooled.doc) and found(reader.doc) == expected
        assert expected and found(stream.doc)
        for doc in (stream.doc, reader.doc):
            assert {ent.label_ for ent in doc.ents} <= {"town", "person"} & set(
                labels or ["person"]
            )
    assert ember.labels == ("person",)


@pytest.mark.parametrize("labels", [[], "person", [3], [""]])
def test_streams_check_their_labels(make, labels):
    ember = make(["person"]).get_pipe("ember_probe")
    with pytest.raises(LLMNERError, match="labels"):
        ember.stream(TEXT, labels=labels)
    with pytest.raises(LLMNERError, match="labels"):
        ember.reader(labels=labels)


def test_the_states_of_few_labels_are_kept(make, monkeypatch):
    monkeypatch.setattr(label_reader, "MAX_PHRASES", 3)
    nlp = make(["person", "town"])
    ember = nlp.get_pipe("ember_probe")
    expected = found(nlp(TEXT))
    for k in range(4):
        ember.set_labels([f"kind {k}", "town", "person"])
        assert len(ember.label_reader._states) <= 3
    ember.set_labels(["person", "town"])
    assert found(nlp(TEXT)) == expected


def test_a_stream_has_the_current_weights(make):
    ember = make(["person", "town"]).get_pipe("ember_probe")
    first = ember.stream(TEXT, max_new_tokens=0)
    assert list(first) and first.doc.ents
    with torch.no_grad():
        ember.module.output.bias.sub_(100.0)
    changed = ember.stream(TEXT, max_new_tokens=0)
    list(changed)
    assert not changed.doc.ents


def test_first_use_from_many_threads(make):
    nlp = make(["person", "town"])
    with ThreadPoolExecutor(8) as pool:
        docs = list(pool.map(nlp, [TEXT] * 8))
    assert all(found(doc) == found(docs[0]) for doc in docs) and found(docs[0])


def test_training_starts_from_the_words(make):
    nlp, start = make([]), make(["PERSON", "TOWN"], label_words={"TOWN": "town"})
    doc = nlp.make_doc(TEXT)
    gold = {"entities": [(0, 8, "PERSON"), (24, 28, "TOWN"), (46, 56, "TOWN")]}
    examples = [Example.from_dict(doc, gold)]
    nlp.initialize(lambda: examples)
    ember = nlp.get_pipe("ember_probe")
    assert ember.labels == ("PERSON", "TOWN")
    before = found(nlp(TEXT))
    assert before == found(make(["PERSON", "TOWN"])(TEXT))
    assert ("Bonn", "TOWN") in before and ("Bo Lund", "PERSON") in before
    with torch.random.fork_rng():
        for _ in range(30):
            nlp.update(examples, sgd=make_sgd(0.01))
    learned = [("Ada Hale", "PERSON"), ("Bonn", "TOWN"), ("Port Ellam", "TOWN")]
    assert found(nlp(TEXT)) == learned
    # What was learned stays when labels are added.
    ember.set_labels(["TOWN", "fruit", "PERSON"])
    assert set(learned) <= set(found(nlp(TEXT)))
    assert start(TEXT).ents


SENTENCES = [
    ("Ada Hale met Bonn in pear", {"entities": [(0, 8, "person"), (21, 25, "food")]}),
    ("Bo Lund saw plum and Bern", {"entities": [(0, 7, "person"), (12, 16, "food")]}),
    ("Rome and apple met Mira Stone", {"entities": [(9, 14, "food"), (19, 29, "person")]}),
]


def test_a_few_sentences_add_to_the_words(make):
    nlp = make(["person"])
    ember = nlp.get_pipe("ember_probe")
    ember.fit(SENTENCES * 40)
    assert ember.labels == ("person", "food")
    texts = [nlp(text) for text, _ in SENTENCES]
    expected = [
        [(text[start:end], label) for start, end, label in gold["entities"]]
        for text, gold in SENTENCES
    ]
    assert [found(doc) for doc in texts] == expected
    # The same sentences give the same weights, whatever was learned before.
    first = {key: value.clone() for key, value in ember.module.state_dict().items()}
    ember.fit(SENTENCES * 40)
    assert all(torch.equal(value, first[key]) for key, value in ember.module.state_dict().items())


def test_an_interrupted_fit_changes_nothing(make, monkeypatch):
    nlp = make(["person"])
    ember = nlp.get_pipe("ember_probe")
    ember.fit(SENTENCES * 40)
    before, labels = nlp(SENTENCES[0][0]).to_bytes(), ember.labels

    def interrupted(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr(word_label_pipe, "fine_tune", interrupted)
    with pytest.raises(KeyboardInterrupt):
        ember.fit([(TEXT, {"entities": [(24, 28, "town")]})])
    assert ember.labels == labels and nlp(SENTENCES[0][0]).to_bytes() == before


def test_sentences_without_entities(make):
    with pytest.raises(LLMNERError, match="LLMNER152"):
        make(["person"]).get_pipe("ember_probe").fit([("Tea in Varnholm", {"entities": []})])


def test_labels_in_the_config_choose_the_model(tiny_llm, matcher):
    nlp = spacy.blank("en")
    ember = nlp.add_pipe("ember_probe", config={"llm": str(tiny_llm), "labels": ["person"]})
    assert ember.model.name == "ember_match"
    # The package has no weights for the tiny LLM.
    with pytest.raises(LLMNERError, match="LLMNER147.*pretrain-matcher"):
        nlp(TEXT)


def test_other_models_take_no_words(tiny_llm):
    nlp = spacy.blank("en")
    few_shot = {"@architectures": "spacy_llmner.EmberFewShot.v2"}
    with pytest.raises(LLMNERError, match="LLMNER149"):
        nlp.add_pipe("ember_probe", config={"labels": ["person"], "model": few_shot})
    ember = nlp.add_pipe("ember_probe", config={"llm": str(tiny_llm)})
    with pytest.raises(LLMNERError, match="LLMNER149"):
        ember.set_labels(["person"])


@pytest.mark.parametrize("labels", ["person", [1], [""], ["a\ud800"]])
def test_labels_that_are_not_words(make, labels):
    with pytest.raises(LLMNERError, match="labels"):
        make(["town"]).get_pipe("ember_probe").set_labels(labels)


def test_no_labels(make):
    nlp = make([])
    with pytest.raises(LLMNERError, match=r"LLMNER139.*set_labels\("):
        nlp(TEXT)
    with pytest.raises(LLMNERError, match="at least one label"):
        nlp.get_pipe("ember_probe").set_labels([])


def test_weights_that_do_not_fit(make, other_llm, tmp_path):
    with pytest.raises(LLMNERError, match="LLMNER145"):
        make(["town"], weights=str(tmp_path))(TEXT)
    with pytest.raises(LLMNERError, match="LLMNER148.*width"):
        make(["town"], width=WIDTH + 1)(TEXT)
    llm = {"@misc": "spacy_llmner.LLM.v1", "name": other_llm, "device": "cpu"}
    with pytest.raises(LLMNERError, match="LLMNER146"):
        make(["town"], cfg={"llm": llm})(TEXT)


def test_weights_with_a_missing_part(make, matcher, tmp_path):
    file = "matcher.safetensors"
    with safe_open(matcher / file, "pt") as old:
        metadata = old.metadata()
    tensors = load_file(matcher / file)
    del tensors["matcher.span.weight"]
    save_file(tensors, tmp_path / file, metadata=metadata)
    with pytest.raises(LLMNERError, match="LLMNER145"):
        make(["town"], weights=str(tmp_path))(TEXT)
    (tmp_path / file).write_bytes((matcher / file).read_bytes()[:-100])
    with pytest.raises(LLMNERError, match="LLMNER145"):
        make(["town"], weights=str(tmp_path))(TEXT)


@pytest.mark.parametrize("words", [{"town": []}, {"town": [" "]}, {"town": " "}])
def test_label_words_that_are_not_words(make, words):
    with pytest.raises(LLMNERError, match="label_words"):
        make(["town"], label_words=words)(TEXT)
