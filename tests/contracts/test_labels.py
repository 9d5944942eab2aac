"""Components whose labels are words, which can change at any time without training."""

import copy

import pytest

from spacy_llmner.errors import LLMNERError
from tests.contracts.components import OPEN, UNSEEN, initialized, pipe_of
from tests.helpers import TEXTS, assert_valid

pytestmark = pytest.mark.parametrize("component", OPEN, indirect=True)


@pytest.fixture
def nlp(make):
    """With one label, not initialized."""
    return make(cfg={"labels": ["river"]})


@pytest.mark.parametrize("labels", ["PER", [1], ["PER", " "], None, 5, [None]])
def test_labels_that_are_no_words(component, nlp, labels):
    pipe = pipe_of(nlp)
    with pytest.raises(LLMNERError, match=f"`labels` of '{component.name}' is .*a list of words"):
        pipe.set_labels(labels)
    assert pipe.labels == ("river",)  # as before


def test_labels_that_cannot_be_encoded(component, nlp):
    match = rf"`labels` of '{component.name}' is \[.*'\\ud800'\], but must be words that UTF-8 can encode"
    pipe = pipe_of(nlp)
    with pytest.raises(LLMNERError, match=match):
        pipe.set_labels(["PER", "\ud800"])
    if component.adapter:  # TODO: el4ner_ensemble.add_label checks nothing
        with pytest.raises(LLMNERError, match=match):
            pipe.add_label("\ud800")
    assert pipe.labels == ("river",)


def test_labels_of_any_iterable(component, make):
    pipe = pipe_of(make(cfg={"labels": [" PER"]}))
    assert pipe.labels == ("PER",)
    if component.adapter:  # TODO: el4ner_ensemble.add_label doesn't strip
        assert pipe.add_label("PER ") == 0
    pipe.set_labels(label for label in [" river ", "PER", "river", "PER\n"])
    assert pipe.labels == ("river", "PER")


def test_labels_at_any_time(component, pipelines):
    """Random weights find things under any label."""
    kind = "wild" if component.adapter else "trained"
    nlp = copy.deepcopy(pipelines(component.name, kind))
    pipe = pipe_of(nlp)
    pipe.set_labels(["rare disease", "病", "PER", "rare disease"])
    assert pipe.labels == ("rare disease", "病", "PER")
    found = set()
    for doc in nlp.pipe([*TEXTS, UNSEEN]):
        assert_valid(doc, doc.text)
        found |= {span.label_ for span in doc.spans["llmner"]}
    assert found <= set(pipe.labels) and found & {"rare disease", "病"}
    if component.name == "el4ner_ensemble":
        assert len(pipe.label_set.types) == 3
    assert pipe.add_label("ship") == 1 and pipe.add_label("ship") == 0
    assert nlp.vocab.strings["ship"]


def test_labels_that_are_given_stay(make):
    """Initialization adds no labels from the corpus to those that were set."""
    nlp = make(cfg={"labels": ["PER", "ship"]})
    assert pipe_of(initialized(nlp)).labels == ("PER", "ship")


@pytest.mark.filterwarnings("ignore:.*no labelled texts")
def test_without_training(component, make):
    """The LLM can be used without training, such as released weights or an instruction-tuned LLM."""
    cfg = {"list_threshold": 0.0} if component.name == "ra_it_ner" else {}
    nlp = make(cfg={"labels": ["person"], **cfg})
    assert_valid(nlp(UNSEEN), UNSEEN)
    assert pipe_of(nlp).labels == ("person",)
