"""Overlapping spans of doc.spans, for the components that learn them."""

import random

import pytest
from spacy.tokens import Span
from spacy.training import Example

from spacy_llmner.errors import LLMNERError
from tests.contracts.components import ADAPTERS, pipe_of
from tests.helpers import make_sgd

pytestmark = pytest.mark.parametrize("component", ADAPTERS, indirect=True)
NESTED = [
    ("Port Ellam Club met in Port Ellam.", [(0, 3, "ORG"), (0, 2, "LOC"), (5, 7, "LOC")]),
    ("Nobody saw the Varnholm Club.", [(3, 5, "ORG"), (3, 4, "LOC")]),
]


@pytest.fixture
def nlp(make):
    return make(cfg={"train_spans": "sc"})


def nested_examples(nlp, key="sc"):
    out = []
    for text, spans in NESTED:
        reference = nlp.make_doc(text)
        reference.spans[key] = [Span(reference, *span) for span in spans]
        out.append(Example(nlp.make_doc(text), reference))
    return out


def test_nested_spans(nlp):
    """Overlapping spans are learnt and found, but not written to doc.ents."""
    examples = nested_examples(nlp)
    random.seed(0)
    nlp.initialize(lambda: examples)
    if pipe_of(nlp).name == "ra_it_ner":  # they are also shown in examples
        shown = pipe_of(nlp).index.examples
        assert shown[0].entities == ((0, 10, "LOC"), (0, 15, "ORG"), (23, 33, "LOC"))
    sgd = make_sgd(0.02, grad_clip=1.0)
    for _ in range(45 if pipe_of(nlp).name == "ra_it_ner" else 30):
        nlp.update(examples, sgd=sgd)
    for text, spans in NESTED:
        doc = nlp(text)
        assert {(s.start, s.end, s.label_) for s in doc.spans["llmner"]} == set(spans)
        assert all(a.end <= b.start for a, b in zip(doc.ents, doc.ents[1:]))
        assert {(e.start, e.end, e.label_) for e in doc.ents} < set(spans)
    assert nlp.evaluate(nested_examples(nlp))["spans_f"] == 1.0


def test_nested_spans_are_scored(nlp):
    """`spans_f` can choose the best model. (doc.ents has only one of two overlapping spans.)"""
    examples = nested_examples(nlp)
    nlp.initialize(lambda: examples)
    doc = examples[0].predicted
    doc.spans["llmner"] = [Span(doc, 0, 3, "ORG"), Span(doc, 0, 2, "LOC")]
    doc.set_ents([Span(doc, 0, 3, "ORG")])
    scores = pipe_of(nlp).score(examples)
    assert (scores["spans_p"], scores["spans_r"]) == (1.0, 0.4)
    assert scores["spans_per_type"]["LOC"]["r"] == pytest.approx(1 / 3)


def test_docs_without_the_spans_teach_nothing(component, nlp):
    others = nested_examples(nlp, "other")
    with pytest.raises(LLMNERError, match="None of the training examples"):
        nlp.initialize(lambda: others)
    examples = nested_examples(nlp)
    with pytest.warns(UserWarning, match=f"'{component.name}'.* 2 of 4 windows"):
        nlp.initialize(lambda: [*examples, *others])
    if component.name == "ra_it_ner":
        assert len(pipe_of(nlp).index) == len(NESTED)
    assert pipe_of(nlp).update(others)[component.name] == 0.0
