"""Several span groups, one doc.ents."""

import pytest
import spacy
from spacy.tokens import Span, SpanGroup

from spacy_llmner.errors import LLMNERError

TEXT = "Ada Hale met Bo in Bonn"


@pytest.fixture
def doc():
    doc = spacy.blank("en")(TEXT)
    groups = {
        "a": [(0, 2, "PER", 0.9), (3, 4, "PER", 0.8), (5, 6, "LOC", 0.5)],
        "b": [(0, 1, "PER", 0.7), (3, 4, "PER", 0.2), (5, 6, "PER", 0.9)],
        "c": [(0, 2, "PER", 0.6), (5, 6, "LOC", 0.4), (0, 1, "PER", 0.6)],
    }
    for key, found in groups.items():
        spans = [Span(doc, start, end, label=label) for start, end, label, _ in found]
        attrs = {"scores": [score for *_, score in found]}
        doc.spans[key] = SpanGroup(doc, name=key, spans=spans, attrs=attrs)
    return doc


def combine(doc, **config):
    nlp = spacy.blank("en")
    return nlp.add_pipe("llmner_combine", config={"keys": ["a", "b", "c"], **config})(doc)


def test_what_most_agree_about(doc):
    combine(doc)
    group = doc.spans["combined"]
    found = {(s.text, s.label_): score for s, score in zip(group, group.attrs["scores"])}
    assert found == pytest.approx(
        {
            ("Ada Hale", "PER"): 0.5,
            ("Ada", "PER"): 1.3 / 3,
            ("Bo", "PER"): 1.0 / 3,
            ("Bonn", "LOC"): 0.3,
        }
    )
    assert [(e.text, e.label_) for e in doc.ents] == [
        ("Ada Hale", "PER"),
        ("Bo", "PER"),
        ("Bonn", "LOC"),
    ]
    assert all(token.ent_iob for token in doc)


@pytest.mark.parametrize(
    ("min_votes", "ents"),
    [(1, [("Ada Hale", "PER"), ("Bo", "PER"), ("Bonn", "LOC")]), (3, [])],
)
def test_votes(doc, min_votes, ents):
    combine(doc, min_votes=min_votes)
    assert [(e.text, e.label_) for e in doc.ents] == ents


def test_scores_of_entities(doc):
    """`ent._.score` is the mean, not what one of the groups says."""
    nlp = spacy.blank("en")
    # Any component of spacy-llmner makes `_.score` known.
    nlp.add_pipe("ra_it_ner", config={"labels": ["PER"]})
    combine(doc)
    assert [ent._.score for ent in doc.ents] == pytest.approx([0.5, 1.0 / 3, 0.3])
    for _ in range(2):  # a Doc that is read again, or was saved
        combine(doc)
        doc = spacy.tokens.Doc(doc.vocab).from_bytes(doc.to_bytes())
        assert [ent._.score for ent in doc.ents] == pytest.approx([0.5, 1.0 / 3, 0.3])
        assert {ent._.method for ent in doc.ents} == {"llmner_combine"}


def test_what_makes_no_sense(doc):
    with pytest.raises(LLMNERError, match="finds no spans under d .there are: a, b, c"):
        combine(doc, keys=["a", "d"])
    with pytest.raises(LLMNERError, match="`keys` of 'llmner_combine'"):
        combine(doc, keys=[])
    with pytest.raises(LLMNERError, match="`keys`.*all of them different"):
        combine(doc, keys=["a", "a"], min_votes=2)
    with pytest.raises(LLMNERError, match="`min_votes`.*from 1 to 2"):
        combine(doc, keys=["a", "b"], min_votes=3)


def test_entities_that_were_there(doc):
    """Those that are in no group are of others, for example an entity ruler."""
    ruled, found = Span(doc, 4, 6, label="PLACE"), Span(doc, 3, 4, label="PER")
    doc.set_ents([ruled, found])
    combine(doc, overwrite=False, min_votes=3)
    assert [(e.text, e.label_) for e in doc.ents] == [("in Bonn", "PLACE")]
    combine(doc, overwrite=False)
    ents = [("Ada Hale", "PER"), ("Bo", "PER"), ("in Bonn", "PLACE")]
    assert [(e.text, e.label_) for e in doc.ents] == ents
    combine(doc)
    assert ("Bonn", "LOC") in [(e.text, e.label_) for e in doc.ents]


def test_components_that_write_the_same_group():
    nlp = spacy.blank("en")
    nlp.add_pipe("ra_it_ner", name="one")
    nlp.add_pipe("ra_it_ner", name="two")
    nlp.add_pipe("ra_it_ner", name="three", config={"spans_key": "other"})
    with pytest.warns(UserWarning, match=r"the span group 'llmner', .*\(one, two\)"):
        nlp.add_pipe("llmner_combine", config={"keys": ["llmner", "other"]})
