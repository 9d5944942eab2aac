"""Voters that are biased towards some labels, and the correction of this bias."""

import json

import pytest
import spacy
from spacy.training import Example

from spacy_llmner.el4ner_ensemble.component import EL4NER
from spacy_llmner.el4ner_ensemble.interfaces import NONE
from spacy_llmner.el4ner_ensemble.vote_calibration import VotedText, corrected, fit, prior_ratios
from spacy_llmner.errors import LLMNERError
from tests.el4ner_ensemble.helpers import FakeEncoder, MockVoter, make_mock_nlp
from tests.helpers import make_examples

# It classifies most spans as persons.
LIKES_PER = {
    "Mira": {"PER": 0.8, "LOC": 0.1, NONE: 0.1},
    "Bonn": {"PER": 0.5, "LOC": 0.4, NONE: 0.1},
    "Rome": {"PER": 0.6, "LOC": 0.3, NONE: 0.1},
    "Tea": {"PER": 0.5, "LOC": 0.1, NONE: 0.4},
}
DEV = [
    ("Mira went to Bonn.", [(0, 4, "PER"), (13, 17, "LOC")]),
    ("Tea is cold in Rome.", [(15, 19, "LOC")]),
]


SPANS = [(0, 4), (5, 9), (10, 14), (15, 19)]


def test_ratios_by_hand():
    said = [
        {"a": {"PER": 0.9, "LOC": 0.1}, "b": {"LOC": 0.5, NONE: 0.5}},
        {"a": {"PER": 0.7, NONE: 0.3}},
        {"a": {"PER": 0.4, "LOC": 0.4, NONE: 0.2}},
    ]
    gold = {SPANS[0]: "PER", SPANS[1]: "LOC"}
    polled = [VotedText(dict(zip(SPANS, said)), gold)]
    assert prior_ratios(polled, ["a", "b", "c"], ["PER", "LOC"]) == {
        "a": pytest.approx({"PER": 2 / 3, "LOC": 2 / 1.5, NONE: 2 / 1.5}),
        "b": pytest.approx({"PER": 2 / 1, "LOC": 1 / 1.5, NONE: 1 / 1.5}),
        "c": {"PER": 1.0, "LOC": 1.0, NONE: 1.0},  # nothing is known of it
    }


@pytest.mark.parametrize("how", ["majority", "probability"])
@pytest.mark.parametrize("good", ["a", "b"])
def test_who_knows_more_counts_more(how, good):
    """The better of two voters gets a higher weight. Three voters with equal answers get equal weights."""
    labels = ["LOC", "PER"]
    gold = dict(zip(SPANS, ["PER", "LOC", "PER", "LOC"]))
    bad = "b" if good == "a" else "a"
    said = {
        span: {good: {label: 0.6, other: 0.4}, bad: {label: 0.1, other: 0.9}}
        for span, label in gold.items()
        for other in [labels[label == "LOC"]]
    }
    fitted = fit([VotedText(said, gold)], {"a": 1.0, "b": 1.0}, labels, how)
    assert (fitted.before, fitted.after) == (0.0, 1.0)
    assert fitted.weights[good] > fitted.weights[bad] and fitted.factors == {}
    alike = {span: dict.fromkeys("abc", of_span[good]) for span, of_span in said.items()}
    fitted = fit([VotedText(alike, gold)], dict.fromkeys("abc", 2.0), labels, how)
    assert fitted.weights == dict.fromkeys("abc", 1.0) and fitted.factors == {}
    assert fitted.before == fitted.after == 1.0


def test_no_entity_counts_what_is_best():
    """Entities that no voter proposed count as missed. Calibration never makes the result worse."""
    said = [{"a": {"PER": 0.4, NONE: 0.6}}, {"a": {"PER": 0.1, NONE: 0.9}}]
    gold = {SPANS[0]: "PER", SPANS[3]: "PER"}
    fitted = fit([VotedText(dict(zip(SPANS, said)), gold)], {"a": 1.0}, ["PER"], "majority")
    assert fitted.before == 0.0 and fitted.after == pytest.approx(2 / 3)
    assert fitted.factors["a"][NONE] < fitted.factors["a"]["PER"]
    nothing = fit([VotedText({}, gold)], {"a": 1.0}, ["PER"], "majority")
    assert nothing == ({}, {"a": 1.0}, 0.0, 0.0)


def test_corrected_by_hand():
    said = {"PER": 0.5, "LOC": 0.25, NONE: 0.25}
    assert corrected(said, {"PER": 0.5, "LOC": 2.0}) == pytest.approx(
        {"PER": 0.25, "LOC": 0.5, NONE: 0.25}
    )
    assert corrected({"PER": 0.6}, {"PER": 3.0}) == pytest.approx({"PER": 0.6})  # the sum it had
    assert corrected({"PER": 0.0}, {"PER": 3.0}) == {"PER": 0.0}
    assert corrected(said, {}) == said


@pytest.mark.parametrize("vote", ["majority", "probability"])
def test_a_biased_voter_is_corrected(vote, tmp_path):
    nlp = spacy.blank("en")
    pipe = EL4NER(
        nlp, {"a": MockVoter(LIKES_PER)}, FakeEncoder(), labels=["LOC", "PER"], k=0, vote=vote
    )
    text = "Mira saw Bonn and Rome. Tea!"
    before = {e.text: e.label_ for e in pipe(nlp.make_doc(text)).ents}
    assert before == {"Mira": "PER", "Bonn": "PER", "Rome": "PER", "Tea": "PER"}
    fitted = pipe.calibrate(make_examples(nlp, DEV))
    assert (fitted.before, fitted.after) == (pytest.approx(2 / 7), 1.0)
    factors = fitted.factors
    assert factors["a"] == pytest.approx(
        {"PER": 2 / 3.4, "LOC": 3 / 1.9, NONE: 2 / 1.7}  # sums 2.4, 0.9 and 0.7
    )
    after = {e.text: e.label_ for e in pipe(nlp.make_doc(text)).ents}
    assert after == {"Mira": "PER", "Bonn": "LOC", "Rome": "LOC"}
    pipe.to_disk(tmp_path)
    assert json.loads((tmp_path / "cfg").read_text())["factors"] == factors
    loaded = EL4NER(nlp, {"a": MockVoter(LIKES_PER)}, FakeEncoder()).from_disk(tmp_path)
    assert {e.text: e.label_ for e in loaded(nlp.make_doc(text)).ents} == after
    pipe.cfg["factors"] = {}
    assert {e.text: e.label_ for e in pipe(nlp.make_doc(text)).ents} == before
    assert pipe.calibrate(make_examples(nlp, DEV)) == fitted  # by what the voter says itself


def test_calibration_is_with_demonstrations():
    """Votes are collected with demonstrations, without failed voters. `initialize` resets the result."""
    voters = {
        "a": MockVoter(LIKES_PER),
        "b": MockVoter(LIKES_PER, fails={"classification": {DEV[0][0]}}),
    }
    nlp, pipe = make_mock_nlp(voters)
    pipe.calibrate(make_examples(nlp, DEV))
    assert all(voters["a"].asked[-1][2])  # demonstrations in front of both texts
    assert set(pipe.cfg["weights"]) == {"a", "b"}
    pipe.initialize(lambda: make_examples(nlp))
    assert pipe.cfg["factors"] == pipe.cfg["weights"] == {}


def test_what_voters_count_is_multiplied():
    """The fitted factors are applied in the vote and in the score."""
    voters = {
        "a": MockVoter({"Bonn": {"PER": 1.0}}, weight=2.0),
        "b": MockVoter({"Bonn": {"LOC": 1.0}}),
    }
    nlp, pipe = make_mock_nlp(voters, verify=False)
    for weights, label, score in (({}, "PER", 2 / 3), ({"b": 4.0}, "LOC", 4 / 6)):
        pipe.cfg["weights"] = weights
        (ent,) = pipe(nlp.make_doc("She likes Bonn.")).ents
        assert (ent.label_, ent._.score) == (label, pytest.approx(score))


def test_nothing_to_calibrate_on():
    """An earlier calibration is kept."""
    nlp, pipe = make_mock_nlp({"a": MockVoter(LIKES_PER)})
    factors = pipe.calibrate(make_examples(nlp, DEV)).factors
    bare = [Example(nlp.make_doc(text), nlp.make_doc(text)) for text, _ in DEV]
    for examples, counts in ((bare, "of 2 texts, 0 are annotated and 0"), ([], "of 0 texts")):
        with pytest.raises(LLMNERError, match=f"'el4ner_ensemble' can't be calibrated: {counts}"):
            pipe.calibrate(examples)
    with pytest.raises(TypeError, match="E978"):
        pipe.calibrate([nlp.make_doc("Tea!")])
    assert pipe.cfg["factors"] == factors
