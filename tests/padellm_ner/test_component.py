"""Templates, adapters, and settings that don't fit."""

import pytest
import spacy

from spacy_llmner.decoding.engine import DecodingEngine
from spacy_llmner.errors import LLMNERError
from spacy_llmner.llm.tokenization import LLMTokenizer
from tests.helpers import (
    TEXTS,
    assert_same,
    make_examples,
    same_state,
    state_of,
)
from tests.padellm_ner.helpers import DATA, initialized, make_nlp, train

UNSEEN = "Yesterday Mira Stone left Port Ellam ; nobody saw Oskar."


def assert_same_answers(one, other, tolerance=1e-5):
    for a, b in zip(one.pipe([*TEXTS, UNSEEN]), other.pipe([*TEXTS, UNSEEN])):
        assert_same(a, b, tolerance)


def test_words_for_other_labels_may_change(tiny_llm, tmp_path):
    nlp = initialized(make_nlp(tiny_llm, label_words={"ORG": "firm"}))
    nlp.to_disk(tmp_path)
    words = {"components.padellm_ner.model.label_words.ORG": "organisation"}
    assert same_state(state_of(nlp), state_of(spacy.load(tmp_path, config=words)))


def test_loss_ignoring_needs_something_to_ignore(tiny_llm):
    with pytest.raises(
        LLMNERError, match="`learn_index` .* is False, but must be true: this template"
    ):
        initialized(make_nlp(tiny_llm, learn_index=False, loss="raw"))
    with pytest.raises(LLMNERError, match="`loss` .* is 'raw', but must be 'allowed': with this"):
        initialized(make_nlp(tiny_llm, loss="raw"))
    with pytest.raises(LLMNERError, match="`learn_index` .* must be true: with loss = 'allowed'"):
        initialized(make_nlp(tiny_llm, learn_index=False, template="published_en"))
    initialized(make_nlp(tiny_llm, learn_index=False, template="published_en", loss="raw"))
    with pytest.raises(
        LLMNERError, match="`model.loss` .* is 'all', but must be one of allowed, raw"
    ):
        make_nlp(tiny_llm, loss="all")


def test_a_prompt_that_leaves_no_room(tiny_llm):
    nlp = make_nlp(tiny_llm, label_words={"LOC": "somewhere in the world " * 40})
    with pytest.raises(
        LLMNERError, match="'padellm_ner' is too long.*the label 'LOC'.*label_words"
    ):
        initialized(nlp)


def test_template_in_a_config(tiny_llm, tmp_path):
    template = {
        "@misc": "spacy_llmner.Template.v1",
        "prompt": "Text: {text}\nFind: {label}\n",
        "count": "How many? ",
        "count_end": "",
        "mention": "Number {index}: ",
    }
    nlp = train(make_nlp(tiny_llm, template=template, label_words={"PER": "person"}), steps=2)
    nlp.to_disk(tmp_path)
    again = spacy.load(tmp_path)
    settings = again.get_pipe("padellm_ner").settings
    assert settings.template.prompt == template["prompt"] and settings.template.bare
    assert settings.label_words == {"PER": "person"}
    assert_same_answers(nlp, again)


def test_the_upper_half_is_trained(tiny_llm):
    nlp = initialized(make_nlp(tiny_llm, first_layer=None))
    layers = {name.split("/")[1] for name in state_of(nlp)}
    assert layers == {"2", "3"}


def test_passes_of_a_text(trained, monkeypatch):
    """All labels and mentions of a batch in a few passes."""
    made = []

    class Spy(DecodingEngine):
        def __init__(self, *args, **kwargs):
            super().__init__(*args, **kwargs)
            made.append(self)

    monkeypatch.setattr("spacy_llmner.padellm_ner.component.DecodingEngine", Spy)
    list(trained.pipe([TEXTS[0]] * 5))
    trained(TEXTS[0])
    batch, one = made
    assert batch.passes == one.passes < 10
    assert batch.tokens == 5 * one.tokens


def test_an_llm_without_an_end_token(tiny_llm, monkeypatch):
    monkeypatch.setattr(LLMTokenizer, "end", [])
    nlp = make_nlp(tiny_llm)
    with pytest.raises(LLMNERError, match="no end token.*eos_token"):
        nlp.initialize(lambda: make_examples(nlp))


def test_copies_of_weights_need_full_precision(tiny_llm):
    llm = {"@misc": "spacy_llmner.LLM.v1", "name": tiny_llm, "device": "cpu", "dtype": "bfloat16"}
    nlp = make_nlp(tiny_llm, cfg={"llm": llm}, rank=0)
    with pytest.raises(LLMNERError, match='`rank` of .padellm_ner. is 0.*`dtype` "float32"'):
        nlp.initialize(lambda: make_examples(nlp, DATA))


def test_labels_of_another_corpus_are_added(tiny_llm):
    """As spaCy's own components do when they are initialized again."""
    nlp = make_nlp(tiny_llm)
    nlp.initialize(lambda: make_examples(nlp, DATA))
    other = [("Oskar Blum sang.", [(0, 10, "SINGER")])]
    nlp.initialize(lambda: make_examples(nlp, other))
    assert nlp.get_pipe("padellm_ner").labels == ("LOC", "PER", "SINGER")
