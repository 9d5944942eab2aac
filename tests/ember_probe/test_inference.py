import multiprocessing

import pytest
import spacy
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from spacy.language import Language
from spacy.tokens import Span

from spacy_llmner.errors import LLMNERError
from spacy_llmner.llm import spec as spec_module
from spacy_llmner.llm.registry import make_llm
from tests.ember_probe.helpers import (
    NASTY,
    TEXTS,
    TRAIN,
    assert_same,
    assert_valid,
    entities,
    make_nlp,
    scores,
    train,
)

UNSEEN = "Yesterday Mira Stone left Port Ellam ; nobody saw Oskar Blum. Then tea in Varnholm."
MANY = [*TEXTS, UNSEEN, "", " ", "Tea", "Mira Stone " * 20]


@pytest.fixture(params=["default", "look_right", "paper"])
def any_trained(request):
    fixture = {"default": "trained", "look_right": "trained_right", "paper": "trained_next"}
    return request.getfixturevalue(fixture[request.param])


def test_pipe_is_call(any_trained):
    alone = [any_trained(text) for text in MANY]
    for batch_size in (1, 3, 100):
        for one, other in zip(alone, any_trained.pipe(MANY, batch_size=batch_size)):
            assert_same(one, other)


@settings(deadline=None, max_examples=5)
@given(st.permutations(range(len(MANY))), st.integers(1, 12))
def test_any_order_and_batch_size(trained, order, batch_size):
    for i, doc in zip(order, trained.pipe([MANY[i] for i in order], batch_size=batch_size)):
        assert_same(doc, trained(MANY[i]))


def test_batches_of_tokens_change_nothing(any_trained, monkeypatch):
    expected = list(any_trained.pipe(MANY))
    pipe = any_trained.get_pipe("ember_probe")
    monkeypatch.setattr(pipe, "max_batch_tokens", 20)
    for one, other in zip(expected, any_trained.pipe(MANY)):
        assert_same(one, other)


def test_features_of_a_few_texts_are_held_at_once(trained, monkeypatch):
    """However large the batch of Docs is."""
    pipe, sizes = trained.get_pipe("ember_probe"), []
    read = pipe.read
    monkeypatch.setattr(pipe, "read", lambda docs: sizes.append(sum(map(len, docs))) or read(docs))
    monkeypatch.setattr(pipe, "max_batch_tokens", 10)
    docs = list(trained.pipe(TEXTS * 10, batch_size=100))
    assert max(sizes) <= 40 and sum(sizes) == sum(map(len, docs))


def test_as_tuples(trained):
    out = list(trained.pipe([(text, i) for i, text in enumerate(TEXTS)], as_tuples=True))
    assert [i for _, i in out] == list(range(len(TEXTS)))
    assert [entities(doc) for doc, _ in out] == [gold for _, gold in TRAIN]


def test_n_process(trained):
    out = list(trained.pipe(TEXTS * 2, n_process=2, batch_size=2))
    for doc, text in zip(out, TEXTS * 2):
        assert_same(doc, trained(text))


@pytest.mark.parametrize("device", ["auto", "cuda", "cuda:0"])
@pytest.mark.parametrize("how", ["is_available", "_is_in_bad_fork"])
def test_cuda_in_a_child_process(trained, monkeypatch, device, how):
    monkeypatch.setattr(multiprocessing, "parent_process", lambda: object())
    monkeypatch.setattr(spec_module, "_was_forked", True)
    monkeypatch.setattr(torch, "set_num_threads", lambda n: None)
    pipe = trained.get_pipe("ember_probe")
    monkeypatch.setattr(pipe, "llm", make_llm(pipe.llm.spec.name, device=device))
    monkeypatch.setattr(torch.cuda, how, lambda: True)
    with pytest.raises(LLMNERError, match="n_process > 1 can't be used with an LLM on cuda"):
        list(trained.pipe(TEXTS))


@settings(deadline=None, max_examples=40)
@given(st.text(max_size=60))
@example("")
@example(" ")
@example("Mira Stone")
def test_any_text(trained, text):
    assert_valid(trained(text), text)


@settings(deadline=None, max_examples=25)
@given(
    st.lists(
        st.sampled_from([*NASTY, *TEXTS, " ", "\n", "\t ", "Mira Stone", "\u00a0", "Oskar", "."]),
        max_size=6,
    )
)
def test_any_mixture(trained, paper, pieces):
    text = "".join(pieces)
    assert_valid(trained(text), text)
    assert_valid(paper("next")(text), text)


@pytest.mark.parametrize("text", NASTY)
def test_nasty_texts(any_trained, text):
    assert_valid(any_trained(text), text)


def test_very_long_text(trained):
    text = (" ".join(TEXTS) + "\n") * (50_000 // len(" ".join(TEXTS)) + 1)
    doc = trained(text)
    assert_valid(doc, text)
    assert doc.ents


def test_text_of_several_windows(any_trained):
    text = "\n".join(TEXTS * 4)
    assert_valid(any_trained(text), text)


def test_long_word(trained):
    assert_valid(trained("x" * 3000), "x" * 3000)


def test_no_entity_crosses_a_sentence(trained):
    nlp = spacy.blank("en")

    @Language.component("every_word_starts_a_sentence")
    def every_word(doc):
        for token in doc:
            token.is_sent_start = True
        return doc

    nlp.add_pipe("every_word_starts_a_sentence")
    nlp.add_pipe("ember_probe", source=trained)
    doc = nlp(TEXTS[0])
    assert all(len(span) == 1 for span in [*doc.ents, *doc.spans["llmner"]])


@pytest.mark.parametrize("overwrite", [True, False])
def test_overwrite(trained, monkeypatch, overwrite):
    pipe = trained.get_pipe("ember_probe")
    monkeypatch.setitem(pipe.cfg, "overwrite", overwrite)
    doc = trained.make_doc(TEXTS[0])
    doc.ents = [Span(doc, 1, 4, label="OLD"), Span(doc, 5, 6, label="OLD")]
    pipe(doc)
    labels = [(e.text, e.label_) for e in doc.ents]
    if overwrite:
        assert labels == [("Mira Stone", "PER"), ("Oskar Blum", "PER"), ("Varnholm", "LOC")]
    else:
        # What overlaps an old entity is left out of doc.ents, but not of doc.spans.
        assert labels == [("Stone met Oskar", "OLD"), ("in", "OLD"), ("Varnholm", "LOC")]
        assert len(doc.spans["llmner"]) >= 3
    # Once more changes nothing.
    assert [(e.text, e.label_) for e in pipe(doc).ents] == labels


def test_spans_with_scores(any_trained):
    doc = any_trained(TEXTS[0])
    group = doc.spans["llmner"]
    assert len(group.attrs["scores"]) == len(group) >= len(doc.ents) > 0
    found = {(s.start, s.end, s.label_): x for s, x in zip(group, group.attrs["scores"])}
    for ent in doc.ents:
        assert ent._.score == found[ent.start, ent.end, ent.label_]
        assert 0.0 < ent._.score <= 1.0
    assert doc[0:1]._.score is None
    # All entities are annotated, so no token is "missing".
    assert all(token.ent_iob for token in doc)


def test_spans_key(trained, monkeypatch):
    monkeypatch.setitem(trained.get_pipe("ember_probe").cfg, "spans_key", "mine")
    doc = trained(TEXTS[0])
    assert "llmner" not in doc.spans
    assert doc.ents[0]._.score == doc.spans["mine"].attrs["scores"][0]


def test_nothing_heavy_on_the_doc(trained):
    doc = trained(TEXTS[0])
    assert doc.tensor.size == 0
    assert len(doc.to_bytes()) < len(spacy.blank("en")(TEXTS[0]).to_bytes()) + 1500


@pytest.fixture(scope="module")
def unsure(tiny_llm):
    """Trained a little, so that its scores are neither 0 nor 1."""
    return train(make_nlp(tiny_llm, width=16), steps=3, learn_rate=0.005)


def test_lower_threshold_finds_more(unsure, monkeypatch):
    """What `spacy find-threshold` does: it sets cfg["threshold"]."""
    cfg = unsure.get_pipe("ember_probe").cfg
    n_ents, keys = [], []
    for threshold in (1.0, 0.9, 0.5, 0.2, 0.05, 0.01, 0.0):
        monkeypatch.setitem(cfg, "threshold", threshold)
        docs = list(unsure.pipe([*TEXTS, UNSEEN]))
        n_ents.append(sum(len(doc.ents) for doc in docs))
        keys.append({(i, key) for i, doc in enumerate(docs) for key in scores(doc)})
        for doc in docs:
            assert_valid(doc, doc.text)
    assert n_ents == sorted(n_ents) and n_ents[-1] > n_ents[0]
    assert len(keys[-1]) > len(keys[0])
    # Everything at least that probable is in doc.spans, apart from chosen entities below it.
    monkeypatch.setitem(cfg, "threshold", 0.2)
    for doc in unsure.pipe(TEXTS):
        chosen = set(entities(doc))
        assert all(s >= 0.2 or key in chosen for key, s in scores(doc).items())


def test_chinese(tiny_llm):
    data = [
        ("王小明在北京大学学习。", [(0, 3, "PER"), (4, 8, "ORG")]),
        ("他住在上海。", [(3, 5, "LOC")]),
    ]
    nlp = train(make_nlp(tiny_llm, lang="zh", width=32), data=data)
    for text, gold in data:
        assert entities(nlp(text)) == gold


def test_every_shape_of_llm(any_llm):
    nlp = train(make_nlp(any_llm, width=32), steps=20)
    assert entities(nlp(TEXTS[0])) == TRAIN[0][1]
    for text in NASTY:
        assert_valid(nlp(text), text)
