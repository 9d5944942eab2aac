import random

import numpy as np
import pytest
import spacy
import torch
from spacy.tokens import Doc, Span
from spacy.training import Example

from spacy_llmner.errors import LLMNERError
from spacy_llmner.pipeline.gold import aligned_entities
from tests.ember_probe.helpers import (
    TRAIN,
    entities,
    make_examples,
    make_nlp,
    make_sgd,
    same_state,
    share_found,
    state_of,
    train,
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


def test_initialize_reads_labels_from_examples(nlp):
    pipe = nlp.get_pipe("ember_probe")
    assert pipe.labels == ("LOC", "PER")
    assert pipe.label_data == ["LOC", "PER"]
    assert all(np.isfinite(t).all() for t in state_of(nlp).values())


def test_initialize_with_labels(tiny_llm):
    nlp = make_nlp(tiny_llm, width=16)
    pipe = nlp.get_pipe("ember_probe")
    examples = make_examples(nlp)
    pipe.initialize(lambda: examples, nlp=nlp, labels=["PER", "ORG", "LOC"])
    assert pipe.labels == ("PER", "ORG", "LOC")
    # The labels are those of spacy.blank too: nlp.initialize() gives them by the config.
    other = make_nlp(tiny_llm, width=16)
    other.config["initialize"]["components"]["ember_probe"] = {"labels": ["PER"]}
    with pytest.raises(LLMNERError, match="hold the labels LOC, which 'ember_probe' does not"):
        other.initialize(lambda: make_examples(other))


def test_initialize_without_examples_or_entities(tiny_llm):
    nlp = make_nlp(tiny_llm, width=16)
    empty = [Example.from_dict(nlp.make_doc(""), {"entities": []})]
    with pytest.raises(LLMNERError, match="no training examples for 'ember_probe'.*debug data"):
        nlp.initialize(lambda: empty)
    bare = [Example.from_dict(nlp.make_doc("Tea is cold."), {"entities": []})]
    with pytest.raises(LLMNERError, match="None of the training examples.*has an entity"):
        nlp.initialize(lambda: bare)
    with pytest.raises(TypeError, match="get_examples"):
        nlp.get_pipe("ember_probe").initialize(bare)


def test_initialize_follows_the_seed_and_touches_none(tiny_llm):
    states = []
    for seed in (1, 1, 2):
        nlp = make_nlp(tiny_llm, width=16)
        random.seed(seed)
        before = torch.get_rng_state()
        nlp.initialize(lambda nlp=nlp: make_examples(nlp))
        assert torch.equal(torch.get_rng_state(), before)
        states.append(state_of(nlp))
    assert same_state(states[0], states[1])
    assert not same_state(states[0], states[2])


def test_initialize_again_starts_over(nlp):
    examples = make_examples(nlp)
    first = state_of(nlp)
    nlp.update(examples, sgd=make_sgd())
    initialized(nlp)
    assert same_state(first, state_of(nlp))


def test_labels_are_set_before_training(nlp):
    pipe = nlp.get_pipe("ember_probe")
    assert pipe.add_label("PER") == 0
    with pytest.raises(LLMNERError, match="`labels` of 'ember_probe' is 'NEW'.*before training"):
        pipe.add_label("NEW")


def test_unknown_label_in_update(nlp):
    eg = Example.from_dict(nlp.make_doc("Oskar Blum"), {"entities": [(0, 10, "DOG")]})
    with pytest.raises(LLMNERError, match="hold the labels DOG.*it knows LOC, PER"):
        nlp.update([eg], sgd=make_sgd())


def test_update_before_initialize(tiny_llm):
    nlp = make_nlp(tiny_llm)
    with pytest.raises(LLMNERError, match="has no labels"):
        nlp.get_pipe("ember_probe").update(make_examples(nlp))


def test_update_of_nothing(nlp):
    pipe = nlp.get_pipe("ember_probe")
    assert pipe.update([]) == {"ember_probe": 0.0}
    empty = Example.from_dict(nlp.make_doc(""), {"entities": []})
    assert pipe.update([empty], losses={"ember_probe": 2.0}) == {"ember_probe": 2.0}
    with pytest.raises(TypeError):
        pipe.update([nlp.make_doc("Tea")])


def test_loss_falls(nlp):
    examples = make_examples(nlp)
    losses = [nlp.update(examples, sgd=make_sgd())["ember_probe"] for _ in range(8)]
    assert losses[-1] < losses[0] / 2
    assert all(loss >= 0 for loss in losses)


def test_gradients_add_up(nlp):
    """Two updates without an optimizer leave the sum of their gradients; one step uses it up."""
    examples = make_examples(nlp)
    first, second = examples[:2], examples[2:]
    _, a = gradients_of(nlp, first)
    _, b = gradients_of(nlp, second)
    before = state_of(nlp)
    nlp.update(first, sgd=False)
    nlp.update(second, sgd=False)
    assert same_state(before, state_of(nlp))
    for name, grad in gradients(nlp).items():
        assert torch.allclose(grad, a[name] + b[name], atol=1e-6), name
    nlp.get_pipe("ember_probe").finish_update(make_sgd())
    assert not same_state(before, state_of(nlp))
    assert all(p.grad is None for p in nlp.get_pipe("ember_probe").module.parameters())
    # Nothing is gathered, so nothing is stepped.
    after = state_of(nlp)
    nlp.get_pipe("ember_probe").finish_update(make_sgd())
    assert same_state(after, state_of(nlp))


def test_gradient_of_a_batch_is_that_of_its_docs(nlp):
    examples = make_examples(nlp)
    loss, together = gradients_of(nlp, examples)
    n_words = [len(eg.predicted) for eg in examples]
    alone = [gradients_of(nlp, [eg]) for eg in examples]
    assert loss == pytest.approx(sum(a[0] * n for a, n in zip(alone, n_words)) / sum(n_words))
    for name, grad in together.items():
        mean = sum(a[1][name] * n for a, n in zip(alone, n_words)) / sum(n_words)
        assert torch.allclose(grad, mean, atol=1e-5), name


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


def test_frozen_component_is_untouched(nlp):
    before = state_of(nlp)
    nlp.update(make_examples(nlp), sgd=make_sgd(), exclude=["ember_probe"])
    assert same_state(before, state_of(nlp))
    with nlp.select_pipes(disable=["ember_probe"]):
        nlp.update(make_examples(nlp), sgd=make_sgd())
    assert same_state(before, state_of(nlp))


def test_annotating_component(nlp):
    examples = make_examples(nlp)
    nlp.update(examples, sgd=make_sgd(), annotates=["ember_probe"])
    assert share_found(nlp) >= 0.0


def test_averages_are_used_and_put_back(nlp):
    sgd = make_sgd(learn_rate=0.02, use_averages=True)
    for _ in range(4):
        nlp.update(make_examples(nlp), sgd=sgd)
    trained = state_of(nlp)
    with nlp.use_params(sgd.averages):
        inside = state_of(nlp)
        assert not same_state(inside, trained)
        assert all(np.isfinite(t).all() for t in inside.values())
    assert same_state(state_of(nlp), trained)
    with pytest.raises(RuntimeError), nlp.use_params(sgd.averages):
        raise RuntimeError
    assert same_state(state_of(nlp), trained)
    with nlp.use_params({}):
        assert same_state(state_of(nlp), trained)


def test_dropout(nlp):
    pipe = nlp.get_pipe("ember_probe")
    examples = make_examples(nlp)
    plain = pipe.update(examples, drop=0.0)["ember_probe"]
    assert pipe.update(examples, drop=0.0)["ember_probe"] == pytest.approx(plain)
    assert pipe.update(examples, drop=0.5)["ember_probe"] != pytest.approx(plain)
    # It is off again when predicting.
    docs = [nlp("Oskar Blum likes tea.") for _ in range(2)]
    assert docs[0].spans["llmner"].attrs["scores"] == docs[1].spans["llmner"].attrs["scores"]


def test_texts_must_agree(nlp):
    eg = Example(nlp.make_doc("Oskar Blum"), nlp.make_doc("Oskar Blom"))
    with pytest.raises(LLMNERError, match="'Oskar Blum' and 'Oskar Blom'"):
        nlp.get_pipe("ember_probe").update([eg])


def test_docs_without_annotation_teach_nothing(nlp):
    examples = [Example(nlp.make_doc(text), nlp.make_doc(text)) for text, _ in TRAIN]
    _, grads = gradients_of(nlp, examples)
    assert all(not grad.any() for grad in grads.values())


def test_docs_marked_without_entities_are_learnt(tiny_llm):
    """An entity-free document that is annotated pushes mentions away."""
    nlp = train(make_nlp(tiny_llm, width=16), steps=12)
    text = "Oskar Blum likes tea."
    assert entities(nlp(text))
    reference = nlp.make_doc(text)
    reference.set_ents([], default="outside")
    for _ in range(12):
        nlp.update([Example(nlp.make_doc(text), reference)], sgd=make_sgd())
    assert entities(nlp(text)) == []


def test_entity_cut_by_a_token_is_masked(nlp):
    predicted = Doc(nlp.vocab, words=["Mira", "Stonemet", "Oskar"])
    words, spaces = ["Mira", "Stone", "met", "Oskar"], [True, False, True, True]
    reference = Doc(nlp.vocab, words=words, spaces=spaces)
    reference.set_ents([Span(reference, 0, 2, label="PER"), Span(reference, 3, 4, label="PER")])
    eg = Example(predicted, reference)
    assert aligned_entities(eg) == ([(2, 3, "PER")], [(0, 2)])
    pipe = nlp.get_pipe("ember_probe")
    pipe.module.train()
    scores = pipe.module(pipe.predictor().batch([predicted], pipe.read([predicted])))
    _, (d_scores,) = pipe.get_loss([eg], scores)
    assert not d_scores[0, :2].any() and not d_scores[0, 2, 1:].any()
    assert d_scores[0, 2, 0].any()
    with pytest.warns(UserWarning, match="1 of 2 entities.*cut by a token"):
        pipe.initialize(lambda: [eg], nlp=nlp)
    reference.set_ents([Span(reference, 0, 2, label="PER")])
    with pytest.raises(
        LLMNERError, match="none of the 1 entities.*tokens of Tokenizer.*--nlp.lang"
    ):
        pipe.initialize(lambda: [eg], nlp=nlp)


@pytest.mark.parametrize("words", [["a", " ", " ", "b"], ["a  ", "b"], ["a", "  b"]])
def test_unknown_words_where_spaces_are_cut_otherwise(words):
    vocab = spacy.blank("en").vocab
    reference = Doc(vocab, words=["a", " ", "b"], spaces=[True, False, False])
    reference.set_ents([Span(reference, 2, 3, label="X")], missing=[reference[0:2]])
    predicted = Doc(vocab, words=words, spaces=[False] * len(words))
    found, unknown = aligned_entities(Example(predicted, reference))
    covered = {i for start, end in unknown for i in range(start, end)}
    mentions = {i for start, end, _ in found for i in range(start, end)}
    assert 0 in covered and not covered & mentions


def test_too_long_entities_are_warned_about(tiny_llm):
    nlp = make_nlp(tiny_llm, width=16, max_words=2)
    data = [*TRAIN, ("Mira Anna Stone sings.", [(0, 15, "PER")])]
    with pytest.warns(UserWarning, match="1 of 9 entities.*longer than 2 tokens.*`max_words`"):
        nlp.initialize(lambda: make_examples(nlp, data))
    assert nlp.update(make_examples(nlp, data), sgd=make_sgd())["ember_probe"] > 0


def test_resume_after_loading(trained, tmp_path):
    trained.to_disk(tmp_path)
    nlp = spacy.load(tmp_path)
    examples = make_examples(nlp)
    sgd = nlp.resume_training()
    loss = nlp.update(examples, sgd=sgd)["ember_probe"]
    assert loss < 0.1
    assert share_found(nlp) == 1.0
