"""The autoregressive baseline: its training sequences, its answers, and look-up in the prompt."""

import numpy as np
import pytest
import spacy
from hypothesis import given
from hypothesis import strategies as st
from spacy.training import Example

from benchmarks.padellm.autoreg import Lines, question
from spacy_llmner.decoding.engine import DecodingEngine
from spacy_llmner.decoding.substrings import substring_constraint
from spacy_llmner.llm.tokenization import LLMTokenizer
from spacy_llmner.llm.word_tokens import word_tokens
from spacy_llmner.padellm_ner.templates import TEMPLATES, TemplateEncoder

TEXTS = [
    ("Ada Hale met Bo Lund in Bonn.", [(0, 8, "PER"), (13, 20, "PER"), (24, 28, "LOC")]),
    ("Nobody came.", []),
    ("Bern beat Bern in Bern.", [(0, 4, "ORG"), (10, 14, "ORG"), (18, 22, "LOC")]),
]


def make_nlp(llm, **cfg):
    nlp = spacy.blank("en")
    nlp.add_pipe("autoreg_ner", config={"llm": {"name": llm}, **cfg})
    return nlp


def examples(nlp):
    return [Example.from_dict(nlp.make_doc(text), {"entities": ents}) for text, ents in TEXTS]


@pytest.fixture(scope="module")
def trained(tiny_llm):
    return train(make_nlp(tiny_llm, deduplicate="span"))


def train(nlp):
    spacy.util.fix_random_seed(0)
    optimizer = nlp.initialize(lambda: examples(nlp))
    optimizer.learn_rate = 0.01
    for _ in range(70):
        nlp.update(examples(nlp), sgd=optimizer)
    return nlp


def found(doc):
    return [(e.start_char, e.end_char, e.label_) for e in doc.ents]


def test_one_sequence_per_text(tiny_llm, load):
    nlp = make_nlp(tiny_llm)
    nlp.initialize(lambda: examples(nlp))
    pipe = nlp.get_pipe("autoreg_ner")
    prompt_encoder = TemplateEncoder(TEMPLATES["compact"], load(tiny_llm).tokenizer, {})
    text = "Ada Hale met Bo in Bonn."
    bounds = [(t.idx, t.idx + len(t)) for t in nlp.make_doc(text)]
    words = word_tokens(prompt_encoder.tokenizer, text, bounds)
    mentions = {"LOC": [(5, 6)], "PER": [(0, 2), (3, 4)]}
    (sequence,) = pipe.sequences(prompt_encoder, words, text, mentions)
    hf = prompt_encoder.tokenizer.hf
    learnt = [t for t, loss in zip(sequence.ids, sequence.loss) if loss]
    assert hf.decode(learnt[:-1]) == "PERAda Hale\nPER Bo\nLOC Bonn"
    assert learnt[-1] == prompt_encoder.end
    assert hf.decode(sequence.ids[1 : -len(learnt)]) == f" {text}\n"
    assert sequence.ids[: -len(learnt)] == question(prompt_encoder, words)
    (nothing,) = pipe.sequences(prompt_encoder, words, text, {})
    assert nothing.ids == [*question(prompt_encoder, words), prompt_encoder.end]


def test_learns_its_training_set(trained):
    for text, ents in TEXTS:
        assert found(trained(text)) == ents


def test_look_up_only_changes_number_of_passes(trained):
    pipe = trained.get_pipe("autoreg_ner")
    texts = [text for text, _ in TEXTS] + [
        "Bo Lund and Ada Hale, Ada Hale.",
        "Ada Bonn Bern Lund Hale",
    ]
    counts = {}
    outcomes = {}
    try:
        for draft in (0, 4):
            pipe.draft = draft
            llm, view, prompt_encoder = pipe.adapted_llm()
            engine = DecodingEngine(llm, view)
            outcomes[draft] = []
            for text in texts:
                doc = trained.make_doc(text)
                words = pipe._windows(doc, prompt_encoder)[0].words
                outcomes[draft] += engine.run([pipe.request(prompt_encoder, words, text)])
            counts[draft] = engine.passes
    finally:
        del pipe.draft
    assert counts[4] < counts[0]
    for plain, looked_up in zip(outcomes[0], outcomes[4]):
        for label in plain:
            assert [m.occurrences for m in plain[label]] == [
                m.occurrences for m in looked_up[label]
            ]
            for a, b in zip(plain[label], looked_up[label]):
                np.testing.assert_allclose(a.log_probs, b.log_probs, atol=1e-4)


def test_unconstrained_gives_the_same_mentions(tiny_llm):
    """A baseline that was trained as published finds the same mentions without a constraint, with and
    without look-up."""
    model = {"@architectures": "spacy_llmner.PaDeLLM.v1", "template": "published_en", "loss": "raw"}
    trained = train(make_nlp(tiny_llm, deduplicate="span", model=model))
    pipe = trained.get_pipe("autoreg_ner")
    try:
        pipe.constrained = False
        for pipe.draft in (0, 4):
            for text, ents in TEXTS:
                assert found(trained(text)) == ents
    finally:
        del pipe.constrained, pipe.draft


def test_batches_change_nothing(trained):
    texts = [text for text, _ in TEXTS]
    assert [found(d) for d in trained.pipe(texts, batch_size=3)] == [
        found(trained(t)) for t in texts
    ]


def test_accepts_settings_of_padellm_ner(tiny_llm, tmp_path):
    nlp = make_nlp(tiny_llm, count="calibrated", window=64, deduplicate="span")
    nlp.initialize(lambda: examples(nlp))
    nlp.to_disk(tmp_path)
    pipe = spacy.load(tmp_path).get_pipe("autoreg_ner")
    assert pipe.cfg["window"] == 64 and pipe.labels == ("LOC", "ORG", "PER")


@given(st.data())
def test_any_allowed_answer_has_lines_in_order(tiny_tokenizers, data):
    """Any choice of allowed tokens comes to an end, and gives substrings in the order of the text."""
    tokenizer = LLMTokenizer(tiny_tokenizers["byte-level"])
    text = data.draw(st.text("ab \n", max_size=12)).rstrip()
    nlp = spacy.blank("en")
    bounds = [(t.idx, t.idx + len(t)) for t in nlp.make_doc(text) if not t.is_space]
    words = word_tokens(tokenizer, text, bounds)
    labels = [tokenizer.encode("PER").ids, tokenizer.encode("LOC").ids]
    mentions = substring_constraint(words, tokenizer.end[0])
    lines = Lines(labels, mentions, tokenizer.encode("\n").ids[0], nested=False)
    state = lines.start
    for _ in range(500):
        allowed = lines.allowed(state)
        if not len(allowed):
            break
        state = lines.advance(state, int(data.draw(st.sampled_from(allowed.tolist()))))
        if not state.ended:
            lines.guess(state)  # never fails
    assert state.ended
    starts = [min(s for s, _ in mentions.spans(line.mention)) for line in state.done]
    assert starts == sorted(set(starts))
    for line in state.done:
        assert {text[s:e] for s, e in mentions.spans(line.mention)} != {""}
