"""Scores and words for labels in the benchmarks of `ra_it_ner`."""

import pytest
import spacy
from spacy.tokens import Span

from benchmarks.ra_it.calibrated import means, with_labels
from benchmarks.ra_it.corpora import label_words, without_entities
from benchmarks.ra_it.transfer import f1, normalized


@pytest.fixture
def doc():
    doc = spacy.blank("en")("The Old Mill, near Bonn")
    doc.set_ents([Span(doc, 0, 3, "building"), Span(doc, 5, 6, "place")])
    return doc


def test_strings_are_compared_without_case_articles_and_punctuation(doc):
    assert normalized(doc.ents[0]) == ("old mill", "building")
    assert normalized(Span(doc, 1, 4, "building")) == ("old mill", "building")
    assert normalized(doc.ents[1]) == ("bonn", "place")


def test_f1_is_micro():
    assert f1([({1, 2}, {1}), ({3}, {4, 5})]) == pytest.approx(200 * 1 / 6)
    assert f1([(set(), set())]) == 0.0


def test_words_of_labels():
    labels = ["PER", "location_GPE", "person_other", "person_actor", "award"]
    assert [label_words(label) for label in labels] == [
        "person", "geopolitical entity", "other person", "actor", "award",
    ]  # fmt: skip


def test_other_labels_are_left_out(doc):
    assert [ent.label_ for ent in with_labels(doc, {"place"}).ents] == ["place"]
    assert len(doc.ents) == 2 and not without_entities(spacy.blank("en"), doc).ents
    assert without_entities(spacy.blank("en"), doc).text == doc.text


def test_means_of_rules():
    rules = ("never", "always", "published", "calibrated")
    runs = [
        {"examples": "own", "f": dict.fromkeys(rules, 10.0)},
        {"examples": "own", "f": {**dict.fromkeys(rules, 20.0), "never": 40.0}},
    ]
    assert means(runs) == {"own": {**dict.fromkeys(rules, 15.0), "never": 25.0}}
