"""Losses, gradients and dropout of the probe, and entities that it cannot learn."""

import random

import pytest
import spacy
import torch
from spacy.tokens import Doc, Span
from spacy.training import Example

from spacy_llmner.errors import LLMNERError
from spacy_llmner.pipeline.gold import gold_mentions
from tests.ember_probe.helpers import (
    TRAIN,
    make_examples,
    make_nlp,
    make_sgd,
    same_state,
    state_of,
)


@pytest.fixture
def nlp(tiny_llm):
    """Initialized, not yet trained."""
    return initialized(make_nlp(tiny_llm, width=16))


def initialized(nlp, data=TRAIN):
    random.seed(0)
    nlp.initialize(lambda: make_examples(nlp, data))
    return nlp


def gradients(nlp):
    module = nlp.get_pipe("ember_probe").module
    return {
        name: torch.zeros_like(p) if p.grad is None else p.grad.clone()
        for name, p in module.named_parameters()
    }


def clear_gradients(nlp):
    nlp.get_pipe("ember_probe").module.zero_grad(set_to_none=True)


def gradients_of(nlp, examples):
    clear_gradients(nlp)
    losses = nlp.get_pipe("ember_probe").update(examples, sgd=None)
    out = gradients(nlp)
    clear_gradients(nlp)
    return losses["ember_probe"], out


def test_gradient_of_the_probe_is_the_slope_of_its_loss(nlp):
    examples = make_examples(nlp)[:3]
    _, grads = gradients_of(nlp, examples)
    bias = nlp.get_pipe("ember_probe").module.output.bias
    for i in range(len(bias)):
        values = []
        for step in (0.01, -0.01):
            bias.data[i] += step
            values.append(gradients_of(nlp, examples)[0])
            bias.data[i] -= step
        assert float(grads["output.bias"][i]) == pytest.approx(
            (values[0] - values[1]) / 0.02, rel=0.01, abs=1e-4
        )


def test_optimizer_settings_count(nlp):
    before = state_of(nlp)
    nlp.update(make_examples(nlp), sgd=make_sgd(learn_rate=0.0))
    assert same_state(before, state_of(nlp))
    pipe = nlp.get_pipe("ember_probe")
    sgd = make_sgd(learn_rate=0.25, beta1=0.8, beta2=0.9)
    nlp.update(make_examples(nlp), sgd=sgd)
    groups = pipe._optimizer.param_groups
    assert [g["lr"] for g in groups] == [0.25, 0.25]
    assert groups[0]["betas"] == (0.8, 0.9)


def test_dropout(nlp):
    pipe = nlp.get_pipe("ember_probe")
    examples = make_examples(nlp)
    plain = pipe.update(examples, drop=0.0)["ember_probe"]
    assert pipe.update(examples, drop=0.0)["ember_probe"] == pytest.approx(plain)
    assert pipe.update(examples, drop=0.5)["ember_probe"] != pytest.approx(plain)
    # It is off again when predicting.
    docs = [nlp("Oskar Blum likes tea.") for _ in range(2)]
    assert docs[0].spans["llmner"].attrs["scores"] == docs[1].spans["llmner"].attrs["scores"]


def test_entity_cut_by_a_token_is_masked(nlp):
    predicted = Doc(nlp.vocab, words=["Mira", "Stonemet", "Oskar"])
    words, spaces = ["Mira", "Stone", "met", "Oskar"], [True, False, True, True]
    reference = Doc(nlp.vocab, words=words, spaces=spaces)
    reference.set_ents([Span(reference, 0, 2, label="PER"), Span(reference, 3, 4, label="PER")])
    eg = Example(predicted, reference)
    assert gold_mentions(eg) == ([(2, 3, "PER")], [(0, 2)])
    pipe = nlp.get_pipe("ember_probe")
    pipe.module.train()
    scores = pipe.module(pipe.predictor().batch([predicted], pipe.read([predicted])))
    _, (d_scores,) = pipe.get_loss([eg], scores)
    assert not d_scores[0, :2].any() and not d_scores[0, 2, 1:].any()
    assert d_scores[0, 2, 0].any()
    with pytest.warns(UserWarning, match="1 of 2 entities.*inside tokens of"):
        pipe.initialize(lambda: [eg], nlp=nlp)
    reference.set_ents([Span(reference, 0, 2, label="PER")])
    with pytest.raises(LLMNERError, match="any of the 1 entities.*tokens of Tokenizer.*--nlp.lang"):
        pipe.initialize(lambda: [eg], nlp=nlp)


def test_other_kind_of_probe_is_refused(trained, tmp_path):
    trained.to_disk(tmp_path)
    model = {"@architectures": "spacy_llmner.EmberPaper.v1"}
    config = spacy.util.load_config(tmp_path / "config.cfg")
    config["components"]["ember_probe"]["model"] = model
    config.to_disk(tmp_path / "config.cfg")
    with pytest.raises(LLMNERError, match="was trained with kind = 'ember_probe'.*'ember_paper'"):
        spacy.load(tmp_path)


@pytest.mark.parametrize("words", [["a", " ", " ", "b"], ["a  ", "b"], ["a", "  b"]])
def test_unknown_words_where_spaces_are_cut_otherwise(words):
    vocab = spacy.blank("en").vocab
    reference = Doc(vocab, words=["a", " ", "b"], spaces=[True, False, False])
    reference.set_ents([Span(reference, 2, 3, label="X")], missing=[reference[0:2]])
    predicted = Doc(vocab, words=words, spaces=[False] * len(words))
    found, unknown = gold_mentions(Example(predicted, reference))
    covered = {i for start, end in unknown for i in range(start, end)}
    mentions = {i for start, end, _ in found for i in range(start, end)}
    assert 0 in covered and not covered & mentions


def test_too_long_entities_are_warned_about(tiny_llm):
    nlp = make_nlp(tiny_llm, width=16, max_words=2)
    data = [*TRAIN, ("Mira Anna Stone sings.", [(0, 15, "PER")])]
    with pytest.warns(UserWarning, match="1 of 9 entities.*longer than 2 tokens.*`max_words`"):
        nlp.initialize(lambda: make_examples(nlp, data))
    assert nlp.update(make_examples(nlp, data), sgd=make_sgd())["ember_probe"] > 0
