"""The pool: which texts, which spans, and which of them are shown (checklist 4, 5, 9)."""

import numpy as np
import pytest
import spacy
from spacy.tokens import Doc, Span

from spacy_llmner.el4ner_ensemble.demonstrations.pool import (
    DemonstrationPool,
    choose_texts,
    pool_texts,
)
from spacy_llmner.el4ner_ensemble.demonstrations.retrieve import Demonstrator
from spacy_llmner.errors import LLMNERError
from spacy_llmner.retrieval.examples import LabelledText, PoolText
from tests.el4ner_ensemble.helpers import FakeEncoder, words_of
from tests.helpers import TRAIN, make_examples

LABELS = ["LOC", "PER"]


def texts_of(data=TRAIN):
    nlp = spacy.blank("en")
    return list(pool_texts(eg.reference for eg in make_examples(nlp, data)))


@pytest.fixture
def pool():
    """Voter "a" found all entities and "tea" or "boat"; "b" found nothing."""
    pool = DemonstrationPool(FakeEncoder())
    texts = texts_of()
    proposed = []
    for text in texts:
        spans = [(a, b) for a, b, _ in text.example.entities]
        for word in ("tea", "boat"):
            at = text.example.text.find(word)
            spans += [(at, at + len(word))] if at >= 0 else []
        proposed.append({"a": spans, "b": []})
    pool.fill(texts, proposed)
    return pool


def query(text):
    return LabelledText(text, doc_id=LabelledText(text).hash)


def shown(pool, text, how="span", k=2, spans=(), weights=None, labels=LABELS):
    weights = [1.0] * len(spans) if weights is None else weights
    found = Demonstrator(pool, how, k, labels).choose([query(text)], [spans], [weights])
    return [demo.text for demo in found[0]]


def test_texts_of_a_corpus():
    nlp = spacy.blank("en")
    nlp.add_pipe("sentencizer")
    text = " Mira sings. Bo met Ada in Rome.  "
    doc = nlp(text)
    ents = [doc.char_span(1, 5, "PER"), doc.char_span(20, 23, "PER"), doc.char_span(27, 31, "LOC")]
    doc.set_ents(ents, default="outside")
    unknown = nlp("Nothing is known here.")
    partly = nlp("Mira sings in Bonn.")
    partly.set_ents([], missing=[partly[3:4]], default="outside")
    same = doc.copy()
    found = list(pool_texts([doc, unknown, partly, same, Doc(nlp.vocab), nlp("  ")]))
    assert [(t.example.text, t.example.entities) for t in found] == [
        ("Mira sings.", ((0, 4, "PER"),)),
        ("Bo met Ada in Rome.", ((7, 10, "PER"), (14, 18, "LOC"))),
    ]
    assert found[1].words == words_of("Bo met Ada in Rome.")
    assert {t.example.doc_id for t in found} == {LabelledText(text).hash}


def test_entities_across_sentences():
    """Half of an entity would be shown as a span that is not an entity."""
    words = ["Mira", "left", "Yahoo", "!", "Inc", "today", ".", "Bo", "sang", "."]
    starts = [k in (0, 4, 7) for k in range(len(words))]
    doc = Doc(spacy.blank("en").vocab, words=words, sent_starts=starts)
    doc.set_ents([Span(doc, 2, 5, "ORG"), Span(doc, 7, 8, "PER")], default="outside")
    assert [t.example.text for t in pool_texts([doc])] == ["Bo sang ."]


def test_choice_is_balanced():
    texts = [
        PoolText(LabelledText(f"text {k}", ((0, 4, label),) if label else ()), [(0, 4)])
        for k, label in enumerate(["PER"] * 8 + [""] * 4 + ["LOC"] * 2)
    ]
    chosen = [t.example.text for t in choose_texts(texts, 6)]
    assert chosen == ["text 0", "text 1", "text 8", "text 9", "text 12", "text 13"]
    assert choose_texts(texts, 100) == texts and choose_texts(texts, 0) == []


def test_formula_decides(pool):
    """The pool text whose spans are the text's own is the most similar one, and is shown last."""
    text = "Tomorrow Oskar Blum goes home."
    vectors = pool.encoder.encode_spans([text], [[(9, 19)]])[0]
    similar = [(vectors @ pool.vectors[n : n + 1].T).max() for n in range(len(pool.vectors))]
    best = shown(pool, text, spans=[(9, 19)])
    assert max(similar) == pytest.approx(1.0)
    assert all("Oskar Blum" in found for found in best) and len(best) == 2
    other = shown(pool, text, spans=[(9, 19), (25, 29)], weights=[0.0, 4.0])
    assert other != best


def test_no_spans_go_by_the_whole_text(pool):
    text = "Tea is so cold in Port Ellam."
    assert shown(pool, text) == shown(pool, text, "sentence")
    assert shown(pool, text, spans=[(4, 6)], weights=[0.0]) == shown(pool, text, "sentence")


@pytest.mark.parametrize("how", ["span", "sentence", "random"])
@pytest.mark.parametrize("number", range(len(TRAIN)))
def test_never_its_own_demonstration(pool, how, number):
    text = TRAIN[number][0]
    spans = [(a, b) for a, b, _ in TRAIN[number][1]]
    for same in (text, text.upper(), text.replace(" ", "  ")):
        inside = spans if same == text else []
        found = shown(pool, same, how, k=100, spans=inside)
        assert text not in found and len(found) == len(TRAIN) - 1


def test_modes(pool):
    text = "Oskar and Mira"
    assert shown(pool, text, "none") == [] and shown(pool, text, k=0) == []
    one, again = shown(pool, text, "random", k=3), shown(pool, text, "random", k=3)
    assert one == again and len(one) == 3
    assert shown(pool, "Mira and Oskar", "random", k=3) != one  # depends on the text, not on a seed


def test_second_query_encodes_no_pool(pool):
    encoder = pool.encoder
    demonstrator = Demonstrator(pool, "span", 2, LABELS)
    text = "Somebody saw Mira."
    demonstrator.choose([query(text)], [[(13, 17)]], [[4.0]])
    texts, spans = encoder.texts, encoder.spans
    for _ in range(2):
        demonstrator.choose([query(text)], [[(13, 17)]], [[4.0]])
    # The query and its span are encoded, but nothing of the pool.
    assert (encoder.texts - texts, encoder.spans - spans) == (2, 2)


def test_saved(pool, tmp_path):
    pool.to_disk(tmp_path / "pool")
    fresh = DemonstrationPool(FakeEncoder()).from_disk(tmp_path / "pool")
    again = DemonstrationPool(FakeEncoder()).from_bytes(pool.to_bytes())
    for other in (fresh, again):
        assert other.spans == pool.spans and np.array_equal(other.vectors, pool.vectors)
        assert other.index.examples == pool.index.examples
        assert other.encoder.texts == other.encoder.spans == 0
        assert shown(other, "Oskar Blum", spans=[(0, 10)]) == shown(
            pool, "Oskar Blum", spans=[(0, 10)]
        )
    DemonstrationPool(FakeEncoder()).from_bytes(DemonstrationPool(FakeEncoder()).to_bytes())


@pytest.mark.parametrize("file", ["spans.json", "spans.safetensors", "examples.jsonl", "meta.json"])
@pytest.mark.parametrize("broken", [None, b"", b"[]"])
def test_incomplete(pool, file, broken, tmp_path):
    pool.to_disk(tmp_path)
    (tmp_path / file).unlink()
    if broken is not None:
        (tmp_path / file).write_bytes(broken)
    other = DemonstrationPool(FakeEncoder())
    with pytest.raises(
        LLMNERError, match="Can't load the pool of labelled texts .*initialize it again"
    ):
        other.from_disk(tmp_path)
    assert len(other) == 0  # nothing was replaced


def test_files_of_two_pools(pool, tmp_path):
    """This happens if saving one pool over another is interrupted."""
    texts = texts_of()[:3]
    less = DemonstrationPool(FakeEncoder())
    less.fill(texts, [{"a": []} for _ in texts])
    less.to_disk(tmp_path / "less")
    pool.to_disk(tmp_path / "pool")
    for file in ("spans.json", "spans.safetensors"):
        found = tmp_path / "pool" / file
        whole = found.read_bytes()
        found.write_bytes((tmp_path / "less" / file).read_bytes())
        with pytest.raises(LLMNERError, match="there are 6 texts, spans of"):
            DemonstrationPool(FakeEncoder()).from_disk(tmp_path / "pool")
        found.write_bytes(whole)
    with pytest.raises(LLMNERError, match="the pool of labelled texts from the given bytes"):
        DemonstrationPool(FakeEncoder()).from_bytes(b"\x80")


def test_a_full_disk_leaves_the_old_pool(pool, tmp_path, monkeypatch):
    pool.to_disk(tmp_path)
    files = sorted(tmp_path.iterdir())

    def stop(self, path):
        raise OSError("disk full")

    monkeypatch.setattr(type(pool.index), "to_disk", stop)
    with pytest.raises(OSError, match="disk full"):
        pool.to_disk(tmp_path)
    assert sorted(tmp_path.iterdir()) == files
    again = DemonstrationPool(FakeEncoder()).from_disk(tmp_path)
    assert again.index.examples == pool.index.examples


def test_what_is_shown(pool):
    mira = pool.demonstration(0, LABELS)
    assert mira.entities == ((0, 10, "PER"), (15, 25, "PER"), (29, 37, "LOC"))
    assert [mira.text[a:b] for a, b in mira.others] == ["met"]  # the longest other word
    tea = pool.demonstration(1, LABELS)
    assert [tea.text[a:b] for a, b in tea.others] == ["tea"]  # what a voter found


def test_other_labels(pool):
    assert pool.usable(["PER", "LOC"]).all()
    assert pool.usable(["LOC"]).tolist() == [True, False, True, True, True, True]
    assert pool.usable(["X"]).tolist() == [False, False, False, True, False, False]
    assert pool.demonstration(0, ["LOC"]).entities == ((29, 37, "LOC"),)
    assert "Oskar Blum likes tea." not in shown(pool, "Oskar Blum", k=10, labels=["LOC"])


def test_no_spans_in_the_pool(pool):
    """If the voters find nothing, whole texts are compared, and long words are shown as "no entity"."""
    texts = texts_of()
    pool.fill(texts, [{"b": []} for _ in texts])
    assert not pool.vectors.size and pool.sizes == [0] * len(TRAIN)
    assert shown(pool, "Oskar Blum", spans=[(0, 10)]) == shown(pool, "Oskar Blum", "sentence")
    assert [pool.demonstration(k, LABELS).others for k in (0, 1)] == [((11, 14),), ((11, 16),)]
