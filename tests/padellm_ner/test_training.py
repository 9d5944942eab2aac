"""spaCy's training contract: initialize, update, get_loss, finish_update."""

import logging
import random
import warnings

import numpy as np
import pytest
import spacy
import torch
from spacy.tokens import Doc, Span
from spacy.training import Example

from spacy_llmner.errors import LLMNERError
from spacy_llmner.llm.packing import Packed
from spacy_llmner.pipeline.gold import gold_mentions
from spacy_llmner.pipeline.training import batches_by_tokens, cross_entropy
from tests.helpers import (
    TEXTS,
    entities,
    make_examples,
    make_sgd,
    same_state,
    share_found,
    state_of,
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


def test_initialize_reads_labels_from_examples(nlp):
    pipe = nlp.get_pipe("padellm_ner")
    assert pipe.labels == ("LOC", "PER") and pipe.label_data == ["LOC", "PER"]
    assert all(np.isfinite(t).all() for t in state_of(nlp).values())


def test_initialize_with_labels(tiny_llm):
    nlp = make_nlp(tiny_llm)
    pipe = nlp.get_pipe("padellm_ner")
    pipe.initialize(lambda: make_examples(nlp), nlp=nlp, labels=["PER", "ORG", "LOC"])
    assert pipe.labels == ("PER", "ORG", "LOC")
    other = make_nlp(tiny_llm)
    other.config["initialize"]["components"]["padellm_ner"] = {"labels": ["PER"]}
    with pytest.raises(LLMNERError, match="hold the labels LOC, which 'padellm_ner' does not know"):
        other.initialize(lambda: make_examples(other))


def test_initialize_without_examples_or_entities(tiny_llm):
    nlp = make_nlp(tiny_llm)
    empty = [Example.from_dict(nlp.make_doc(""), {"entities": []})]
    with pytest.raises(LLMNERError, match="no training examples for 'padellm_ner'.*debug data"):
        nlp.initialize(lambda: empty)
    bare = [Example.from_dict(nlp.make_doc("Tea is cold."), {"entities": []})]
    with pytest.raises(LLMNERError, match="None of the training examples.*has an entity"):
        nlp.initialize(lambda: bare)
    with pytest.raises(LLMNERError, match="has no labels"):
        nlp.get_pipe("padellm_ner").initialize(lambda: bare, labels=[])
    with pytest.raises(TypeError, match="get_examples"):
        nlp.get_pipe("padellm_ner").initialize(bare)


def test_initialize_follows_the_seed_and_touches_none(tiny_llm):
    states = []
    for seed in (1, 1, 2):
        nlp = make_nlp(tiny_llm)
        random.seed(seed)
        before = torch.get_rng_state()
        nlp.initialize(lambda nlp=nlp: make_examples(nlp))
        assert torch.equal(torch.get_rng_state(), before)
        states.append(state_of(nlp))
    assert same_state(states[0], states[1])
    assert not same_state(states[0], states[2])


def test_initialize_again_starts_over(nlp):
    first = state_of(nlp)
    nlp.update(make_examples(nlp), sgd=make_sgd())
    assert same_state(first, state_of(initialized(nlp)))


def test_a_new_adapter_changes_nothing(nlp):
    """LoRA begins as the LLM itself."""
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


def test_copies_of_weights_answer_at_once(tiny_llm):
    pipe = initialized(make_nlp(tiny_llm, rank=0)).get_pipe("padellm_ner")
    assert not pipe.module.is_untrained()


def test_labels_are_set_before_training(nlp):
    pipe = nlp.get_pipe("padellm_ner")
    assert pipe.add_label("PER") == 0
    with pytest.raises(LLMNERError, match="`labels` of 'padellm_ner' is 'NEW'.*before training"):
        pipe.add_label("NEW")


def test_unknown_label_in_update(nlp):
    eg = Example.from_dict(nlp.make_doc("Oskar Blum"), {"entities": [(0, 10, "DOG")]})
    with pytest.raises(LLMNERError, match="hold the labels DOG.*it knows LOC, PER"):
        nlp.update([eg], sgd=make_sgd())


def test_update_before_initialize(tiny_llm):
    nlp = make_nlp(tiny_llm)
    with pytest.raises(LLMNERError, match="has no labels"):
        nlp.get_pipe("padellm_ner").update(make_examples(nlp))


def test_update_of_nothing(nlp):
    pipe = nlp.get_pipe("padellm_ner")
    assert pipe.update([]) == {"padellm_ner": 0.0}
    empty = Example.from_dict(nlp.make_doc(""), {"entities": []})
    assert pipe.update([empty], losses={"padellm_ner": 2.0}) == {"padellm_ner": 2.0}
    with pytest.raises(TypeError):
        pipe.update([nlp.make_doc("Tea")])


@pytest.mark.parametrize("rank", [8, 0])
def test_loss_falls(any_llm, rank):
    nlp = initialized(make_nlp(any_llm, rank=rank))
    examples = make_examples(nlp, DATA)
    rate = 0.02 if rank else 0.002
    losses = [nlp.update(examples, sgd=make_sgd(rate))["padellm_ner"] for _ in range(6)]
    assert 0 < losses[-1] < 0.85 * losses[0]


def test_gradients_add_up(nlp):
    """Two updates without an optimizer leave the sum of their gradients; one step uses it up."""
    pipe = nlp.get_pipe("padellm_ner")
    examples = make_examples(nlp)
    first, second = examples[:2], examples[2:]
    _, a, _ = gradients_of(nlp, first)
    _, b, _ = gradients_of(nlp, second)
    before = state_of(nlp)
    nlp.update(first, sgd=False)
    nlp.update(second, sgd=False)
    assert same_state(before, state_of(nlp))
    for name, p in pipe.module.named_parameters():
        assert torch.allclose(p.grad, a[name] + b[name], atol=1e-6), name
    pipe.finish_update(make_sgd())
    assert not same_state(before, state_of(nlp))
    assert all(p.grad is None for p in pipe.module.parameters())
    after = state_of(nlp)
    pipe.finish_update(make_sgd())
    assert same_state(after, state_of(nlp))


@pytest.mark.parametrize("max_batch_tokens", [1, 1024])
def test_gradient_of_a_batch_is_that_of_its_docs(nlp, max_batch_tokens):
    """Weighted by what there is to learn, whatever fits into one pass."""
    nlp.get_pipe("padellm_ner").max_batch_tokens = max_batch_tokens
    examples = make_examples(nlp)
    loss, together, total = gradients_of(nlp, examples)
    alone = [gradients_of(nlp, [eg]) for eg in examples]
    assert loss == pytest.approx(sum(a[0] * a[2] for a in alone) / total, rel=1e-4)
    for name, grad in together.items():
        mean = sum(a[1][name] * a[2] for a in alone) / total
        assert torch.allclose(grad, mean, atol=1e-5), name


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


def test_frozen_component_is_untouched(nlp):
    before = state_of(nlp)
    nlp.update(make_examples(nlp), sgd=make_sgd(), exclude=["padellm_ner"])
    with nlp.select_pipes(disable=["padellm_ner"]):
        nlp.update(make_examples(nlp), sgd=make_sgd())
    assert same_state(before, state_of(nlp))


def test_annotating_component(nlp, monkeypatch):
    """What it finds is there for the components behind it."""
    seen = []

    class Behind:
        def __call__(self, doc):
            return doc

        def update(self, examples, **kwargs):
            seen.extend(eg.predicted for eg in examples)

    monkeypatch.setattr(nlp, "_components", [*nlp._components, ("behind", Behind())])
    nlp.update(make_examples(nlp), sgd=None, annotates=["padellm_ner"])
    assert len(seen) == len(TEXTS) and all("llmner" in doc.spans for doc in seen)


def test_averages_are_used_and_put_back(nlp):
    sgd = make_sgd(learn_rate=0.02, use_averages=True)
    for _ in range(3):
        nlp.update(make_examples(nlp), sgd=sgd)
    trained = state_of(nlp)
    with nlp.use_params(sgd.averages):
        assert not same_state(state_of(nlp), trained)
        nlp(TEXTS[0])
    assert same_state(state_of(nlp), trained)


def test_resume_after_loading(trained, tmp_path):
    trained.to_disk(tmp_path)
    nlp = spacy.load(tmp_path)
    before = state_of(nlp)
    sgd = nlp.resume_training()
    for _ in range(10):
        loss = nlp.update(make_examples(nlp, DATA), sgd=sgd)["padellm_ner"]
    assert loss < 1.0 and not same_state(before, state_of(nlp))
    assert share_found(nlp, DATA) > 0.9
    assert same_state(before, state_of(trained))


def test_what_is_learnt_follows_the_settings(tiny_llm):
    """ "loss ignoring" leaves targets out, and so does learning among what is allowed."""
    n = []
    for settings in ({}, {"learn_index": False}, {"loss": "allowed"}):
        cfg = {"template": "published_en", "loss": "raw", **settings}
        nlp = initialized(make_nlp(tiny_llm, **cfg))
        n.append(gradients_of(nlp, make_examples(nlp)[:1])[2])
    assert n[2] < n[1] < n[0]


def test_texts_must_agree(nlp, tiny_llm):
    eg = Example(nlp.make_doc("Oskar Blum"), nlp.make_doc("Oskar Blom"))
    with pytest.raises(LLMNERError, match="'Oskar Blum' and 'Oskar Blom'"):
        nlp.get_pipe("padellm_ner").update([eg])
    eg.reference.spans["sc"] = [Span(eg.reference, 0, 2, label="PER")]
    with pytest.raises(LLMNERError, match="'Oskar Blum' and 'Oskar Blom'"):
        gold_mentions(eg, "sc")


def test_docs_without_annotation_teach_nothing(nlp):
    examples = [Example(nlp.make_doc(text), nlp.make_doc(text)) for text in TEXTS]
    loss, _, weight = gradients_of(nlp, examples)
    assert loss == weight == 0.0


def test_what_is_not_learnt_is_told(tiny_llm):
    """When training begins: the loss would not show it."""
    nlp = make_nlp(tiny_llm)
    known = make_examples(nlp, DATA)
    bare = [Example(nlp.make_doc(text), nlp.make_doc(text)) for text in TEXTS[:2]]
    words, spaces = ["Mira", "Stonemet", "Oskar"], [True, True, False]
    data = {"entities": [(0, 10, "PER")], "words": ["Mira", "Stone", "met", "Oskar"]}
    data["spaces"] = [True, False, True, False]
    misaligned = [Example.from_dict(Doc(nlp.vocab, words=words, spaces=spaces), data)]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        nlp.initialize(lambda: known)
    told = (
        f"'padellm_ner' does not learn 3 of {len(DATA) + 3} windows.*in 3, tokens are not annotated"
    )
    with pytest.warns(UserWarning, match=told):
        nlp.initialize(lambda: [*known, *bare, *misaligned])
    with pytest.raises(LLMNERError, match="can learn nothing.*of 3 windows of text, in 3 tokens"):
        nlp.initialize(lambda: [*bare, *misaligned])


def test_entity_cut_by_a_token_leaves_its_window_out(nlp):
    predicted = Doc(nlp.vocab, words=["Mira", "Stonemet", "Oskar"])
    words, spaces = ["Mira", "Stone", "met", "Oskar"], [True, False, True, True]
    reference = Doc(nlp.vocab, words=words, spaces=spaces)
    reference.set_ents([Span(reference, 0, 2, label="PER"), Span(reference, 3, 4, label="PER")])
    eg = Example(predicted, reference)
    pipe = nlp.get_pipe("padellm_ner")
    assert pipe.make_training_batch([eg]) == []
    pipe.cfg["window"] = 1
    assert len(pipe.make_training_batch([eg])) == 1  # the last word, about which all is known


def test_windows_that_cut_a_mention_teach_nothing(tiny_llm, caplog):
    """To count would be to guess there."""
    nlp = make_nlp(tiny_llm, cfg={"window": 14})
    data = [("Rain fell. Mira Stone and the cold and deep river sang", [(11, 43, "PER")])]
    examples = make_examples(nlp, data)
    with pytest.warns(UserWarning, match="does not learn 2 of . windows.* the end of 2 cuts"):
        nlp.initialize(lambda: examples)
    pipe = nlp.get_pipe("padellm_ner")
    with caplog.at_level(logging.DEBUG, "spacy_llmner"):
        packed = pipe.make_training_batch(examples)
    n_windows = len(pipe._windows(examples[0].predicted, pipe.adapted_llm().prompt_encoder))
    assert 0 < len(packed) < n_windows - 1
    assert "is cut by the end of a window" in caplog.text


def test_docs_marked_without_entities_are_learnt(trained, tmp_path):
    trained.to_disk(tmp_path)
    nlp = spacy.load(tmp_path)
    text = "Oskar Blum likes tea."
    assert entities(nlp(text))
    reference = nlp.make_doc(text)
    reference.set_ents([], default="outside")
    for _ in range(8):
        nlp.update([Example(nlp.make_doc(text), reference)], sgd=make_sgd(0.01))
    assert entities(nlp(text)) == []


NESTED = [
    ("Port Ellam Club met in Port Ellam.", [(0, 3, "ORG"), (0, 2, "LOC"), (5, 7, "LOC")]),
    ("Nobody saw the Varnholm Club.", [(3, 5, "ORG"), (3, 4, "LOC")]),
]


def nested_examples(nlp, key="sc"):
    out = []
    for text, spans in NESTED:
        reference = nlp.make_doc(text)
        reference.spans[key] = [Span(reference, *span) for span in spans]
        out.append(Example(nlp.make_doc(text), reference))
    return out


def test_nested_spans(tiny_llm):
    """Checklist 10: what overlaps is learnt from doc.spans and found there; doc.ents is flat."""
    nlp = make_nlp(tiny_llm, cfg={"train_spans": "sc"})
    examples = nested_examples(nlp)
    nlp.initialize(lambda: examples)
    sgd = make_sgd(0.02, grad_clip=1.0)
    for _ in range(30):
        nlp.update(examples, sgd=sgd)
    for text, spans in NESTED:
        doc = nlp(text)
        assert {(s.start, s.end, s.label_) for s in doc.spans["llmner"]} == set(spans)
        assert all(a.end <= b.start for a, b in zip(doc.ents, doc.ents[1:]))
        assert {(e.start, e.end, e.label_) for e in doc.ents} < set(spans)


def test_nested_spans_are_scored(tiny_llm):
    """So that `spans_f` can choose the best model: doc.ents has one of two that overlap."""
    nlp = make_nlp(tiny_llm, cfg={"train_spans": "sc"})
    examples = nested_examples(nlp)
    nlp.initialize(lambda: examples)
    doc = examples[0].predicted
    doc.spans["llmner"] = [Span(doc, 0, 3, "ORG"), Span(doc, 0, 2, "LOC")]
    doc.set_ents([Span(doc, 0, 3, "ORG")])
    scores = nlp.get_pipe("padellm_ner").score(examples)
    assert (scores["spans_p"], scores["spans_r"]) == (1.0, 0.4)
    assert scores["spans_per_type"]["LOC"]["r"] == pytest.approx(1 / 3)


def test_docs_without_the_spans_teach_nothing(tiny_llm):
    nlp = make_nlp(tiny_llm, cfg={"train_spans": "sc"})
    with pytest.raises(LLMNERError, match="None of the training examples"):
        nlp.initialize(lambda: nested_examples(nlp, "other"))
    examples = nested_examples(nlp)
    nlp.initialize(lambda: examples)
    assert nlp.get_pipe("padellm_ner").update(nested_examples(nlp, "other"))["padellm_ner"] == 0.0


def test_chinese(tiny_llm):
    """Checklist 11: by characters, with the published wording."""
    data = [
        ("王小明在北京大学学习。", [(0, 3, "PER"), (4, 8, "ORG")]),
        ("他住在上海。", [(3, 5, "LOC")]),
    ]
    words = {"PER": "名称", "ORG": "组织", "LOC": "地点"}
    nlp = make_nlp(tiny_llm, lang="zh", template="published_zh", label_words=words)
    train(nlp, data=data, steps=40)
    for text, gold in data:
        assert entities(nlp(text)) == gold


def test_a_label_that_is_never_seen(tiny_llm):
    """It is learnt that there is none."""
    nlp = make_nlp(tiny_llm)
    nlp.config["initialize"]["components"]["padellm_ner"] = {"labels": ["LOC", "PER", "ORG"]}
    train(nlp, steps=40)
    assert "ORG" not in {span.label_ for doc in nlp.pipe(TEXTS) for span in doc.spans["llmner"]}
