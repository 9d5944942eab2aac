"""spaCy's training contract: initialize, update, get_loss, finish_update."""

import logging

import numpy as np
import pytest
import torch
from spacy.tokens import Doc, Span
from spacy.training import Example

from spacy_llmner.errors import LLMNERError
from spacy_llmner.llm.packing import Packed
from spacy_llmner.pipeline.gold import gold_mentions
from spacy_llmner.pipeline.training import batches_by_tokens, cross_entropy
from tests.helpers import (
    TEXTS,
    make_examples,
    make_sgd,
)
from tests.padellm_ner.helpers import DATA, initialized, make_nlp, train


@pytest.fixture
def nlp(tiny_llm):
    """Initialized, not yet trained."""
    return initialized(make_nlp(tiny_llm))


def gradients_of(nlp, examples):
    """RETURNS (Tuple[float, Dict, float]): Loss, gradients, and how many tokens were learnt."""
    pipe = nlp.get_pipe("padellm_ner")
    pipe.module.zero_grad(set_to_none=True)
    losses = pipe.update(examples, sgd=None)
    out = {name: p.grad for name, p in pipe.module.named_parameters()}
    pipe.module.zero_grad(set_to_none=True)
    weight = sum(p.weights.sum() for eg in examples for p in pipe.make_training_batch([eg]))
    out = {k: torch.zeros(1) if g is None else g.clone() for k, g in out.items()}
    return losses["padellm_ner"], out, float(weight)


def test_a_new_adapter_changes_nothing(nlp):
    """With a new LoRA adapter, the LLM's output is the same as without it."""
    pipe = nlp.get_pipe("padellm_ner")
    llm, view, _ = pipe.adapted_llm()
    ids = torch.tensor([[0, 5, 6, 7]])
    assert torch.equal(
        view(input_ids=ids).last_hidden_state, llm.decoder(input_ids=ids).last_hidden_state
    )


def test_nothing_is_found_before_the_first_step_that_learns(nlp):
    pipe = nlp.get_pipe("padellm_ner")
    doc = nlp.make_doc(TEXTS[0])
    assert pipe.predict([doc])[0].spans  # as the LLM answers without an adapter
    examples = make_examples(nlp)
    pipe.update(examples, sgd=make_sgd(0.0))  # a warm-up begins so
    found = pipe.predict([doc, doc])
    assert [(f.ents, f.spans) for f in found] == [([], [])] * 2
    pipe.update(examples, sgd=make_sgd(1e-6))
    assert pipe.predict([doc])[0].spans


@pytest.mark.parametrize("rank", [8, 0])
def test_loss_falls(any_llm, rank):
    nlp = initialized(make_nlp(any_llm, rank=rank))
    examples = make_examples(nlp, DATA)
    rate = 0.02 if rank else 0.002
    losses = [nlp.update(examples, sgd=make_sgd(rate))["padellm_ner"] for _ in range(6)]
    assert 0 < losses[-1] < 0.85 * losses[0]


def test_loss_by_hand():
    logits = torch.tensor([[0.0, 0.0], [0.0, float(np.log(3.0))]])
    nothing = np.zeros(0)
    packed = Packed(
        nothing, nothing, nothing, np.array([0, 1]), np.array([0, 1]), np.float32([2.0, 1.0]), None
    )
    loss, d_logits = cross_entropy([packed], logits)
    assert loss == pytest.approx(2 * np.log(2.0) + np.log(4 / 3))
    assert torch.allclose(d_logits, torch.tensor([[-1.0, 1.0], [0.25, -0.25]]))
    # Token 9 among 4 and 9, and 7 among 4, 7 and 8; the columns are 4, 7, 8 and 9.
    packed.targets = np.array([9, 7])
    packed.allowed = [np.array([4, 9]), np.array([4, 7, 8])]
    no = -float("inf")
    logits = torch.tensor([[0.0, no, no, float(np.log(3.0))], [0.0, 0.0, 0.0, no]])
    loss, d_logits = cross_entropy([packed], logits)
    assert loss == pytest.approx(2 * np.log(4 / 3) + np.log(3.0))
    expected = [[0.5, 0.0, 0.0, -0.5], [1 / 3, -2 / 3, 1 / 3, 0.0]]
    assert torch.allclose(d_logits, torch.tensor(expected))


def test_get_loss_is_that_of_torch(nlp):
    pipe = nlp.get_pipe("padellm_ner")
    packed = [p for eg in make_examples(nlp) for p in pipe.make_training_batch([eg])]
    n = sum(len(p.targets) for p in packed)
    scores = torch.randn(n, 50, generator=torch.Generator().manual_seed(0), requires_grad=True)
    targets = torch.cat([torch.from_numpy(p.targets) for p in packed]) % 50
    for p in packed:
        p.targets, p.allowed = p.targets % 50, None
    weights = torch.cat([torch.from_numpy(p.weights) for p in packed])
    loss, d_scores = pipe.get_loss(packed, scores)
    expected = (
        torch.nn.functional.cross_entropy(scores, targets, reduction="none") * weights
    ).sum()
    expected.backward()
    assert loss == pytest.approx(expected.item(), rel=1e-5)
    assert torch.allclose(d_scores, scores.grad, atol=1e-5)


def test_batches_by_tokens():
    texts = [Packed(np.zeros(n), *[np.zeros(0)] * 5, None) for n in (5, 30, 7, 6, 100)]
    batches = batches_by_tokens(texts, 22)
    assert [[len(p) for p in b] for b in batches] == [[5], [30], [7, 6], [100]]
    assert batches_by_tokens([], 10) == []


def test_what_is_learnt_follows_the_settings(tiny_llm):
    """There are fewer targets with "loss ignoring", and with a loss over the allowed tokens."""
    n = []
    for settings in ({}, {"learn_index": False}, {"loss": "allowed"}):
        cfg = {"template": "published_en", "loss": "raw", **settings}
        nlp = initialized(make_nlp(tiny_llm, **cfg))
        n.append(gradients_of(nlp, make_examples(nlp)[:1])[2])
    assert n[2] < n[1] < n[0]


def test_texts_with_spans_must_agree(nlp):
    eg = Example(nlp.make_doc("Oskar Blum"), nlp.make_doc("Oskar Blom"))
    eg.reference.spans["sc"] = [Span(eg.reference, 0, 2, label="PER")]
    with pytest.raises(LLMNERError, match="'Oskar Blum' and 'Oskar Blom'"):
        gold_mentions(eg, "sc")


def test_entity_cut_by_a_token_leaves_its_window_out(nlp):
    predicted = Doc(nlp.vocab, words=["Mira", "Stonemet", "Oskar"])
    words, spaces = ["Mira", "Stone", "met", "Oskar"], [True, False, True, True]
    reference = Doc(nlp.vocab, words=words, spaces=spaces)
    reference.set_ents([Span(reference, 0, 2, label="PER"), Span(reference, 3, 4, label="PER")])
    eg = Example(predicted, reference)
    pipe = nlp.get_pipe("padellm_ner")
    assert pipe.make_training_batch([eg]) == []
    pipe.cfg["window"] = 1
    assert len(pipe.make_training_batch([eg])) == 1  # the last word, which is annotated


def test_windows_that_cut_a_mention_teach_nothing(tiny_llm, caplog):
    """The number of their mentions is not known."""
    nlp = make_nlp(tiny_llm, cfg={"window": 14})
    data = [("Rain fell. Mira Stone and the cold and deep river sang", [(11, 43, "PER")])]
    examples = make_examples(nlp, data)
    with pytest.warns(UserWarning, match="skips 2 of . windows.* 2 end inside an entity"):
        nlp.initialize(lambda: examples)
    pipe = nlp.get_pipe("padellm_ner")
    with caplog.at_level(logging.DEBUG, "spacy_llmner"):
        packed = pipe.make_training_batch(examples)
    n_windows = len(pipe._windows(examples[0].predicted, pipe.adapted_llm().prompt_encoder))
    assert 0 < len(packed) < n_windows - 1
    assert "is cut by the end of a window" in caplog.text


def test_a_label_that_is_never_seen(tiny_llm):
    """The component learns that the label has no mentions."""
    nlp = make_nlp(tiny_llm)
    nlp.config["initialize"]["components"]["padellm_ner"] = {"labels": ["LOC", "PER", "ORG"]}
    train(nlp, steps=40)
    assert "ORG" not in {span.label_ for doc in nlp.pipe(TEXTS) for span in doc.spans["llmner"]}
