"""Several components on one LLM: it is in memory once, and stays as it was."""

import copy
import gc
import multiprocessing
import pickle
import threading
import weakref
from concurrent.futures import ThreadPoolExecutor

import pytest
import spacy
import torch

from spacy_llmner.errors import LLMNERError
from spacy_llmner.llm import registry as pool
from spacy_llmner.llm import spec as spec_module
from spacy_llmner.llm.registry import make_llm
from tests.contracts.components import (
    ADAPTERS,
    TRAINABLE,
    Untouched,
    assert_same_answers,
    found_in,
    handles_of,
    initialized,
    llms_of,
    only,
    pipe_of,
    scrambled,
)
from tests.helpers import TEXTS, TRAIN, entities, make_examples, make_sgd, scores

THINGS = [(text, [(start, end, "THING") for start, end, _ in ents]) for text, ents in TRAIN]


def test_the_llm_stays_as_it_was(component, make, llm):
    """Neither training, nor use, nor an exception in the middle of a forward pass changes the LLM."""
    folder = llm if isinstance(llm, str) else llm[0]
    before = Untouched([make_llm(folder, device="cpu").load()])
    nlp = initialized(make())
    for _ in range(3):
        nlp.update(make_examples(nlp), sgd=make_sgd())
    pipe = pipe_of(nlp)
    found = found_in(nlp, component.texts)
    before.check()
    break_forward(nlp, component.layer(pipe))
    before.check()
    assert all(a is b for a, b in zip(llms_of(pipe), before.llms, strict=True))
    before.check()
    assert_same_answers(found_in(nlp, component.texts), found, 1e-6)


def fail(*args, **kwargs):
    raise RuntimeError("spilt")


def break_forward(nlp, layer):
    hook = layer.register_forward_pre_hook(fail)
    try:
        with pytest.raises((RuntimeError, LLMNERError), match="spilt"):
            nlp(TEXTS[0])
    finally:
        hook.remove()


@pytest.fixture
def pair(component, make, trained):
    """A pipeline with two instances of the component. RETURNS (Tuple[Language, Language]): It, and
    another one with the second instance alone."""
    cfg = {} if component.trainable else {"labels": ["THING", "TEA"]}
    config = make(cfg={"spans_key": "second", **cfg}).get_pipe_config(component.name)
    alone = spacy.blank("en")
    alone.add_pipe(config.pop("factory"), name="second", config=config)
    initialized(alone, THINGS)
    if component.adapter:
        scrambled(alone)
    else:
        for _ in range(5 * component.trainable):
            alone.update(make_examples(alone, THINGS), sgd=make_sgd(0.02))
    nlp = spacy.blank("en")
    nlp.add_pipe(component.name, source=trained)
    nlp.add_pipe("second", source=alone)
    return nlp, alone


def test_two_in_one_pipeline(component, pair, trained):
    """They share one LLM and keep their results apart."""
    nlp, alone = pair
    first, second = nlp.get_pipe(component.name), nlp.get_pipe("second")
    assert llms_of(second)[0] is llms_of(first)[0]
    docs = list(nlp.pipe(component.texts))
    assert all(set(doc.spans) == {"llmner", "second"} for doc in docs)
    for doc in docs:
        methods = [doc.spans[key].attrs["method"] for key in ("llmner", "second")]
        assert methods == [component.name, "second"]
    assert {span.label_ for doc in docs for span in doc.spans["second"]} == {"THING"}
    for one, key, other in ((trained, "llmner", component.name), (alone, "second", "second")):
        expected = found_in(one, component.texts, key)
        for doc, (_, found, _) in zip(docs, expected, strict=True):
            assert scores(doc, key) == found
        with nlp.select_pipes(enable=[other]):
            assert_same_answers(found_in(nlp, component.texts, key), expected, 1e-5)


def test_bytes_of_one_in_another(component, trained, pipe):
    """A component with another name, which then finds the same."""
    nlp = spacy.blank("en")
    nlp.add_pipe(component.name, source=trained)
    config = trained.get_pipe_config(component.name)
    second = nlp.add_pipe(config.pop("factory"), name="second", config=config)
    second.from_bytes(pipe.to_bytes())
    second.cfg["spans_key"] = "second"
    for doc in nlp.pipe(component.texts):
        assert scores(doc, "second") == scores(doc, "llmner")


# A function that is called with the LLM's answer.
READS = {
    "ember_probe": "spacy_llmner.ember_probe.predictor.Predictor.decode_batch",
    "padellm_ner": "spacy_llmner.padellm_ner.component.locate_mentions",
    "ra_it_ner": "spacy_llmner.ra_it_ner.component.mentions_of",
    "el4ner_ensemble": "spacy_llmner.el4ner_ensemble.component.token_spans",
}


@pytest.mark.parametrize(
    ("component", "where"),
    [(name, where) for name in READS for where in ("forward", "answers")]
    + [(name, "loss") for name in TRAINABLE],
    indirect=["component"],
)
def test_an_exception_inside_changes_nothing(component, pair, monkeypatch, where):
    """It changes neither the LLM, nor what the component or others on the same LLM find."""
    nlp, _ = pair
    pipe = nlp.get_pipe(component.name)
    before = Untouched(llms_of(pipe))
    found = [found_in(nlp, component.texts, key) for key in ("llmner", "second")]
    with monkeypatch.context() as patched:
        if where == "forward":
            break_forward(nlp, component.layer(pipe))
        elif where == "answers":
            patched.setattr(READS[component.name], fail)
            with pytest.raises(RuntimeError, match="spilt"):
                nlp(TEXTS[0])
        else:
            patched.setattr(pipe, "get_loss", fail)
            with pytest.raises(RuntimeError, match="spilt"):
                nlp.update(make_examples(nlp), sgd=make_sgd())
    assert all(a is b for a, b in zip(llms_of(pipe), before.llms, strict=True))
    before.check()
    for key, expected, tolerance in zip(("llmner", "second"), found, (1e-6, 0.0)):
        assert_same_answers(found_in(nlp, component.texts, key), expected, tolerance)


def test_two_threads_at_first_use(component, trained):
    """Both threads prepare the LLM for the component. They disturb neither each other nor torch."""
    expected = found_in(trained, component.texts)
    start = threading.Barrier(2)

    def read(nlp):
        start.wait()
        return found_in(nlp, component.texts)

    for _ in range(3):
        nlp = pickle.loads(pickle.dumps(trained))
        with ThreadPoolExecutor(2) as threads:
            for found in threads.map(read, [nlp, nlp]):
                assert_same_answers(found, expected, 1e-5)
        assert torch.nn.Linear(2, 2).weight.device.type == "cpu"


def test_unload_frees_the_weights(component, trained, pipe):
    """They are freed although the component and the encoder of its examples have used them."""
    found = found_in(trained, component.texts)
    held = [weakref.ref(next(llm.model.parameters())) for llm in llms_of(pipe)]
    for handle in handles_of(pipe):
        handle.unload()
    gc.collect()
    assert all(parameter() is None for parameter in held)
    assert_same_answers(found_in(trained, component.texts), found)
    pool.clear()
    assert_same_answers(found_in(trained, component.texts), found)
    if component.exact:
        assert entities(trained(TEXTS[0])) == component.data[0][1]
    pool.clear()
    loss = copy.deepcopy(pipe).update(make_examples(trained), sgd=make_sgd())[component.name]
    assert 0 < loss < 1.0 if component.trainable else loss == 0.0


def test_the_pipeline_is_not_kept(component, make):
    """A component that was sourced into another pipeline doesn't keep its first pipeline in memory."""
    first, nlp = make(), spacy.blank("en")
    nlp.add_pipe(component.name, source=first)
    held = weakref.ref(first)
    del first
    gc.collect()
    assert held() is None


@only(TRAINABLE)
@pytest.mark.parametrize("device", ["auto", "cuda", "cuda:0"])
@pytest.mark.parametrize("how", ["is_available", "_is_in_bad_fork"])
def test_cuda_in_a_child_process(trained, pipe, monkeypatch, device, how):
    monkeypatch.setattr(multiprocessing, "parent_process", lambda: object())
    monkeypatch.setattr(spec_module, "_was_forked", True)
    monkeypatch.setattr(torch, "set_num_threads", lambda n: None)
    monkeypatch.setattr(pipe, "llm", make_llm(pipe.llm.spec.name, device=device))
    monkeypatch.setattr(torch.cuda, how, lambda: True)
    with pytest.raises(LLMNERError, match="n_process > 1 can't be used with an LLM.* on cuda"):
        list(trained.pipe(TEXTS))


@only(ADAPTERS)
def test_new_weights_replace_old_ones(component, fresh):
    """After `initialize`, the new adapter replaces the previous one, which was in use."""
    found_in(fresh, component.texts)
    scrambled(fresh)
    changed = found_in(fresh, component.texts)
    assert changed != found_in(initialized(fresh), component.texts)
