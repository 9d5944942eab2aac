"""How the benchmark of transfer counts, and what it takes for a label's name."""

import sys
from pathlib import Path

import pytest
import spacy
from spacy.tokens import Span

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))

from ra_it_calibrated import means, of  # noqa: E402
from ra_it_transfer import bare, f1, text_of, word_of  # noqa: E402


@pytest.fixture
def doc():
    doc = spacy.blank("en")("The Old Mill, near Bonn")
    doc.set_ents([Span(doc, 0, 3, "building"), Span(doc, 5, 6, "place")])
    return doc


def test_strings_are_compared_without_case_articles_and_punctuation(doc):
    assert text_of(doc.ents[0]) == ("old mill", "building")
    assert text_of(Span(doc, 1, 4, "building")) == ("old mill", "building")
    assert text_of(doc.ents[1]) == ("bonn", "place")


def test_f1_is_micro():
    assert f1([({1, 2}, {1}), ({3}, {4, 5})]) == pytest.approx(200 * 1 / 6)
    assert f1([(set(), set())]) == 0.0


def test_words_of_labels():
    said = ["PER", "location_GPE", "person_other", "person_actor", "award"]
    assert [word_of(label) for label in said] == [
        "person", "geopolitical entity", "other person", "actor", "award",
    ]  # fmt: skip


def test_what_is_not_asked_for_is_left_out(doc):
    assert [ent.label_ for ent in of(doc, {"place"}).ents] == ["place"]
    assert len(doc.ents) == 2 and not bare(spacy.blank("en"), doc).ents
    assert bare(spacy.blank("en"), doc).text == doc.text


def test_means_of_rules():
    rules = ("never", "always", "published", "calibrated")
    runs = [
        {"examples": "own", "f": dict.fromkeys(rules, 10.0)},
        {"examples": "own", "f": {**dict.fromkeys(rules, 20.0), "never": 40.0}},
    ]
    assert means(runs) == {"own": {**dict.fromkeys(rules, 15.0), "never": 25.0}}
