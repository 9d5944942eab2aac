"""Several span groups, one doc.ents."""

import pickle

import pytest
import spacy
from spacy.language import Language
from spacy.tokens import Span, SpanGroup

from spacy_llmner.errors import LLMNERError
from spacy_llmner.pipeline.predictions import without_overlaps, write_group

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
    """`ent._.score` is the mean, not the score of one of the groups."""
    nlp = spacy.blank("en")
    # Any component of spacy-llmner registers `_.score`.
    nlp.add_pipe("ra_it_ner", config={"labels": ["PER"]})
    combine(doc)
    assert [ent._.score for ent in doc.ents] == pytest.approx([0.5, 1.0 / 3, 0.3])
    for _ in range(2):  # a Doc that is read again, or was saved
        combine(doc)
        doc = spacy.tokens.Doc(doc.vocab).from_bytes(doc.to_bytes())
        assert [ent._.score for ent in doc.ents] == pytest.approx([0.5, 1.0 / 3, 0.3])
        assert {ent._.method for ent in doc.ents} == {"llmner_combine"}


def test_what_makes_no_sense(doc):
    with pytest.raises(LLMNERError, match="no spans under the keys d .the document has: a, b, c"):
        combine(doc, keys=["a", "d"])
    with pytest.raises(LLMNERError, match="`keys` of 'llmner_combine'"):
        combine(doc, keys=[])
    with pytest.raises(LLMNERError, match="`keys`.*all of them different"):
        combine(doc, keys=["a", "a"], min_votes=2)
    with pytest.raises(LLMNERError, match="`min_votes`.*from 1 to 2"):
        combine(doc, keys=["a", "b"], min_votes=3)


def ruled(nlp, ents):
    """Add a ruler, and after it two components that find the same without an LLM."""

    @Language.component("found_by_two", assigns=["doc.ents"])
    def found_by_two(doc):
        for key, found in {"a": [(0, 1, "PER"), (3, 4, "PER")], "b": [(3, 4, "PER")]}.items():
            spans = [Span(doc, start, end, label=label) for start, end, label in found]
            others = list(doc.ents)
            new = without_overlaps(spans, others)
            write_group(doc, key, [(span, 0.8) for span in spans], new, key)
            doc.set_ents([*others, *new])
        return doc

    ruler = nlp.add_pipe("entity_ruler")
    ruler.add_patterns([{"label": label, "pattern": text} for text, label in ents])
    nlp.add_pipe("found_by_two")
    return nlp


@pytest.mark.parametrize(
    "ents", [[("Ada", "PER")], [("in Bonn", "PLACE")], [("Bo in", "OTHER")], [("Bo", "PER")]]
)
def test_entities_of_others_stay(ents):
    """Even entities that too few of the combined components found."""
    nlp = ruled(spacy.blank("en"), ents)
    nlp.add_pipe("llmner_combine", config={"keys": ["a", "b"], "overwrite": False})
    doc = nlp(TEXT)
    found = [(e.text, e.label_) for e in doc.ents]
    assert set(ents) <= set(found)
    assert ("Ada", "PER") not in set(found) - set(ents)
    assert ("Bo", "PER") in found or ents == [("Bo in", "OTHER")]
    again = nlp.get_pipe("llmner_combine")(doc)
    assert [(e.text, e.label_) for e in again.ents] == found


def test_entities_of_others_are_replaced():
    nlp = ruled(spacy.blank("en"), [("in Bonn", "PLACE")])
    nlp.add_pipe("llmner_combine", config={"keys": ["a", "b"]})
    assert [(e.text, e.label_) for e in nlp(TEXT).ents] == [("Bo", "PER")]


def test_components_that_write_the_same_group(doc):
    nlp = spacy.blank("en")
    nlp.add_pipe("ra_it_ner", name="one", config={"spans_key": "a"})
    nlp.add_pipe("ra_it_ner", name="two", config={"spans_key": "a"})
    nlp.add_pipe("ra_it_ner", name="three", config={"spans_key": "b"})
    combine = nlp.add_pipe("llmner_combine", config={"keys": ["a", "b"]})
    with pytest.warns(UserWarning, match=r"the span group 'a', .*\(one, two\)"):
        combine(doc)
    nlp.get_pipe("two").cfg["spans_key"] = "c"
    combine = nlp.add_pipe("llmner_combine", name="again", config={"keys": ["a", "b"]})
    combine(doc)  # pytest makes an error of a warning


def test_settings_of_a_saved_pipeline_count(doc, tmp_path):
    """The keys of the groups were changed after the components were created, as in the README."""
    nlp = spacy.blank("en")
    for name, key in (("one", "a"), ("two", "b")):
        nlp.add_pipe("ra_it_ner", name=name).cfg["spans_key"] = key
    nlp.add_pipe("llmner_combine", config={"keys": ["a", "llmner"], "min_votes": 1})
    nlp.to_disk(tmp_path)
    combine = spacy.load(tmp_path).get_pipe("llmner_combine")
    with pytest.raises(LLMNERError, match="found no spans under the keys llmner"):
        combine(doc)
    pickle.loads(pickle.dumps(combine))


def test_groups_without_scores(doc):
    """Spans of groups without scores, such as those of a `span_ruler`, have the score 1."""
    doc.spans["c"] = [Span(doc, 0, 2, label="PER"), Span(doc, 2, 3, label="VERB")]
    combine(doc, min_votes=1)
    group = doc.spans["combined"]
    found = {(s.text, s.label_): score for s, score in zip(group, group.attrs["scores"])}
    assert found["Ada Hale", "PER"] == pytest.approx((0.9 + 1.0) / 3)
    assert found["met", "VERB"] == pytest.approx(1 / 3)


def test_behind_merged_tokens():
    """After components such as `merge_entities`, the token indices in the groups are wrong."""
    doc = spacy.blank("en")("Mira Hale saw Ada and Bo")
    for key in ("a", "b"):
        spans = [Span(doc, 1, 2, label="PER"), Span(doc, 3, 4, label="PER")]
        write_group(doc, key, [(span, 0.8) for span in spans], spans, key)
    with doc.retokenize() as retokenizer:
        retokenizer.merge(doc[0:2])
    combine(doc, keys=["a", "b"])
    assert [(e.text, e.label_) for e in doc.ents] == [("Ada", "PER")]
    assert doc.spans["combined"].attrs["scores"] == [0.8]


def test_blocked_tokens(doc):
    doc.set_ents([], blocked=[doc[3:4]], default="missing")
    combine(doc, overwrite=False)
    assert [e.text for e in doc.ents] == ["Ada Hale", "Bonn"]
    combine(doc)
    assert [e.text for e in doc.ents] == ["Ada Hale", "Bo", "Bonn"]


def test_no_document_is_blamed_for_a_missing_group():
    nlp = spacy.blank("en")
    nlp.add_pipe("llmner_combine", config={"keys": ["a", "b"]})
    nlp.set_error_handler(lambda *args: None)
    with pytest.raises(LLMNERError, match="found no spans under the keys a, b"):
        list(nlp.pipe([TEXT]))
