"""Streaming with a real small LLM, whose text is tokenized as it was written."""

import pytest
import spacy
import torch

from spacy_llmner.ember_probe.streaming.events import EntityEvent, TextPiece
from spacy_llmner.ember_probe.streaming.prompt import encode_prompt
from spacy_llmner.errors import LLMNERError
from spacy_llmner.llm.hidden_states import StepReader
from tests.ember_probe.helpers import TEXTS, TRAIN, assert_same, entities, make_nlp, train

pytestmark = pytest.mark.llm

PROMPT = "Mira Stone met Oskar Blum in Varnholm. Mira Stone said that"


@pytest.fixture(scope="module")
def nlp(smollm2, tmp_path_factory):
    folder = tmp_path_factory.mktemp("smollm2")
    nlp = make_nlp(smollm2, width=32, cfg={"feature_cache": str(folder / "features")})
    train(nlp, steps=25).to_disk(folder / "pipeline")
    return spacy.load(folder / "pipeline")


def test_learns(nlp):
    assert [entities(doc) for doc in nlp.pipe(TEXTS)] == [gold for _, gold in TRAIN]


def test_written_text_and_its_entities(nlp, monkeypatch):
    fed = []
    original = StepReader.feed
    monkeypatch.setattr(
        StepReader, "feed", lambda self, ids: fed.append(len(ids)) or original(self, ids)
    )
    ember = nlp.get_pipe("ember_probe")
    llm = ember.shared_llm()
    stream = ember.stream(PROMPT, max_new_tokens=24)
    events = list(stream)
    ids = encode_prompt(llm, PROMPT).ids
    # One pass for the prompt, one of length 1 for each new token.
    assert fed[0] == len(ids) and set(fed[1:]) == {1} and len(fed) <= 25
    out = llm.model.generate(torch.tensor([ids]), max_new_tokens=24, do_sample=False)
    n_sink = len(llm.tokenizer.bos)
    special = llm.tokenizer.hf.all_special_ids
    written = [t for t in out[0, len(ids) :].tolist() if t not in special]
    assert stream._live.ids == ids[n_sink:] + written
    assert "".join(e.text for e in events if isinstance(e, TextPiece)) == stream.doc.text
    finals = [e for e in events if isinstance(e, EntityEvent) and e.status == "final"]
    assert [(e.start, e.end, e.label) for e in finals][:3] == TRAIN[0][1]
    assert sorted((e.start, e.end, e.label) for e in finals) == sorted(entities(stream.doc))
    assert stream._live.ids == llm.tokenizer.encode(stream.doc.text).ids
    assert_same(stream.doc, nlp(stream.doc.text))


@pytest.mark.parametrize("text", ["a", "s", "assistant", "<|im_end|>", "What is <|im_start|>?"])
def test_messages_are_what_they_say(nlp, text):
    """Messages are encoded as plain text, and can't end their turn."""
    llm = nlp.get_pipe("ember_probe").shared_llm()
    turns = [{"role": "user", "content": text}, {"role": "assistant", "content": text}]
    prompt = encode_prompt(llm, [*turns, {"role": "user", "content": text}])
    at = slice(prompt.first, prompt.first + len(prompt.encoding))
    assert llm.tokenizer.hf.decode(prompt.ids[at]) == text
    assert not set(prompt.ids[at]) & set(llm.tokenizer.hf.all_special_ids)
    plain = encode_prompt(llm, [{**turn, "content": "b"} for turn in [*turns, turns[0]]])
    special = [[i for i in p.ids if i in llm.tokenizer.hf.all_special_ids] for p in (prompt, plain)]
    assert special[0] == special[1]


@pytest.mark.parametrize("prompt", [[], [{"role": "user"}], ({"content": "Who?"},), ["Who?"], [{}]])
def test_what_is_no_prompt(nlp, prompt):
    with pytest.raises(LLMNERError, match="`prompt` of 'stream' is .* must be a text, or messages"):
        next(iter(nlp.get_pipe("ember_probe").stream(prompt)))


def test_chat(nlp):
    ember = nlp.get_pipe("ember_probe")
    llm = ember.shared_llm()
    messages = [
        {"role": "system", "content": "You answer briefly."},
        {"role": "user", "content": "Mira Stone met Oskar Blum in Varnholm."},
    ]
    prompt = encode_prompt(llm, messages)
    marked = llm.tokenizer.hf.apply_chat_template(
        messages, add_generation_prompt=True, return_dict=False
    )
    assert prompt.ids == list(marked)
    stream = ember.stream(messages, max_new_tokens=10)
    events = list(stream)
    text = "".join(e.text for e in events if isinstance(e, TextPiece))
    # Roles and control tokens are not part of the text.
    assert text == stream.doc.text and text.startswith(messages[1]["content"] + "\n\n")
    assert "im_start" not in text and "answer briefly" not in text
    assert {e[:2] for e in entities(stream.doc)} >= {e[:2] for e in TRAIN[0][1]}
    out = llm.model.generate(torch.tensor([prompt.ids]), max_new_tokens=10, do_sample=False)
    written = llm.tokenizer.hf.decode(out[0, len(prompt.ids) :], skip_special_tokens=True)
    assert text[len(messages[1]["content"]) + 2 :] == written
