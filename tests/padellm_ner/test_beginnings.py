"""Words that are likely to begin a mention, whatever the index of the mention."""

import math

import numpy as np
import pytest

from spacy_llmner.decoding.tree import Scores
from spacy_llmner.padellm_ner.beginnings import Beginnings

ADA, MET, BO = 7, 8, 9


def scores(*p):
    with np.errstate(divide="ignore"):
        return Scores(np.array([ADA, MET, BO]), np.log(np.array(p)))


def likely(words, threshold, at_least, *rows):
    found = Beginnings(words, threshold).likely([scores(*row) for row in rows], at_least)
    return [(b.token, b.rank, b.row, round(math.exp(b.log_prob), 6)) for b in found]


def test_two_questions_that_hesitate_between_the_same_words():
    """The best answer to each question is Ada, so Bo would be lost."""
    rows = (0.6, 0.0, 0.4), (0.55, 0.0, 0.45)
    assert likely([ADA, MET, BO], 0.15, [1.0, 0.8], *rows) == [
        (ADA, 0, 0, 1.0),
        (BO, 0, 0, 0.76),
    ]


def test_a_word_begins_no_more_mentions_than_it_is_there():
    rows = (0.9, 0.05, 0.05), (0.9, 0.05, 0.05)
    once = likely([ADA, MET, BO], 0.15, [1.0, 0.5], *rows)
    assert once == [(ADA, 0, 0, 1.0)]
    twice = likely([ADA, MET, ADA, BO], 0.15, [1.0, 0.5], *rows)
    assert twice == [(ADA, 0, 0, 0.9), (ADA, 1, 1, 0.45)]


def test_nested_mentions_begin_with_the_same_word():
    found = Beginnings([ADA, MET, BO], 0.15, nested=True).likely(
        [scores(0.9, 0.05, 0.05), scores(0.8, 0.1, 0.1)], [1.0, 0.9]
    )
    assert [(b.token, b.row) for b in found] == [(ADA, 0), (ADA, 1)]


@pytest.mark.parametrize("threshold,n", [(0.1, 2), (0.25, 1), (0.7, 0)])
def test_the_threshold(threshold, n):
    assert len(likely([ADA, MET, BO], threshold, [0.7], (0.8, 0.0, 0.2))) == n


def test_nothing_to_choose_from():
    assert Beginnings([], 0.1).likely([], []) == []
    empty = Scores(np.zeros(0, dtype=np.int64), np.zeros(0))
    assert Beginnings([], 0.1).likely([empty], [0.9]) == []
