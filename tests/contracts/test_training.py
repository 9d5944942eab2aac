"""spaCy's training contract: initialize, update, get_loss, finish_update."""

import random
import warnings

import numpy as np
import pytest
import spacy
import torch
from spacy.tokens import Doc
from spacy.training import Example

from spacy_llmner.errors import LLMNERError
from spacy_llmner.llm import registry as pool
from spacy_llmner.llm.registry import make_llm
from tests.contracts.components import (
    ADAPTERS,
    TRAINABLE,
    Untouched,
    assert_same_answers,
    found_in,
    gradients,
    gradients_of,
    initialized,
    only,
    pipe_of,
    random_states,
    scrambled,
    weight_of,
)
from tests.helpers import (
    TEXTS,
    TRAIN,
    assert_same,
    entities,
    make_examples,
    make_sgd,
    same_state,
    share_found,
    state_of,
)


@pytest.fixture
def nlp(fresh):
    return fresh


def empty_example(nlp):
    return Example.from_dict(nlp.make_doc(""), {"entities": []})


def test_initialize_reads_labels_from_examples(component, nlp):
    pipe = pipe_of(nlp)
    assert pipe.labels == ("LOC", "PER") and pipe.label_data == ["LOC", "PER"]
    assert pipe.is_trainable
    if component.trainable:
        assert all(np.isfinite(tensor).all() for tensor in state_of(nlp).values())


def test_initialize_with_labels(make):
    nlp = make()
    pipe = pipe_of(nlp)
    pipe.initialize(lambda: make_examples(nlp), nlp=nlp, labels=["PER", "ORG", "LOC"])
    assert pipe.labels == ("PER", "ORG", "LOC")


@only(["ember_probe", "padellm_ner"])
def test_initialize_with_too_few_labels(component, make):
    """The other components can be initialized with fewer labels than the corpus has."""
    nlp = make()
    nlp.config["initialize"]["components"][component.name] = {"labels": ["PER"]}
    with pytest.raises(LLMNERError, match=f"the labels LOC, which '{component.name}' does"):
        nlp.initialize(lambda: make_examples(nlp))


def test_initialize_without_examples_or_entities(component, make):
    nlp = make()
    name = component.name
    bare = [Example.from_dict(nlp.make_doc("Tea is cold."), {"entities": []})]
    with pytest.raises(LLMNERError, match=f"None of the training examples for '{name}' has an ent"):
        nlp.initialize(lambda: bare)
    with pytest.raises(TypeError, match="get_examples"):
        pipe_of(nlp).initialize(bare)
    if component.trainable:
        with pytest.raises(LLMNERError, match=f"no training examples for '{name}'.*debug data"):
            nlp.initialize(lambda: [empty_example(nlp)])
    if not component.open:
        with pytest.raises(LLMNERError, match="has no labels"):
            pipe_of(nlp).initialize(lambda: bare, labels=[])


@only(TRAINABLE)
def test_initialize_follows_the_seed_and_touches_no_other(make):
    states = []
    for seed in (1, 1, 2):
        nlp = make()
        random.seed(seed)
        before = random_states()[1:]
        nlp.initialize(lambda nlp=nlp: make_examples(nlp))
        assert random_states()[1:] == before
        states.append(state_of(nlp))
    assert same_state(states[0], states[1])
    assert not same_state(states[0], states[2])


@only(TRAINABLE)
def test_a_seed_repeats_training(component, make):
    """It does so even if training uses random examples and labels."""
    drawn = {"random_k": True, "negative_rate": 0.5, "least_negatives": 1}
    cfg = drawn if component.name == "ra_it_ner" else {}
    states = []
    for _ in range(2):
        nlp = initialized(make(cfg=cfg))
        for _ in range(3):
            nlp.update(make_examples(nlp), sgd=make_sgd())
        states.append(state_of(nlp))
    assert same_state(*states)


@only(TRAINABLE)
def test_initialize_again_starts_over(nlp):
    first = state_of(nlp)
    nlp.update(make_examples(nlp), sgd=make_sgd())
    assert same_state(first, state_of(initialized(nlp)))


@only(["ember_probe", "padellm_ner"])
def test_labels_are_set_before_training(component, nlp):
    pipe = pipe_of(nlp)
    assert pipe.add_label("PER") == 0
    name = component.name
    with pytest.raises(LLMNERError, match=f"`labels` of '{name}' is 'NEW'.*before training"):
        pipe.add_label("NEW")


@only(["ember_probe", "padellm_ner"])
def test_unknown_label_in_update(nlp):
    eg = Example.from_dict(nlp.make_doc("Oskar Blum"), {"entities": [(0, 10, "DOG")]})
    with pytest.raises(LLMNERError, match="the labels DOG, .* LOC, PER"):
        nlp.update([eg], sgd=make_sgd())


@only(TRAINABLE)
def test_update_before_initialize(component, make):
    nlp = make(cfg={"labels": ["PER"]} if component.open else {})
    match = f"'{component.name}' is not trained yet" if component.open else "has no labels"
    with pytest.raises(LLMNERError, match=match):
        pipe_of(nlp).update(make_examples(nlp))


def test_nothing_comes_of_nothing(component, nlp):
    pipe = pipe_of(nlp)
    assert pipe.predict([]) == [] and list(nlp.pipe([])) == []
    assert pipe.update([]) == {component.name: 0.0}
    losses = {component.name: 2.0}
    assert pipe.update([empty_example(nlp)], losses=losses) == {component.name: 2.0}
    with pytest.raises(TypeError):
        pipe.update([nlp.make_doc("Tea")])


@only(TRAINABLE)
def test_loss_falls(component, nlp):
    before = state_of(nlp)
    examples, sgd = make_examples(nlp), make_sgd(0.01, grad_clip=1.0)
    losses = [nlp.update(examples, sgd=sgd)[component.name] for _ in range(8)]
    assert all(loss >= 0 for loss in losses)
    assert losses[-1] < losses[0] / 2
    assert not same_state(before, state_of(nlp))


@only(TRAINABLE)
def test_gradients_add_up(component, nlp):
    """Two updates without an optimizer add up their gradients. One step uses the sum and clears it."""
    pipe = pipe_of(nlp)
    examples = make_examples(nlp)
    first, second = examples[:2], examples[2:]
    _, a = gradients_of(nlp, first)
    _, b = gradients_of(nlp, second)
    before = state_of(nlp)
    nlp.update(first, sgd=False)
    nlp.update(second, sgd=False)
    assert same_state(before, state_of(nlp))
    for name, grad in gradients(pipe).items():
        # The many questions of ra_it_ner add up in another order.
        atol = 3e-6 if component.name == "ra_it_ner" else 1e-6
        assert torch.allclose(grad, a[name] + b[name], atol=atol), name
    pipe.finish_update(make_sgd())
    after = state_of(nlp)
    assert not same_state(before, after)
    assert all(p.grad is None for p in pipe.module.parameters())
    # There are no gradients, so there is no step.
    pipe.finish_update(make_sgd())
    assert same_state(after, state_of(nlp))


@only(TRAINABLE)
@pytest.mark.parametrize("max_batch_tokens", [1, 2048])
def test_gradient_of_a_batch_is_that_of_its_docs(component, nlp, max_batch_tokens):
    """It is weighted by what there is to learn, and doesn't depend on how much fits into one pass."""
    examples = make_examples(nlp)
    if component.name == "ra_it_ner":
        examples = [eg for eg in examples if eg.reference.ents]
    pipe_of(nlp).max_batch_tokens = max_batch_tokens
    assert_weighted_mean(nlp, examples, 1e-5)
    if component.adapter:  # random weights have larger gradients
        assert_weighted_mean(scrambled(nlp), examples, 1e-4)


def assert_weighted_mean(nlp, examples, tolerance):
    """Loss and gradient of a batch are the weighted mean of those of its examples."""
    loss, together = gradients_of(nlp, examples)
    alone = [(*gradients_of(nlp, [eg]), weight_of(nlp, [eg])) for eg in examples]
    total = weight_of(nlp, examples)
    assert total == pytest.approx(sum(weight for _, _, weight in alone))
    assert loss == pytest.approx(sum(x * weight for x, _, weight in alone) / total)
    for name, grad in together.items():
        mean = sum(grads[name] * weight for _, grads, weight in alone) / total
        # Rounding grows with the size of the gradients.
        scale = max(1.0, float(grad.abs().max()))
        assert torch.allclose(grad, mean, atol=tolerance * scale), name


def test_frozen_component_is_untouched(component, nlp):
    pipe = pipe_of(nlp)
    before = pipe.to_bytes()
    nlp.update(make_examples(nlp), sgd=make_sgd(), exclude=[component.name])
    with nlp.select_pipes(disable=[component.name]):
        nlp.update(make_examples(nlp), sgd=make_sgd())
    assert pipe.to_bytes() == before


@pytest.mark.parametrize("frozen", [True, False])
def test_annotating_component(component, trained, nlp, monkeypatch, frozen):
    """Components after it can use its annotations, even if it is frozen."""
    nlp = trained if frozen else nlp
    before = pipe_of(nlp).to_bytes()
    seen = []

    class After:
        def __call__(self, doc):
            return doc

        def update(self, examples, **kwargs):
            seen.extend(eg.predicted for eg in examples)

    monkeypatch.setattr(nlp, "_components", [*nlp._components, ("after", After())])
    settings = {"annotates": [component.name], "exclude": [component.name] if frozen else []}
    nlp.update(make_examples(nlp), sgd=make_sgd() if frozen else False, **settings)
    monkeypatch.undo()
    assert pipe_of(nlp).to_bytes() == before
    assert [doc.text for doc in seen] == TEXTS and all("llmner" in doc.spans for doc in seen)
    for doc, other in zip(seen, nlp.pipe(TEXTS)):
        assert_same(doc, other)
        assert doc._.llmner_examples == other._.llmner_examples


@only(TRAINABLE)
def test_averages_are_used_and_put_back(nlp):
    sgd = make_sgd(learn_rate=0.02, use_averages=True)
    for _ in range(4):
        nlp.update(make_examples(nlp), sgd=sgd)
    learnt = state_of(nlp)
    with nlp.use_params(sgd.averages):
        inside = state_of(nlp)
        assert not same_state(inside, learnt)
        assert all(np.isfinite(tensor).all() for tensor in inside.values())
        nlp(TEXTS[0])
    assert same_state(state_of(nlp), learnt)
    with pytest.raises(RuntimeError), nlp.use_params(sgd.averages):
        raise RuntimeError
    assert same_state(state_of(nlp), learnt)
    with nlp.use_params({}):
        assert same_state(state_of(nlp), learnt)


@only(TRAINABLE)
def test_texts_must_agree(nlp):
    eg = Example(nlp.make_doc("Oskar Blum"), nlp.make_doc("Oskar Blom"))
    with pytest.raises(LLMNERError, match="'Oskar Blum' and 'Oskar Blom'"):
        pipe_of(nlp).update([eg])


@only(TRAINABLE)
def test_docs_without_annotation_teach_nothing(component, nlp):
    examples = [Example(nlp.make_doc(text), nlp.make_doc(text)) for text in TEXTS]
    loss, grads = gradients_of(nlp, examples)
    assert all(not grad.any() for grad in grads.values())
    if component.adapter:
        assert loss == weight_of(nlp, examples) == 0.0


@only(TRAINABLE)
def test_docs_marked_without_entities_are_learnt(component, saved):
    """An annotated document without entities makes mentions less probable."""
    nlp = spacy.load(saved)
    text = "Oskar Blum likes tea."
    assert entities(nlp(text))
    reference = nlp.make_doc(text)
    reference.set_ents([], default="outside")
    for _ in range(8):
        nlp.update([Example(nlp.make_doc(text), reference)], sgd=make_sgd())
    assert entities(nlp(text)) == []


# Updates after loading, the loss that is then reached, and the share of the entities found.
RESUMED = {"ember_probe": (1, 0.1, 1.0), "padellm_ner": (10, 1.0, 1.0), "ra_it_ner": (5, 1.0, 0.0)}


@only(TRAINABLE)
def test_resume_after_loading(component, trained, saved):
    nlp = spacy.load(saved)
    before, (n, highest, found) = state_of(nlp), RESUMED[component.name]
    examples, sgd = make_examples(nlp, component.data), nlp.resume_training()
    losses = [nlp.update(examples, sgd=sgd)[component.name] for _ in range(n)]
    assert losses[-1] < highest and not same_state(before, state_of(nlp))
    assert share_found(nlp, component.data) >= found
    assert same_state(before, state_of(trained))
    if component.name == "ra_it_ner":
        assert len(pipe_of(nlp).index) == len(TRAIN)


@only(ADAPTERS)
def test_windows_that_are_not_learnt_are_reported(component, make):
    """They are reported when training begins, since the loss would not show them."""
    nlp = make(**({"k": 0} if component.name == "ra_it_ner" else {}))
    known = make_examples(nlp, component.data)
    bare = [Example(nlp.make_doc(text), nlp.make_doc(text)) for text in TEXTS[:2]]
    words, spaces = ["Mira", "Stonemet", "Oskar"], [True, True, False]
    data = {"entities": [(0, 10, "PER")], "words": ["Mira", "Stone", "met", "Oskar"]}
    data["spaces"] = [True, False, True, False]
    misaligned = [Example.from_dict(Doc(nlp.vocab, words=words, spaces=spaces), data)]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        nlp.initialize(lambda: known)
    n = len(known) + 3
    match = f"'{component.name}' .* 3 of {n} windows .* 3 contain unannotated tokens"
    with pytest.warns(UserWarning, match=match):
        nlp.initialize(lambda: [*known, *bare, *misaligned])
    match = f"'{component.name}' can't learn anything .*of 3 windows of text, 3 "
    if component.name == "ra_it_ner":  # it counts only entities that can be learnt
        match = "None of the training examples"
    with pytest.raises(LLMNERError, match=match):
        nlp.initialize(lambda: [*bare, *misaligned])


@only(ADAPTERS)
def test_full_fine_tuning(component, make, tmp_path):
    """rank = 0 trains a copy of the weights, which is saved as a whole."""
    nlp = make(rank=0)
    pipe = pipe_of(nlp)
    shared = Untouched([make_llm(pipe.llm.spec.name, device="cpu").load()])
    initialized(nlp, component.data)
    assert not pipe.module.is_untrained()  # it answers without any step
    examples, sgd = make_examples(nlp, component.data), make_sgd(0.005, grad_clip=1.0)
    losses = [nlp.update(examples, sgd=sgd)[component.name] for _ in range(20)]
    assert losses[11] < 0.6 * losses[0]
    if component.exact:
        assert share_found(nlp, component.data) == 1.0
    shared.check()
    llm = pipe.shared_llm()
    assert llm is shared.llms[0]
    n_trained = sum(p.numel() for p in pipe.module.parameters())
    embeddings = llm.model.get_input_embeddings().weight.numel()
    assert n_trained == sum(p.numel() for p in llm.decoder.parameters()) - embeddings
    nlp.to_disk(tmp_path)
    again = spacy.load(tmp_path)
    assert_same_answers(found_in(again, component.texts), found_in(nlp, component.texts), 1e-5)


@only(TRAINABLE)
def test_training_after_a_first_use_in_inference_mode(component, fresh, tmp_path):
    """What is loaded in inference mode, and what the first use keeps in memory, can be trained."""
    fresh.to_disk(tmp_path)
    pool.clear()
    with torch.inference_mode():
        nlp = spacy.load(tmp_path)
        list(nlp.pipe(TEXTS[:2]))
    before = state_of(nlp)
    for _ in range(2):
        losses = nlp.update(make_examples(nlp, component.data), sgd=make_sgd())
    assert np.isfinite(losses[component.name])
    assert not same_state(before, state_of(nlp))
