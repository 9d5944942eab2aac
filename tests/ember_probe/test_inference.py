"""Long texts, sentences, and the threshold."""

import numpy as np
import pytest
import spacy
from spacy.language import Language

from spacy_llmner.ember_probe.probes.segmentation import IMPOSSIBLE
from spacy_llmner.errors import LLMNERError
from tests.ember_probe.helpers import (
    TEXTS,
    assert_valid,
    entities,
    make_examples,
    make_nlp,
    make_sgd,
    scores,
    train,
)

UNSEEN = "Yesterday Mira Stone left Port Ellam ; nobody saw Oskar Blum. Then tea in Varnholm."


def test_features_of_a_few_texts_are_held_at_once(trained, monkeypatch):
    """This is independent of the size of the batch of Docs."""
    pipe, sizes = trained.get_pipe("ember_probe"), []
    read = pipe.read
    monkeypatch.setattr(pipe, "read", lambda docs: sizes.append(sum(map(len, docs))) or read(docs))
    monkeypatch.setattr(pipe, "max_batch_tokens", 10)
    docs = list(trained.pipe(TEXTS * 10, batch_size=100))
    assert max(sizes) <= 40 and sum(sizes) == sum(map(len, docs))


def test_very_long_text(trained):
    text = (" ".join(TEXTS) + "\n") * (50_000 // len(" ".join(TEXTS)) + 1)
    doc = trained(text)
    assert_valid(doc, text)
    assert doc.ents


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


@pytest.mark.parametrize("blanks", ["\u3000\u3000\u3000\x85\x85\x85", " \n ", "\u200b \ufeff "])
def test_blank_words_do_not_hide_a_mention(tiny_llm, blanks):
    """The most probable spans begin and end with white space. The best of the others is found."""
    nlp = train(make_nlp(tiny_llm), steps=0)
    ember = nlp.get_pipe("ember_probe")
    doc = nlp.make_doc(f"{blanks}Oslo{blanks}")
    n = next(token.i for token in doc if token.text.strip("\u200b\ufeff") == "Oslo")
    rows = np.full((len(doc), 8, len(ember.labels)), IMPOSSIBLE)
    for end in range(len(doc)):
        rows[end, : end + 1] = 4.0
    rows[n, 0] = 1.0
    prediction = ember.predictor().decode(doc, rows)
    assert [(s.start, s.end) for s in prediction.ents] == [(n, n + 1)]
    assert {(s.start, s.end) for s in prediction.spans} == {(n, n + 1)}


def test_nan_is_an_error_by_name(trained, monkeypatch):
    nlp = spacy.blank("en")
    pipe = nlp.add_pipe("ember_probe", source=trained)
    read = pipe.read

    def broken(docs):
        features = read(docs)
        features[-1].hidden[0, 0, 0] = float("nan")
        return features

    monkeypatch.setattr(pipe, "read", broken)
    with pytest.raises(LLMNERError, match="NaN"):
        list(nlp.pipe(TEXTS))
    with pytest.raises(LLMNERError, match="NaN"):
        nlp.update(make_examples(nlp), sgd=make_sgd())
