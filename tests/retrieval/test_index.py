import json
import os
import pickle
import resource
from contextlib import contextmanager

import numpy as np
import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from safetensors.numpy import load_file, save_file

from spacy_llmner.errors import LLMMismatchError, LLMNERError
from spacy_llmner.retrieval import index as index_module
from spacy_llmner.retrieval import vectors
from spacy_llmner.retrieval.examples import LabelledText
from spacy_llmner.retrieval.index import ExampleIndex, Hit
from tests.retrieval.helpers import FakeEncoder, at, example

FILES = ["examples.jsonl", "meta.json", "vectors.safetensors"]
# From the query, at 0 degrees: b, d, c, a.
ANGLES = {"query": 0, "a": 80, "b": 20, "c": 60, "d": -40}


def make_index(texts="abcd", kind="exact"):
    encoder = FakeEncoder({text: at(angle) for text, angle in ANGLES.items()})
    index = ExampleIndex(encoder, kind)
    index.add([example(t, "L") for t in texts])
    return index


def numbers(found):
    return [[hit.number for hit in hits] for hits in found]


def many(n, width=16):
    return ExampleIndex(FakeEncoder(width=width)), [example(f"text {i}", "L") for i in range(n)]


@pytest.fixture
def small_lists(monkeypatch):
    monkeypatch.setattr(vectors, "IVF_SMALLEST", 100)
    monkeypatch.setattr(vectors, "IVF_PROBES", 1000)


def test_nearest_first():
    index = make_index()
    (hits,) = index.search([example("query")], 3)
    assert numbers([hits]) == [[1, 3, 2]]
    assert hits[0] == Hit(1, pytest.approx(np.cos(np.radians(20)), abs=1e-5))
    assert numbers(index.search([example("query"), example("a")], 1)) == [[1], [2]]
    assert index.vectors.shape == (4, 4) and len(index) == 4
    assert index.labels() == {"L": 4}


def test_fewer_than_asked():
    index = make_index()
    assert numbers(index.search([example("query"), example("b")], 9)) == [[1, 3, 2, 0], [2, 0, 3]]
    assert index.search([example("query")], 0) == [[]]
    assert index.search([], 3) == []


def test_ties_by_number():
    encoder = FakeEncoder({"query": at(0), **{f"t{i}": at(30) for i in range(40)}})
    index = ExampleIndex(encoder)
    index.add([example(f"t{i}") for i in range(40)])
    assert numbers(index.search([example("query")], 3)) == [[0, 1, 2]]


def test_never_itself():
    encoder = FakeEncoder({"query": at(0), "near": at(5), "same place": at(50), "far": at(60)})
    index = ExampleIndex(encoder)
    same = [example("Query"), example(" query ", "Z"), example("query", "L"), example("near")]
    index.add([*same, example("same place", doc_id="d1"), example("far", doc_id="d2")])
    assert len(index) == 6
    assert numbers(index.search([example("query", "X", doc_id="d1")], 6)) == [[5]]
    assert numbers(index.search([example("query", doc_id="d3")], 6)) == [[4, 5]]
    # Without a doc_id, nothing is known about where texts are from.
    assert numbers(index.search([example("query")], 6)) == [[4, 5]]
    # cos(5 degrees) is 0.996.
    assert numbers(index.search([example("query")], 2, max_similarity=0.999)) == [[3, 4]]
    assert numbers([index.compare(example("query"), index.vectors[2], [5, 4, 0])]) == [[4, 5]]


def test_one_text_with_two_annotations_counts_once():
    """This happens if corpora with different label sets are mixed."""
    encoder = FakeEncoder({"query": at(0), "near": at(20), "far": at(60)})
    index = ExampleIndex(encoder)
    index.add(
        [example("near", "PER"), example("near", "LOC", "LOC"), example("Far"), example("far", "X")]
    )
    assert len(index) == 4
    assert numbers(index.search([example("query")], 3))[0][0] == 0
    assert len(index.search([example("query")], 3)[0]) == 2
    assert len(index.compare(example("query"), encoder.encode(["query"])[0], [1, 0, 3])) == 2


def test_asks_for_more_behind_many_copies():
    encoder = FakeEncoder({f"copy {i}": at(i / 100) for i in range(90)} | {"other": at(40)})
    index = ExampleIndex(encoder)
    index.add([example(f"copy {i}") for i in range(90)] + [example("other")])
    assert numbers(index.search([example("copy 3")], 1)) == [[90]]


def test_add_skips_duplicates():
    index = ExampleIndex(FakeEncoder())
    assert index.add([example("a", "L"), example("A ", "L"), example("a"), example("b")]) == 3
    assert index.add([example("b"), example("c"), example(""), example(" \n")]) == 1
    assert [e.text for e in index.examples] == ["a", "a", "b", "c"]
    assert index.add([]) == 0 and len(index.vectors) == 4


def test_add_is_incremental_and_lazy():
    at_once, examples = many(30)
    at_once.add(examples)
    index, _ = many(0)
    pulled = []

    def stream():
        for e in examples:
            # At most one batch is in memory.
            pulled.append(e)
            assert len(pulled) - len(index) <= 7
            yield e

    assert index.add(stream(), batch_size=7, progress=True) == 30
    assert max(len(texts) for texts in index.encoder.encoded) == 7
    queries = [example(f"query {i}") for i in range(9)] + examples[:5]
    assert index.search(queries, 5) == at_once.search(queries, 5)


def test_texts_of_the_index_are_not_encoded_again():
    index = make_index()
    del index.encoder.encoded[:]
    index.search([example("a"), example("query"), example("query"), example("b")], 2)
    assert index.encoder.encoded == [["query"]]


def test_empty():
    index = make_index("")
    assert len(index) == 0 and index.labels() == {} and index.vectors.shape == (0, 0)
    assert index.search([example("a"), example("b")], 2) == [[], []]
    index = ExampleIndex(FakeEncoder()).from_bytes(index.to_bytes())
    assert index.search([example("a")], 2) == [[]]
    assert index.add([example("a")]) == 1


def test_queries_without_text():
    assert numbers(make_index().search([example(" "), example("query")], 1)) == [[], [1]]


@pytest.mark.parametrize("kind", vectors.KINDS)
def test_kinds(kind, small_lists):
    exact, examples = many(400)
    index = ExampleIndex(FakeEncoder(width=16), kind)
    index.add(examples[:250])
    exact.add(examples[:250])
    queries = [example(f"query {i}") for i in range(20)] + examples[:20]
    assert index.search(queries, 4) == exact.search(queries, 4)
    index.add(examples[250:])
    exact.add(examples[250:])
    assert index.search(queries, 4) == exact.search(queries, 4)
    np.testing.assert_array_equal(index.vectors, exact.vectors)


@pytest.mark.parametrize("kind", vectors.KINDS)
@pytest.mark.parametrize("how", ["disk", "bytes", "pickle"])
def test_saved_is_loaded(kind, how, tmp_path, small_lists, monkeypatch):
    monkeypatch.setattr(vectors, "IVF_PROBES", 2)
    monkeypatch.setattr(vectors, "HNSW_SEARCH", 8)
    _, examples = many(300)
    index = ExampleIndex(FakeEncoder(width=16), kind)
    index.add(examples)
    again = ExampleIndex(NeverLoaded())
    if how == "disk":
        index.to_disk(tmp_path / "index")
        index.to_disk(tmp_path / "index")  # over an existing index
        again.from_disk(tmp_path / "index")
    elif how == "bytes":
        again.from_bytes(index.to_bytes())
    else:
        again = pickle.loads(pickle.dumps(index))
    again.encoder = index.encoder
    assert again.kind == kind and again.examples == index.examples
    np.testing.assert_array_equal(again.vectors, index.vectors)
    queries = [example(f"query {i}") for i in range(30)] + examples[:20]
    assert again.search(queries, 5) == index.search(queries, 5)
    # It continues like the first one.
    more = [example(f"more {i}") for i in range(60)]
    assert again.add(more + examples) == index.add(more) == 60
    assert again.search(queries, 5) == index.search(queries, 5)


class NeverLoaded:
    name = "never"

    def __getattr__(self, name):
        raise AssertionError("the encoder was asked for " + name)


def test_what_is_saved(tmp_path):
    index = make_index("ab")
    index.examples[0] = LabelledText("a\u2028", ((0, 1, "ärzte"),), "d1")
    index.to_disk(tmp_path)
    assert json.loads((tmp_path / "meta.json").read_text())["encoder"] == {
        "name": "fake",
        "fingerprint": "f0",
    }
    assert make_index("c").from_disk(tmp_path).examples == index.examples


def test_another_encoder(tmp_path):
    make_index().to_disk(tmp_path)
    other = ExampleIndex(FakeEncoder(name="other", fingerprint="f1")).from_disk(tmp_path)
    message = (
        r"built with the encoder 'fake' \(fingerprint f0\).*'other' \(fingerprint f1\).*"
        "llmner index CORPUS OUT --encoder other$"
    )
    with pytest.raises(LLMMismatchError, match=message):
        other.search([example("a")], 1)
    with pytest.raises(LLMMismatchError, match=message):
        other.add([example("new")])
    # The same weights can have another name.
    moved = ExampleIndex(FakeEncoder(name="moved")).from_disk(tmp_path)
    assert numbers(moved.search([example("a")], 1)) != [[]]


@pytest.mark.parametrize("spoil", ["meta.json", "examples.jsonl", "vectors.safetensors"])
@pytest.mark.parametrize("how", ["missing", "cut", "other"])
def test_broken_folder(spoil, how, tmp_path):
    make_index().to_disk(tmp_path)
    file = tmp_path / spoil
    if how == "missing":
        file.unlink()
    elif how == "cut":
        file.write_bytes(file.read_bytes()[:-20])
    else:
        make_index("ab").to_disk(tmp_path / "other")
        file.write_bytes((tmp_path / "other" / spoil).read_bytes())
    index = make_index("c")
    with pytest.raises(LLMNERError, match="Can't load the example index.*llmner index CORPUS OUT"):
        index.from_disk(tmp_path)
    assert [e.text for e in index.examples] == ["c"]  # nothing was replaced


@pytest.mark.parametrize("room", [10, 5_000, 70_000])
def test_a_full_disk_leaves_the_old_index(tmp_path, room):
    """This is true for whichever file doesn't fit."""
    old = make_index()
    old.to_disk(tmp_path)
    index, examples = many(600, width=40)
    index.add(examples)
    with little_room(room), pytest.raises(OSError, match="large"):
        index.to_disk(tmp_path)
    assert sorted(f.name for f in tmp_path.iterdir()) == FILES
    assert make_index("c").from_disk(tmp_path).examples == old.examples
    index.to_disk(tmp_path)
    assert len(make_index("c").from_disk(tmp_path)) == 600


@contextmanager
def little_room(n):
    """No file can become longer than n bytes."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (n, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_killed_while_files_are_replaced(tmp_path, monkeypatch):
    """A mixture of old and new files can't be loaded."""
    make_index().to_disk(tmp_path)
    replace, replaced = os.replace, []

    def killed(one, other):
        replaced.append(replace(one, other))
        if len(replaced) == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", killed)
    with pytest.raises(KeyboardInterrupt):
        make_index("dcba").to_disk(tmp_path)
    with pytest.raises(LLMNERError, match="Can't load the example index .*meta.json"):
        make_index().from_disk(tmp_path)


@pytest.mark.parametrize("number", [-1, 10**9])
def test_broken_lists(tmp_path, small_lists, number):
    """FAISS would read memory out of bounds."""
    index, examples = many(200)
    index.kind = "ivf"
    index.add(examples)
    index.to_disk(tmp_path)
    arrays = load_file(tmp_path / "vectors.safetensors")
    arrays["list_of"][7] = number
    save_file(arrays, tmp_path / "vectors.safetensors")
    with pytest.raises(LLMNERError, match="Can't load the example index .*lists"):
        ExampleIndex(FakeEncoder(width=16)).from_disk(tmp_path)
    save_file({**arrays, "list_of": arrays["list_of"][:3]}, tmp_path / "vectors.safetensors")
    with pytest.raises(LLMNERError, match="Can't load the example index .*lists"):
        ExampleIndex(FakeEncoder(width=16)).from_disk(tmp_path)


def test_messages(tmp_path):
    with pytest.raises(
        LLMNERError, match="'tree' is not a valid kind of index.*: exact, hnsw, ivf"
    ):
        ExampleIndex(FakeEncoder(), "tree")
    with pytest.raises(LLMNERError, match="the example index from the given bytes"):
        make_index().from_bytes(b"nonsense")
    make_index().to_disk(tmp_path)
    meta = json.loads((tmp_path / "meta.json").read_text())
    (tmp_path / "meta.json").write_text(json.dumps({**meta, "version": 99}))
    with pytest.raises(LLMNERError, match="newer version"):
        make_index().from_disk(tmp_path)


WORDS = st.lists(st.sampled_from(["Bonn", "bonn", "Rome", "Ada", " ", "\t", "北京"]), max_size=5)
EXAMPLES = st.builds(
    lambda words, labels, doc: example(" ".join(words), *labels, doc_id=doc),
    WORDS,
    st.lists(st.sampled_from("AB"), max_size=2),
    st.sampled_from(["", "", "d1", "d2"]),
)


@hypothesis_settings(max_examples=60)
@given(pool=st.lists(EXAMPLES, max_size=25), queries=st.lists(EXAMPLES, max_size=6), data=st.data())
def test_no_query_finds_itself(pool, queries, data):
    index = ExampleIndex(FakeEncoder())
    index.add(pool)
    queries = queries + pool[:4]
    k = data.draw(st.integers(0, 6))
    found = index.search(queries, k)
    for query, hits in zip(queries, found):
        assert len(hits) <= k and len({hit.number for hit in hits}) == len(hits)
        for hit in hits:
            got = index.examples[hit.number]
            assert got.hash != query.hash and got.text.split() != query.text.split()
            assert not query.doc_id or got.doc_id != query.doc_id
            assert hit.similarity <= 0.98
    order = data.draw(st.permutations(range(len(queries))))
    assert index.search([queries[i] for i in order], k) == [found[i] for i in order]
    assert [index.search([query], k)[0] for query in queries] == found


def test_search_in_batches(monkeypatch):
    index, examples = many(40)
    index.add(examples)
    queries = [example(f"query {i}") for i in range(11)]
    found = index.search(queries, 3)
    monkeypatch.setattr(index_module, "SEARCH_BATCH", 4)
    assert index.search(queries, 3) == found
