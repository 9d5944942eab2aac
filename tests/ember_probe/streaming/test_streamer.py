"""Entities in a generation that is run with transformers' own `generate`."""

import threading

import pytest
import torch
from transformers import GenerationConfig

from spacy_llmner.ember_probe.streaming.events import EntityEvent, TextPiece
from spacy_llmner.errors import LLMNERError
from tests.ember_probe.helpers import TEXTS, assert_same, assert_valid, entities

PROMPT = "Mira Stone met Oskar Blum in Varnholm. In Port"


def inputs_of(nlp, prompt=PROMPT):
    llm = nlp.get_pipe("ember_probe").shared_llm()
    return torch.tensor([llm.tokenizer.bos + llm.tokenizer.encode(prompt).ids])


def generate(nlp, ids, **settings):
    """RETURNS (Tuple): The streamer, and the ids."""
    settings = {"max_new_tokens": 20, "do_sample": False, "pad_token_id": 1, **settings}
    with nlp.get_pipe("ember_probe").streamer() as streamer:
        out = streamer.model.generate(ids, streamer=streamer, **settings)
    return streamer, out[0].tolist()


@pytest.mark.parametrize("kind", ["default", "next", "adjacency"])
def test_generate(trained, paper, kind):
    nlp = trained if kind == "default" else paper(kind)
    llm = nlp.get_pipe("ember_probe").shared_llm()
    streamer, ids = generate(nlp, inputs_of(nlp))
    plain = llm.model.generate(inputs_of(nlp), max_new_tokens=20, do_sample=False, pad_token_id=1)
    assert ids == plain[0].tolist()
    events = list(streamer)
    text = "".join(e.text for e in events if isinstance(e, TextPiece))
    assert streamer.doc.text.startswith(text) and text.startswith(PROMPT)
    assert_valid(streamer.doc, streamer.doc.text)
    finals = {(e.start, e.end, e.label) for e in events if isinstance(e, EntityEvent)}
    assert set(entities(streamer.doc)) <= finals


def test_sampling_is_the_same_with_probes(trained):
    llm = trained.get_pipe("ember_probe").shared_llm()
    ids = inputs_of(trained)
    settings = {"do_sample": True, "temperature": 1.2, "top_k": 0}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        _, with_probes = generate(trained, ids, **settings)
        torch.manual_seed(3)
        config = GenerationConfig(max_new_tokens=20, pad_token_id=1, **settings)
        plain = llm.model.generate(ids, generation_config=config)[0].tolist()
    assert with_probes == plain


def test_one_new_token(trained):
    """The entities of the prompt are found, although hardly any text follows."""
    streamer, ids = generate(trained, inputs_of(trained, TEXTS[0]), max_new_tokens=1)
    assert streamer.doc.text.startswith(TEXTS[0])
    assert_valid(streamer.doc, streamer.doc.text)


def test_same_as_stream(trained):
    """Both ways to generate give the same Doc, except for the last token, which `generate` never reads."""
    stream = trained.get_pipe("ember_probe").stream(PROMPT, max_new_tokens=20)
    list(stream)
    streamer, _ = generate(trained, inputs_of(trained))
    assert streamer.doc.text == stream.doc.text
    before = len(stream.doc.text) - 12
    assert [e for e in entities(streamer.doc) if e[1] < before] == [
        e for e in entities(stream.doc) if e[1] < before
    ]


def test_events_in_another_thread(trained):
    seen = []
    with trained.get_pipe("ember_probe").streamer() as streamer:
        thread = threading.Thread(target=lambda: seen.extend(streamer))
        thread.start()
        streamer.model.generate(
            inputs_of(trained), streamer=streamer, max_new_tokens=8, do_sample=False, pad_token_id=1
        )
        thread.join(timeout=60)
    assert not thread.is_alive()
    assert "".join(e.text for e in seen if isinstance(e, TextPiece)).startswith(PROMPT)


def test_shared_model_is_as_before(trained):
    llm = trained.get_pipe("ember_probe").shared_llm()
    before = trained(TEXTS[0])
    modules = [type(m).__name__ for m in llm.model.modules()]
    with pytest.raises(RuntimeError), trained.get_pipe("ember_probe").streamer():
        raise RuntimeError
    generate(trained, inputs_of(trained))
    assert [type(m).__name__ for m in llm.model.modules()] == modules
    assert not any(m._forward_hooks for m in llm.model.modules())
    assert_same(before, trained(TEXTS[0]))


def one_token(nlp, streamer, ids=None, model=None):
    ids = inputs_of(nlp) if ids is None else ids
    model = streamer.model if model is None else model
    model.generate(ids, streamer=streamer, max_new_tokens=2, do_sample=False, pad_token_id=1)


def test_several_texts(trained):
    streamer_of = trained.get_pipe("ember_probe").streamer
    with streamer_of() as streamer, pytest.raises(LLMNERError, match="2 texts are written at once"):
        one_token(trained, streamer, inputs_of(trained).repeat(2, 1))


def test_another_model_than_the_streamers(trained):
    pipe, match = trained.get_pipe("ember_probe"), "the LLM does not run through it.*streamer.model"
    with pipe.streamer() as streamer, pytest.raises(LLMNERError, match=match):
        one_token(trained, streamer, model=pipe.shared_llm().model)


def test_outside_the_block(trained):
    with trained.get_pipe("ember_probe").streamer() as streamer:
        pass
    with pytest.raises(LLMNERError, match="the LLM does not run through it.*inside `with nlp"):
        one_token(trained, streamer)


def test_a_second_generation(trained):
    with trained.get_pipe("ember_probe").streamer() as streamer:
        one_token(trained, streamer)
        text = streamer.doc.text
        with pytest.raises(LLMNERError, match="it has followed a generation already"):
            one_token(trained, streamer)
    assert streamer.doc.text == text
    assert list(streamer) and not list(streamer)


def test_who_listens_hears_the_end(trained):
    """Iterators end even if `generate` failed or was never called."""
    with pytest.raises(RuntimeError), trained.get_pipe("ember_probe").streamer() as streamer:
        thread = threading.Thread(target=lambda: list(streamer), daemon=True)
        thread.start()
        raise RuntimeError
    thread.join(timeout=60)
    assert not thread.is_alive()
