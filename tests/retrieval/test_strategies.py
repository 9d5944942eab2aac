import math
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from spacy_llmner.errors import LLMNERError
from spacy_llmner.retrieval.bm25 import BM25
from spacy_llmner.retrieval.index import ExampleIndex
from spacy_llmner.retrieval.strategies import Retriever, Strategy, make_strategy
from tests.retrieval.helpers import FakeEncoder, at, example

QUERY = "the old stone bridge of Bonn was closed again"
# 200 texts, each a little farther from the query than the one before: 0.4 degrees apart.
NEAR = [f"note {i} on {'bridge' if i % 10 == 7 else 'something'}" for i in range(200)]
NEAR[30] = "the old stone bridge of Bonn was opened again"
NEAR[90] = "an old stone bridge was closed"
NEAR[150] = "the old stone bridge of Bonn was shut again"


@pytest.fixture(scope="module")
def index():
    places = {text: at(12 + 0.4 * i) for i, text in enumerate(NEAR)}
    index = ExampleIndex(FakeEncoder({QUERY: at(0), **places}))
    index.add([example(text, "L") for text in NEAR])
    return index


def find(index, strategy, query=QUERY, seed=0):
    (found,) = Retriever(index, strategy).find([example(query)], seed=seed)
    return found


def places(found):
    return [NEAR.index(r.example.text) for r in found]


def test_nearest(index):
    found = find(index, Strategy("nearest"))
    assert places(found) == [0, 1]
    assert found[0].example.entities == ((0, 1, "L"),)
    assert (
        found[0].similarity
        == found[0].gate_score
        == pytest.approx(math.cos(math.radians(12)), abs=1e-5)
    )
    assert places(find(index, Strategy("nearest", k=5))) == [0, 1, 2, 3, 4]
    assert find(index, Strategy("nearest", k=0)) == []


def test_random(index):
    drawn = [places(find(index, Strategy("random", k=3), seed=s)) for s in range(60)]
    assert all(len(set(p)) == 3 and p == sorted(p) for p in drawn)
    everywhere = np.concatenate(drawn)
    assert everywhere.min() < 20 and everywhere.max() > 180 and abs(everywhere.mean() - 100) < 20
    assert find(index, Strategy("random", k=3)) == find(index, Strategy("random", k=3))
    assert len(find(index, Strategy("random", k=500))) == 200


def test_mixed(index):
    drawn = [places(find(index, Strategy("mixed", k=4), seed=s)) for s in range(100)]
    nearest = [sum(1 for i, place in enumerate(p) if place == i) for p in drawn]
    assert abs(np.mean(nearest) / 4 - 0.8) < 0.07
    assert all(len(set(p)) == 4 for p in drawn)
    assert places(find(index, Strategy("mixed", k=4, mix=1.0))) == [0, 1, 2, 3]
    far = [places(find(index, Strategy("mixed", k=2, mix=0.0), seed=s)) for s in range(20)]
    assert np.mean(far) > 60


def test_diverse(index):
    drawn = [places(find(index, Strategy("diverse"), seed=s)) for s in range(150)]
    assert all(a < b < 128 for a, b in drawn)
    everywhere = np.concatenate(drawn)
    assert everywhere.max() > 110 and abs(everywhere.mean() - 63.5) < 8
    assert places(find(index, Strategy("diverse", candidates=2))) == [0, 1]


def test_no_strategy_shows_a_text_twice():
    index = ExampleIndex(FakeEncoder())
    index.add([example(f"note {i}", label) for i in range(6) for label in ("PER", "LOC", "ORG")])
    for kind in ("nearest", "random", "mixed", "diverse", "bm25_rank"):
        for seed in range(10):
            texts = [r.example.text for r in find(index, Strategy(kind, k=5), seed=seed)]
            assert len(set(texts)) == len(texts) == 5


def test_bm25_reject(index):
    scores = BM25(NEAR).score(QUERY, range(200))
    assert scores[30] > 20 > scores[7] > 0 == scores[0]
    # The two nearest share no word with the query, so none is left.
    assert find(index, Strategy("nearest", gate="bm25")) == []
    found = find(index, Strategy("nearest", k=40, gate="bm25"))
    assert places(found) == [30] and found[0].gate_score == pytest.approx(scores[30])
    low = Strategy("nearest", k=40, gate="bm25", threshold=0.1)
    assert places(find(index, low)) == [7, 17, 27, 30, 37]


def test_diverse_reject(index):
    plain, gated = Strategy("diverse", k=30), Strategy("diverse", k=30, gate="bm25")
    seen = set()
    for seed in range(30):
        before, after = places(find(index, plain, seed=seed)), places(find(index, gated, seed=seed))
        # Drawn first, then dropped.
        assert after == [p for p in before if p == 30]
        seen.add(len(after))
    assert {0, 1} <= seen


def test_bm25_rank(index):
    scores = BM25(NEAR).score(QUERY, range(200))
    assert scores[150] > 20 and 20 > scores[90] > scores[7]
    # The best by BM25 among the 128 nearest, which 150 is not.
    published = Strategy("bm25_rank", gate="bm25")
    assert places(find(index, published)) == [30]
    found = find(index, Strategy("bm25_rank", k=3))
    assert places(found) == [30, 90, 7]
    assert [r.gate_score for r in found] == pytest.approx([scores[30], scores[90], scores[7]])
    assert places(find(index, Strategy("bm25_rank", candidates=200))) in ([30, 150], [150, 30])


def test_relative_and_cosine_gates(index):
    bm25 = BM25(NEAR)
    relative = bm25.score(QUERY, range(200)) / bm25.self_score(QUERY)
    assert 0.6 < relative[30] < 1 and relative[7] < 0.2
    gate = Strategy("nearest", k=40, gate="bm25_relative", threshold=0.5)
    (found,) = [find(index, gate)]
    assert places(found) == [30] and found[0].gate_score == pytest.approx(relative[30])
    # The cosine of the third is that of 12.8 degrees.
    limit = math.cos(math.radians(12.9))
    found = find(index, Strategy("nearest", k=9, gate="cosine", threshold=limit))
    assert places(found) == [0, 1, 2]
    ranked = find(index, Strategy("bm25_rank", k=3, gate="cosine", threshold=0.5))
    assert places(ranked) == [30, 90, 7] and all(r.gate_score == r.similarity for r in ranked)


def test_examples_added_later():
    index = ExampleIndex(FakeEncoder())
    retriever = Retriever(index, Strategy("bm25_rank", k=1))
    query = [example("a stone bridge")]
    assert retriever.find(query) == [[]] and retriever.find([]) == []
    index.add([example("stone"), example("mill"), example("road")])
    assert retriever.find(query)[0][0].example.text == "stone"
    index.add([example("the stone bridge"), example("lake")])
    assert retriever.find(query)[0][0].example.text == "the stone bridge"
    other = ExampleIndex(FakeEncoder())
    other.add([example(t) for t in ("sea", "bridge", "lake", "hill", "a town", "river")])
    index.from_bytes(other.to_bytes())
    assert retriever.find(query)[0][0].example.text in ("bridge", "a town")


STRATEGIES = st.builds(
    Strategy,
    kind=st.sampled_from(["nearest", "random", "mixed", "diverse", "bm25_rank"]),
    k=st.integers(0, 4),
    candidates=st.integers(4, 9),
    mix=st.sampled_from([0.0, 0.5, 1.0]),
    gate=st.sampled_from(["none", "bm25", "bm25_relative", "cosine"]),
    threshold=st.sampled_from([-1.0, 0.0, 0.3]),
)
TEXTS = st.lists(st.sampled_from(["Bonn", "BONN", "Rome", "mill", " ", "王"]), max_size=4).map(
    " ".join
)
EXAMPLES = st.builds(lambda t, d: example(t, "A", doc_id=d), TEXTS, st.sampled_from(["", "d1"]))


@hypothesis_settings(max_examples=80)
@given(
    pool=st.lists(EXAMPLES, max_size=20),
    others=st.lists(EXAMPLES, max_size=4),
    strategy=STRATEGIES,
    data=st.data(),
)
def test_no_query_finds_itself_in_any_order(pool, others, strategy, data):
    index = ExampleIndex(FakeEncoder())
    index.add(pool)
    queries = others + pool[:4]
    retriever = Retriever(index, strategy)
    found = retriever.find(queries, seed=3)
    for query, results in zip(queries, found):
        assert len(results) <= strategy.k
        assert len({r.example for r in results}) == len(results)
        for r in results:
            assert r.example.hash != query.hash
            assert not query.doc_id or r.example.doc_id != query.doc_id
            assert r.similarity <= 0.98
            assert strategy.gate == "none" or r.gate_score >= strategy.threshold
    order = data.draw(st.permutations(range(len(queries))))
    again = Retriever(index, strategy).find([queries[i] for i in order], seed=3)
    assert again == [found[i] for i in order]


def test_defaults():
    assert make_strategy() == Strategy() == Strategy("nearest", 2, 128, 0.8, "none", 20.0)
    assert make_strategy(gate="bm25").threshold == 20.0
    assert 0 < make_strategy(gate="bm25_relative").threshold < 1
    assert 0 < make_strategy(gate="cosine").threshold < 1
    assert make_strategy(gate="bm25", threshold=0).threshold == 0


@pytest.mark.parametrize(
    "settings,message",
    [
        (
            {"kind": "closest"},
            "'closest' is not a valid kind of retrieval. Choose one of: nearest, random, mixed",
        ),
        ({"gate": "door"}, "'door' is not a valid gate. Choose one of: none, bm25"),
        ({"k": -1}, "`k` of the retrieval strategy is -1, but must be 0 or more"),
        ({"kind": "diverse", "candidates": 1}, "`candidates`.*at least k"),
        ({"kind": "bm25_rank", "k": 0, "candidates": 0}, "`candidates`.*1 or more"),
        ({"mix": 1.5}, "`mix`.*from 0 to 1"),
        ({"gate": "bm25", "threshold": math.nan}, "`threshold`.*a number"),
        ({"gate": "cosine", "threshold": 20.0}, "`threshold`.*is 20.0.*with the gate 'cosine'"),
        ({"gate": "bm25_relative", "threshold": 20.0}, "with the gate 'bm25_relative'"),
    ],
)
def test_messages(settings, message):
    with pytest.raises(LLMNERError, match=message):
        make_strategy(**settings)
    with pytest.raises(LLMNERError, match=message):
        Strategy(**settings)


@pytest.mark.parametrize("kind", ["nearest", "bm25_rank", "mixed"])
def test_added_to_while_it_is_searched(kind):
    """FAISS moves its vectors when it grows, and the first query computes the counts of BM25."""
    index = ExampleIndex(FakeEncoder(width=64))
    index.add([example(f"text {i} of Bonn", "L") for i in range(3000)])
    retriever = Retriever(index, make_strategy(kind, candidates=16, gate="bm25", threshold=-9.0))
    queries = [example(f"query {i} of Bonn") for i in range(40)]
    start = threading.Barrier(3)

    def search(_):
        start.wait()
        return [len(found) for _ in range(3) for found in retriever.find(queries)]

    with ThreadPoolExecutor(2) as threads:
        searches = threads.map(search, range(2))
        start.wait()
        for batch in range(10):
            index.add([example(f"text {batch} {i} of Rome", "L") for i in range(300)])
        found = [n for each in searches for n in each]
    assert found == [2] * 240
    (after,) = retriever.find(queries[:1])
    assert len(after) == 2 and len(index) == 6000
    if kind != "mixed":
        (fresh,) = Retriever(index, retriever.strategy).find(queries[:1])
        assert [r.gate_score for r in after] == pytest.approx([r.gate_score for r in fresh])
