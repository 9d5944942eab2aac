"""Majority, probability, ties, "none" (checklist 6)."""

import pytest

from spacy_llmner.el4ner_ensemble.interfaces import NONE
from spacy_llmner.el4ner_ensemble.voting import count_votes

LABELS = ["PER", "ORG", "LOC"]
EQUAL = {"a": 1.0, "b": 1.0, "c": 1.0}


def vote(answers, weights=EQUAL, how="majority", labels=LABELS):
    return count_votes(answers, weights, labels, how)


def test_majority():
    ballot = vote({"a": {"PER": 0.4, "ORG": 0.35}, "b": {"PER": 0.5}, "c": {"ORG": 1.0}})
    assert ballot.label == "PER" and ballot.score == pytest.approx(0.9 / 3)
    assert ballot.votes == {"a": ("PER", 0.4), "b": ("PER", 0.5), "c": ("ORG", 1.0)}
    assert not ballot.unanimous


def test_probability():
    answers = {"a": {"PER": 0.4, "ORG": 0.35}, "b": {"PER": 0.5}, "c": {"ORG": 1.0}}
    assert vote(answers, how="probability").label == "ORG"


def test_none_is_a_vote():
    answers = {"a": {NONE: 0.6, "PER": 0.4}, "b": {NONE: 0.6, "PER": 0.4}, "c": {"PER": 1.0}}
    assert vote(answers).label == NONE
    assert vote(answers, how="probability").label == "PER"


def test_a_tie_of_three():
    """With one vote for each label, the sum of the probabilities from all voters decides."""
    answers = {
        "a": {"PER": 0.6, "LOC": 0.4},
        "b": {"ORG": 0.7, "LOC": 0.3},
        "c": {"LOC": 0.5, "PER": 0.3},
    }
    assert vote(answers).label == "LOC"
    assert vote(dict(reversed(answers.items()))).label == "LOC"


def test_equal_sums():
    """If the sums are equal, the order of the labels decides, and "no entity" comes last."""
    answers = {"a": {"LOC": 0.5}, "b": {"ORG": 0.5}, "c": {NONE: 0.5}}
    assert vote(answers).label == "ORG"
    assert vote(answers, labels=["LOC", "ORG", "PER"]).label == "LOC"
    assert vote({"a": {NONE: 0.5, "LOC": 0.5}}).label == "LOC"


def test_weights():
    answers = {"a": {"PER": 1.0}, "b": {"ORG": 0.9}, "c": {"ORG": 0.9}}
    assert vote(answers).label == "ORG"
    heavy = vote(answers, weights={"a": 3.0, "b": 1.0, "c": 1.0})
    assert heavy.label == "PER" and heavy.score == pytest.approx(3 / 5)


def test_removing_a_voter_changes_only_its_votes():
    answers = {"a": {"PER": 0.9}, "b": {"PER": 0.8}, "c": {"LOC": 0.7}}
    full, less = vote(answers), vote({k: v for k, v in answers.items() if k != "c"})
    assert {k: v for k, v in full.votes.items() if k != "c"} == less.votes
    assert less.unanimous and less.score == pytest.approx(0.85)


def test_few_voters():
    assert vote({}).label == NONE and vote({}).score == 0.0
    alone = vote({"a": {"PER": 0.9}})
    assert alone.label == "PER" and not alone.unanimous
