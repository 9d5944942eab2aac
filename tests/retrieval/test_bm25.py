import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from spacy_llmner.retrieval.bm25 import BM25, words_of

TEXTS = [
    "The old bridge in Bonn, the old mill and the road.",
    "A new bridge!",
    "王小明在北京大学学习。",
    "Nobody came to Bonn",
    "",
    "the THE the Bonn",
    "北京的大学",
]


def reference(texts, query, number):
    """The formula of gensim 3, word by word."""
    corpus = [words_of(text) for text in texts]
    mean = sum(map(len, corpus)) / len(corpus)
    idf = {}
    for word in {w for words in corpus for w in words}:
        n = sum(word in words for words in corpus)
        idf[word] = math.log(len(corpus) - n + 0.5) - math.log(n + 0.5)
    average = sum(idf.values()) / len(idf)
    score = 0.0
    for word in words_of(query):
        if word in idf:
            weight = idf[word] if idf[word] >= 0 else 0.25 * average
            tf = corpus[number].count(word)
            score += weight * tf * 2.5 / (tf + 1.5 * (0.25 + 0.75 * len(corpus[number]) / mean))
    return score


def test_words():
    assert words_of("Dr. Straße's 3.5% U.S.") == ["dr", "strasse", "s", "3", "5", "u", "s"]
    assert words_of("王小明在 Bonn学习。") == ["王", "小", "明", "在", "bonn", "学", "习"]
    assert words_of("ひらカナ") == ["ひ", "ら", "カ", "ナ"]
    assert words_of("!? ") == []


@pytest.mark.parametrize("query", [*TEXTS, "the bridge the bridge", "unknown words", "北京 Bonn"])
def test_formula(query):
    bm25 = BM25(TEXTS)
    expected = [reference(TEXTS, query, i) for i in range(len(TEXTS))]
    np.testing.assert_allclose(bm25.score(query, range(len(TEXTS))), expected, atol=1e-9)
    np.testing.assert_allclose(bm25.score(query, [5, 0]), [expected[5], expected[0]], atol=1e-9)
    assert bm25.score(query, []).shape == (0,)


def test_texts_are_added():
    bm25 = BM25(TEXTS[:2])
    bm25.score("Bonn", [0])
    bm25.add(TEXTS[2:5])
    bm25.add(iter(TEXTS[5:]))
    assert len(bm25) == len(TEXTS)
    np.testing.assert_array_equal(
        bm25.score("the bridge in Bonn", range(7)),
        BM25(TEXTS).score("the bridge in Bonn", range(7)),
    )


def test_self_score():
    bm25 = BM25(TEXTS)
    for i in (0, 1, 2, 3, 5):
        assert bm25.self_score(TEXTS[i]) == pytest.approx(bm25.score(TEXTS[i], [i])[0])
    # Unknown words count, or one known word would be a perfect match.
    one_known = bm25.score("Bonn", [3])[0] / bm25.self_score("Bonn quux quuux quuuux")
    assert one_known < 0.4
    assert BM25().self_score("Bonn") == 0.0 and bm25.self_score("") == 0.0
    assert BM25([""]).score("Bonn", [0]).tolist() == [0.0]


@given(
    st.lists(st.text(alphabet="ab c", max_size=12), min_size=1, max_size=6),
    st.text("abc ", max_size=9),
)
def test_any_texts(texts, query):
    bm25 = BM25(texts)
    found = bm25.score(query, range(len(texts)))
    if any(words_of(text) for text in texts):
        expected = [reference(texts, query, i) for i in range(len(texts))]
        np.testing.assert_allclose(found, expected, atol=1e-9)
    else:
        assert not found.any()
