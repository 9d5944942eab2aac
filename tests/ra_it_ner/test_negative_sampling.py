"""The types in the questions of training."""

import random
from collections import Counter

import pytest

from spacy_llmner.ra_it_ner.negative_sampling import sample_labels

FREQUENCIES = {"person": 600, "place": 300, "plant": 90, "planet": 10}


def test_positives_are_all_asked_for():
    for seed in range(50):
        out = sample_labels(["plant", "place", "plant"], FREQUENCIES, random.Random(seed))
        assert {"plant", "place"} <= set(out)
        assert len(out) == len(set(out)) <= 4


def test_half_as_many_negatives_by_frequency():
    rng = random.Random(0)
    many = {f"type {i}": 1 for i in range(1000)}
    drawn = Counter()
    n = 4000
    for _ in range(n):
        drawn.update(sample_labels(["a", "b"], {"a": 5, "b": 5, **many}, rng))
    negatives = sum(count for label, count in drawn.items() if label not in "ab")
    assert negatives / (2 * n) == pytest.approx(0.5, abs=0.03)

    drawn = Counter()
    for _ in range(n):
        drawn.update(sample_labels(["planet"], FREQUENCIES, rng))
    assert drawn["planet"] == n
    asked = sum(drawn[label] for label in ("person", "place", "plant"))
    assert drawn["person"] / asked == pytest.approx(600 / 990, abs=0.05)


def test_a_text_without_entities():
    assert sample_labels([], FREQUENCIES, random.Random(0)) == []
    assert len(sample_labels([], FREQUENCIES, random.Random(0), least=1)) == 1
    assert sample_labels([], {}, random.Random(0), least=2) == []


def test_shuffled():
    orders = {
        tuple(sample_labels(["person", "place"], FREQUENCIES, random.Random(s), rate=0.0))
        for s in range(30)
    }
    assert orders == {("person", "place"), ("place", "person")}


def test_only_what_is_known_to_be_absent():
    for seed in range(30):
        rng = random.Random(seed)
        out = sample_labels(["plant"], FREQUENCIES, rng, rate=1.0, known=["plant", "moon"])
        assert set(out) == {"plant", "moon"}
