import numpy as np
import pytest
import spacy
import torch
from spacy.tokens import Span
from spacy.training import Example

from spacy_llmner.ember_probe.features.batch import surface
from spacy_llmner.ember_probe.features.words import WordFeatures
from spacy_llmner.ember_probe.probes.fewshot import choose, make_ember_few_shot
from spacy_llmner.ember_probe.probes.structured import PREFIX
from spacy_llmner.ember_probe.streaming.events import EntityEvent, TextPiece
from spacy_llmner.errors import LLMNERError
from spacy_llmner.llm import registry as pool
from tests.ember_probe.helpers import (
    FEW_SHOT,
    TEXTS,
    TRAIN,
    assert_same,
    assert_valid,
    entities,
    make_examples,
    make_nlp,
    make_sgd,
    same_state,
    state_of,
)

DATA = [(text, {"entities": ents}) for text, ents in TRAIN]
ODD = ["", " ", "\n\n", "🚀", "\u202e\x00 Varnholm", "Mira " * 300]


def fitted(llm, data=DATA, **model):
    nlp = make_nlp(llm, FEW_SHOT, **model)
    nlp.get_pipe("ember_probe").fit(data)
    return nlp


@pytest.fixture(scope="module", params=[None, "next"])
def attention(request):
    return request.param


@pytest.fixture(scope="module")
def nlp(tiny_llm, attention):
    return fitted(tiny_llm, attention=attention)


def test_three_lines_of_python(tiny_llm):
    nlp = spacy.blank("en")
    config = {"llm": {"name": tiny_llm}, "model": {"@architectures": FEW_SHOT}}
    nlp.add_pipe("ember_probe", config=config).fit(DATA)
    assert nlp.get_pipe("ember_probe").labels == ("LOC", "PER")
    assert nlp(TEXTS[0]).ents


def test_words_of_the_support_get_their_types(nlp):
    right = total = 0
    for (text, gold), doc in zip(TRAIN, nlp.pipe(TEXTS)):
        assert_valid(doc, text)
        for token in doc:
            label = [x for start, end, x in gold if start <= token.idx < end]
            total += 1
            right += [token.ent_type_] == (label or [""])
    assert right / total > 0.7


def test_examples_do_as_well_as_tuples(tiny_llm, nlp, attention):
    other = make_nlp(tiny_llm, FEW_SHOT, attention=attention)
    other.get_pipe("ember_probe").fit(make_examples(other))
    assert same_state(state_of(nlp), state_of(other))
    other = make_nlp(tiny_llm, FEW_SHOT, attention=attention)
    other.initialize(lambda: make_examples(other))
    assert same_state(state_of(nlp), state_of(other))


def test_nothing_is_trained(nlp):
    ember = nlp.get_pipe("ember_probe")
    assert list(ember.module.parameters()) == []
    assert not any(p.requires_grad for p in ember.shared_llm().model.parameters())


@pytest.mark.parametrize("read_twice", [False, True])
def test_batches_alone_and_odd_texts(tiny_llm, attention, read_twice):
    if attention and read_twice:
        pytest.skip("refused")
    nlp = fitted(tiny_llm, attention=attention, read_twice=read_twice)
    texts = TEXTS + ODD
    for one, other in zip([nlp(text) for text in texts], nlp.pipe(texts, batch_size=4)):
        assert_same(one, other)
        assert_valid(one, one.text)


def test_save_and_load(nlp, tmp_path, tiny_llm):
    before = [nlp(text) for text in TEXTS]
    nlp.to_disk(tmp_path / "m")
    loaded = spacy.load(tmp_path / "m")
    assert (tmp_path / "m" / "ember_probe" / "model.safetensors").exists()
    assert same_state(state_of(nlp), state_of(loaded))
    for text, doc in zip(TEXTS, before):
        assert_same(loaded(text), doc)
    fresh = spacy.load(tmp_path / "m", exclude=["ember_probe"])
    fresh.add_pipe("ember_probe", source=loaded)
    assert_same(fresh(TEXTS[0]), before[0])
    again = make_nlp(tiny_llm, FEW_SHOT, **_model_config(nlp))
    again.get_pipe("ember_probe").from_bytes(nlp.get_pipe("ember_probe").to_bytes())
    assert_same(again(TEXTS[0]), before[0])


def _model_config(nlp):
    config = dict(nlp.config["components"]["ember_probe"]["model"])
    config.pop("@architectures")
    return config


def test_streaming_finds_what_the_finished_text_has(nlp):
    ember = nlp.get_pipe("ember_probe")
    stream = ember.stream("Mira Stone met Oskar Blum in Varnholm.", max_new_tokens=20)
    text, live = "", {}
    for event in stream:
        if isinstance(event, TextPiece):
            text += event.text
        elif isinstance(event, EntityEvent):
            live.pop(event.replaces, None)
            key = (event.start, event.end, event.label)
            live[key] = event.status
            if event.status == "dropped":
                del live[key]
    assert text == stream.doc.text
    assert set(live) == set(entities(stream.doc))
    assert set(live.values()) <= {"final"}
    assert entities(nlp(text)) == entities(stream.doc)


def test_stream_gives_the_rows_of_the_batch(nlp):
    ember = nlp.get_pipe("ember_probe")
    doc = nlp.make_doc(TEXTS[0])
    features = ember.word_reader.read(ember.shared_llm(), [doc])[0]
    whole = ember.predictor().rows(doc, features)
    stream, rows = ember.module.stream(), []
    for i in range(len(doc)):
        attention = None if features.attention is None else features.attention[i : i + 1]
        word = WordFeatures(features.hidden[i : i + 1], attention)
        row = stream.push(word, surface(doc)[i])
        assert (row is None) == (i == 0)
        rows += [] if row is None else [row]
    rows.append(stream.end())
    assert stream.end() is None
    assert np.allclose(np.array(rows), whole, atol=1e-4)


def test_threshold_finds_more_or_less(tiny_llm, attention):
    counts = []
    for threshold in (0.02, 0.5, 0.98):
        nlp = make_nlp(tiny_llm, FEW_SHOT, attention=attention, cfg={"threshold": threshold})
        nlp.get_pipe("ember_probe").fit(DATA)
        docs = list(nlp.pipe(TEXTS + ["A cold boat is red in tea."]))
        counts.append(sum(token.ent_iob_ != "O" for doc in docs for token in doc))
        assert all(span._.score > 0 for doc in docs for span in doc.ents)
    assert counts[0] > counts[1] > counts[2]


def test_mentions_stay_within_sentences(nlp):
    doc = nlp.make_doc("Mira Stone Oskar Blum")
    for token in doc:
        token.is_sent_start = token.i in (0, 2)
    for span in nlp.get_pipe("ember_probe")(doc).spans["llmner"]:
        assert span.end <= 2 or span.start >= 2


def test_at_most_k_sentences_of_each_label():
    nlp = spacy.blank("en")
    chosen = choose(make_examples(nlp), 1)
    texts = [eg.reference.text for eg, _, _ in chosen]
    assert texts == [TEXTS[0], TEXTS[3]]
    chosen = choose(make_examples(nlp), 2)
    assert [eg.reference.text for eg, _, _ in chosen] == TEXTS[:4]
    examples = make_examples(nlp, [TRAIN[1], TRAIN[0]])
    (_, first, unknown), (_, second, left_out) = choose(examples, 1)
    assert first == [(0, 2, "PER")] and unknown == []
    assert second == [(6, 7, "LOC")] and left_out == [(0, 2), (3, 5)]


def test_words_without_annotation_are_not_stored(tiny_llm):
    nlp = make_nlp(tiny_llm, FEW_SHOT)
    eg = make_examples(nlp)[0]
    doc = eg.reference
    doc.set_ents([Span(doc, 0, 2, label="PER")], missing=[doc[2:]])
    unannotated = Example(nlp.make_doc(TEXTS[1]), nlp.make_doc(TEXTS[1]))
    ember = nlp.get_pipe("ember_probe")
    ember.fit([eg, unannotated])
    assert ember.module.types.tolist() == [0, 0]
    # Without any word outside, all words are of the only type.
    assert [ent.label_ for ent in nlp(TEXTS[3]).ents] == ["PER"]


def test_fit_again_starts_over(tiny_llm):
    nlp = fitted(tiny_llm)
    ember = nlp.get_pipe("ember_probe")
    n_words = len(ember.module.types)
    ember.fit([("Tea is cold.", {"entities": [(0, 3, "DRINK")]})])
    assert ember.labels == ("DRINK",)
    assert len(ember.module.types) == 4 < n_words


def test_mentions_longer_than_max_words(tiny_llm, attention):
    nlp = fitted(tiny_llm, attention=attention, max_words=1)
    assert all(len(span) == 1 for doc in nlp.pipe(TEXTS) for span in doc.spans["llmner"])


def test_messages(tiny_llm):
    ember = make_nlp(tiny_llm, FEW_SHOT).get_pipe("ember_probe")
    for data in ([], [("Nothing here.", {"entities": []})], [("", {"entities": []})]):
        with pytest.raises(LLMNERError, match="at most 5 sentences per label"):
            ember.fit(data)
    for data in (["Mira Stone sings."], [("Mira", "PER")], [3], [("Mira", {"entities": [(0, 4)]})]):
        with pytest.raises(
            LLMNERError, match="`examples` of 'ember_probe' .* must be Examples, or"
        ):
            ember.fit(data)
    with pytest.raises(LLMNERError, match="no labels"):
        ember.predict([spacy.blank("en")("Tea")])
    with pytest.raises(
        LLMNERError,
        match="needs the model spacy_llmner.EmberMatch.v1 or spacy_llmner.EmberFewShot.v2",
    ):
        make_nlp(tiny_llm).get_pipe("ember_probe").fit(DATA)
    with pytest.raises(LLMNERError, match="'both' is not a valid attention"):
        make_ember_few_shot(attention="both")
    with pytest.raises(LLMNERError, match="model.attention"):
        make_ember_few_shot(attention="next", read_twice=True)
    with pytest.raises(LLMNERError, match="model.k"):
        make_ember_few_shot(k=0)


def test_prefix(tiny_llm):
    """Version 2 reads a prefix, version 1 doesn't: pipelines that were saved before keep their states."""
    prefixes = {
        version: make_nlp(tiny_llm, f"spacy_llmner.EmberFewShot.{version}", **model)
        .get_pipe("ember_probe")
        .model.attrs["settings"]
        .prefix
        for version, model in (("v1", {}), ("v2", {"prefix": None}))
    }
    assert prefixes == {"v1": "", "v2": PREFIX}
    assert make_ember_few_shot(attention="next").attrs["settings"].prefix == ""
    with pytest.raises(LLMNERError, match="model.prefix"):
        make_ember_few_shot(attention="next", prefix="Find names:")
    states = [
        fitted(tiny_llm, prefix=prefix).get_pipe("ember_probe").module.vectors
        for prefix in ("", "Find names:\n")
    ]
    assert not torch.allclose(*states)


def test_training_says_what_to_do(nlp):
    before = state_of(nlp)
    with pytest.raises(LLMNERError, match="frozen_components"):
        nlp.update(make_examples(nlp), sgd=make_sgd())
    assert same_state(before, state_of(nlp))


def test_read_twice_cannot_stream(tiny_llm):
    nlp = fitted(tiny_llm, read_twice=True)
    with pytest.raises(LLMNERError, match="streaming"):
        nlp.get_pipe("ember_probe").stream("Mira")


def test_no_global_seed_is_touched(tiny_llm):
    state = torch.get_rng_state()
    fitted(tiny_llm)
    assert torch.equal(state, torch.get_rng_state())


def test_building_loads_no_llm():
    before = pool.loaded()
    make_nlp("nowhere", FEW_SHOT)
    assert pool.loaded() == before
