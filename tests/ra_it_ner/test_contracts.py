"""What spaCy expects of a component, settings that other tests leave out, and bad input."""

import copy
import gc
import pickle
import random
import threading
import weakref
from concurrent.futures import ThreadPoolExecutor

import pytest
import spacy
import torch
from spacy.tokens import Span
from spacy.training import Example

from spacy_llmner.errors import LLMMismatchError
from spacy_llmner.llm import registry as pool
from spacy_llmner.retrieval.index import ExampleIndex
from tests.helpers import (
    TEXTS,
    TRAIN,
    assert_same,
    assert_valid,
    entities,
    make_examples,
    make_sgd,
    same_state,
    scores,
    share_found,
    state_of,
)
from tests.ra_it_ner.helpers import ADA, BO, initialized, make_nlp, scrambled, train

UNSEEN = "Yesterday Mira Stone left Port Ellam ; nobody saw Oskar."
# Nothing is drawn: examples are the nearest, and each text is asked for both labels or for none.
FIXED = {"random_k": False, "negative_rate": 1.0, "least_negatives": 0}


@pytest.fixture
def nlp(tiny_llm):
    """Initialized, not yet trained; nothing is drawn in training."""
    return initialized(make_nlp(tiny_llm, cfg=FIXED))


def gradients_of(nlp, examples):
    """RETURNS (Tuple[float, Dict, float]): Loss, gradients, and how many tokens were learnt."""
    pipe = nlp.get_pipe("ra_it_ner")
    pipe.module.zero_grad(set_to_none=True)
    loss = pipe.update(examples, sgd=None)["ra_it_ner"]
    out = {name: p.grad.clone() for name, p in pipe.module.named_parameters()}
    pipe.module.zero_grad(set_to_none=True)
    return (
        loss,
        out,
        float(sum(packed.weights.sum() for packed in pipe.make_training_batch(examples))),
    )


def read_by(nlp, examples):
    """RETURNS (List[str]): What the LLM reads in training, text by text."""
    pipe = nlp.get_pipe("ra_it_ner")
    hf = pipe.shared_llm().tokenizer.hf
    return [hf.decode(packed.ids) for packed in pipe.make_training_batch(examples)]


def test_as_tuples(wild):
    texts = [*TEXTS, UNSEEN, ""]
    pairs = list(wild.pipe([(text, {"id": i}) for i, text in enumerate(texts)], as_tuples=True))
    assert [context["id"] for _, context in pairs] == list(range(len(texts)))
    for (doc, _), text in zip(pairs, texts):
        assert_same(doc, wild(text))


def test_disabled(wild, tmp_path):
    """It then leaves nothing on a Doc, and comes back as it was."""
    before = wild(TEXTS[0])
    with wild.select_pipes(disable=["ra_it_ner"]):
        docs = [wild(TEXTS[0]), *wild.pipe(TEXTS[:1])]
    docs += wild.pipe(TEXTS[:1], disable=["ra_it_ner"])
    wild.to_disk(tmp_path)
    loaded = spacy.load(tmp_path, disable=["ra_it_ner"])
    docs += [loaded(TEXTS[0]), spacy.load(tmp_path, exclude=["ra_it_ner"])(TEXTS[0])]
    for doc in docs:
        assert not doc.ents and not doc.spans and doc._.llmner_examples is None
    loaded.enable_pipe("ra_it_ner")
    for again in (wild, loaded):
        assert_same(again(TEXTS[0]), before)


def test_frozen_component_is_untouched(nlp):
    before = state_of(nlp)
    nlp.update(make_examples(nlp), sgd=make_sgd(), exclude=["ra_it_ner"])
    with nlp.select_pipes(disable=["ra_it_ner"]):
        nlp.update(make_examples(nlp), sgd=make_sgd())
    assert same_state(before, state_of(nlp))


def test_annotating_component(trained, monkeypatch):
    """What it finds is there for the components behind it, also if it is frozen."""
    seen = []

    class Behind:
        def __call__(self, doc):
            return doc

        def update(self, examples, **kwargs):
            seen.extend(eg.predicted for eg in examples)

    monkeypatch.setattr(trained, "_components", [*trained._components, ("behind", Behind())])
    before = state_of(trained, "ra_it_ner")
    settings = {"annotates": ["ra_it_ner"], "exclude": ["ra_it_ner"]}
    trained.update(make_examples(trained), sgd=make_sgd(), **settings)
    assert same_state(before, state_of(trained, "ra_it_ner"))
    assert [entities(doc) for doc in seen] == [entities(trained(text)) for text in TEXTS]
    assert all(doc._.llmner_examples for doc in seen)


def test_gradients_add_up(nlp):
    """Two updates without an optimizer leave the sum of their gradients; one step uses it up."""
    pipe = nlp.get_pipe("ra_it_ner")
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
    after = state_of(nlp)
    assert not same_state(before, after)
    assert all(p.grad is None for p in pipe.module.parameters())
    pipe.finish_update(make_sgd())
    assert same_state(after, state_of(nlp))


@pytest.mark.parametrize("max_batch_tokens", [1, 2048])
def test_gradient_of_a_batch_is_that_of_its_docs(nlp, max_batch_tokens):
    """Weighted by what there is to learn, whatever fits into one pass."""
    scrambled(nlp).get_pipe("ra_it_ner").max_batch_tokens = max_batch_tokens
    examples = [eg for eg in make_examples(nlp) if eg.reference.ents]
    loss, together, total = gradients_of(nlp, examples)
    alone = [gradients_of(nlp, [eg]) for eg in examples]
    assert loss == pytest.approx(sum(a[0] * a[2] for a in alone) / total, rel=1e-4)
    for name, grad in together.items():
        mean = sum(a[1][name] * a[2] for a in alone) / total
        assert torch.allclose(grad, mean, atol=1e-4), name


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
    before, n_examples = state_of(nlp), len(nlp.get_pipe("ra_it_ner").index)
    sgd = nlp.resume_training()
    for _ in range(5):
        loss = nlp.update(make_examples(nlp), sgd=sgd)["ra_it_ner"]
    assert loss < 1.0 and not same_state(before, state_of(nlp))
    assert len(nlp.get_pipe("ra_it_ner").index) == n_examples
    assert same_state(before, state_of(trained))


def test_initialize_again_starts_over(tiny_llm):
    """Examples of the first corpus are gone, too."""
    nlp = initialized(make_nlp(tiny_llm))
    first = state_of(nlp)
    nlp.update(make_examples(nlp), sgd=make_sgd())
    initialized(nlp, TRAIN[:3])
    assert same_state(first, state_of(nlp))
    assert [e.text for e in nlp.get_pipe("ra_it_ner").index.examples] == TEXTS[:3]


@pytest.fixture
def two(trained, wild):
    """Two adapters on one LLM. RETURNS (Language): With `ra_it_ner` and `other`."""
    nlp = spacy.blank("en")
    for name, source in (("ra_it_ner", trained), ("other", wild)):
        nlp.add_pipe("ra_it_ner", source=copied(source), name=name)
    nlp.get_pipe("other").cfg["spans_key"] = "things"
    return nlp


def copied(nlp):
    return pickle.loads(pickle.dumps(nlp))


def things(doc):
    group = doc.spans["things"]
    return [(s.start, s.end, s.label_, x) for s, x in zip(group, group.attrs["scores"])]


def test_two_adapters_on_one_llm(two, trained, wild):
    assert two.get_pipe("other").shared_llm() is two.get_pipe("ra_it_ner").shared_llm()
    for text in TEXTS:
        doc = two(text)
        assert scores(doc) == pytest.approx(scores(trained(text)), abs=1e-5)
        doc.spans["llmner"] = doc.spans["things"]
        assert scores(doc) == pytest.approx(scores(wild(text)), abs=1e-5)
    assert things(two(UNSEEN))


@pytest.mark.parametrize("where", ["forward", "answers", "loss"])
def test_an_exception_inside_changes_nothing(two, monkeypatch, where):
    """Neither the LLM, nor what it or other adapters on it find."""
    pipe = two.get_pipe("ra_it_ner")
    llm = pipe.shared_llm()
    before = {name: p.clone() for name, p in llm.model.named_parameters()}
    modules = [type(m) for m in llm.model.modules()]
    found = [(scores(doc), things(doc)) for doc in two.pipe(TEXTS)]

    def fail(*args, **kwargs):
        raise RuntimeError("spilt")

    with monkeypatch.context() as patched, pytest.raises(RuntimeError, match="spilt"):
        if where == "answers":
            patched.setattr("spacy_llmner.ra_it_ner.component.mentions_of", fail)
            two(TEXTS[0])
        elif where == "forward":
            hook = pipe.adapted_llm().view.layers[-1].mlp.register_forward_pre_hook(fail)
            try:
                two(TEXTS[0])
            finally:
                hook.remove()
        else:
            patched.setattr(pipe, "get_loss", fail)
            two.update(make_examples(two), sgd=make_sgd())
    assert pipe.shared_llm() is llm
    assert not llm.model.training and [type(m) for m in llm.model.modules()] == modules
    for name, p in llm.model.named_parameters():
        assert torch.equal(p, before[name]) and not p.requires_grad and p.grad is None
    for doc, (mine, others) in zip(two.pipe(TEXTS), found):
        assert scores(doc) == pytest.approx(mine, abs=1e-6)
        assert things(doc) == others


def test_two_threads_at_first_use(trained):
    """Both make the view with the adapter and search the index: neither disturbs the other."""
    expected = [(scores(doc), doc._.llmner_examples) for doc in trained.pipe(TEXTS)]
    for _ in range(2):
        nlp = copied(trained)
        start = threading.Barrier(2)

        def read(_):
            start.wait()  # noqa: B023
            return [(scores(doc), doc._.llmner_examples) for doc in nlp.pipe(TEXTS)]  # noqa: B023

        with ThreadPoolExecutor(2) as threads:
            for found in threads.map(read, range(2)):
                for (one, shown), (other, expected_shown) in zip(found, expected):
                    assert one == pytest.approx(other, abs=1e-5) and shown == expected_shown
    assert torch.nn.Linear(2, 2).weight.device.type == "cpu"


def test_unload_frees_the_weights(trained):
    """Though the component and its encoder have used them."""
    doc = trained(TEXTS[0])
    pipe = trained.get_pipe("ra_it_ner")
    held = weakref.ref(next(pipe.shared_llm().model.parameters()))
    pipe.llm.unload()
    gc.collect()
    assert held() is None
    assert_same(trained(TEXTS[0]), doc)
    pool.clear()
    loss = copy.deepcopy(trained).update(make_examples(trained), sgd=make_sgd())["ra_it_ner"]
    assert 0 < loss < 1.0


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
    """What overlaps is learnt from doc.spans, shown in examples, and found; doc.ents is flat."""
    nlp = make_nlp(tiny_llm, cfg={"train_spans": "sc", "random_k": False})
    examples = nested_examples(nlp)
    random.seed(0)
    nlp.initialize(lambda: examples)
    shown = nlp.get_pipe("ra_it_ner").index.examples
    assert shown[0].entities == ((0, 10, "LOC"), (0, 15, "ORG"), (23, 33, "LOC"))
    sgd = make_sgd(0.02, grad_clip=1.0)
    for _ in range(45):
        nlp.update(examples, sgd=sgd)
    for text, spans in NESTED:
        doc = nlp(text)
        assert {(s.start, s.end, s.label_) for s in doc.spans["llmner"]} == set(spans)
        assert all(a.end <= b.start for a, b in zip(doc.ents, doc.ents[1:]))
        assert {(e.start, e.end, e.label_) for e in doc.ents} < set(spans)
    assert nlp.evaluate(nested_examples(nlp))["spans_f"] == 1.0


def test_docs_without_the_spans_teach_nothing(tiny_llm):
    nlp = make_nlp(tiny_llm, cfg={"train_spans": "sc"})
    examples = nested_examples(nlp)
    with pytest.warns(UserWarning, match="does not learn 2 of 4 windows"):
        nlp.initialize(lambda: [*examples, *nested_examples(nlp, "other")])
    pipe = nlp.get_pipe("ra_it_ner")
    assert len(pipe.index) == len(NESTED)
    assert pipe.update(nested_examples(nlp, "other"))["ra_it_ner"] == 0.0


def test_of_two_that_begin_alike_the_longer_is_learnt(tiny_llm):
    """An ordered answer has one string for each word that one begins with."""
    nlp = make_nlp(tiny_llm, k=0, cfg={"train_spans": "sc"})
    doc = nlp.make_doc(NESTED[0][0])
    doc.spans["sc"] = [Span(doc, 0, 2, "ORG"), Span(doc, 0, 3, "ORG")]
    examples = [Example(nlp.make_doc(doc.text), doc)]
    nlp.initialize(lambda: examples)
    (read,) = read_by(nlp, examples)
    assert '["Port Ellam Club"]' in read and read.count("Port Ellam Club") == 2


REPEATED = [
    ("Mira Stone sings, and Mira Stone waits.", [(0, 10, "PER"), (22, 32, "PER")]),
    ("From Varnholm to Varnholm.", [(5, 13, "LOC"), (17, 25, "LOC")]),
]


@pytest.mark.parametrize("occurrences", ["ordered", "all"])
def test_occurrences(tiny_llm, occurrences):
    """An answer names every mention, or each string once, which stands for all its places."""
    cfg = {"negative_rate": 1.0, "constrained": True}
    nlp = train(make_nlp(tiny_llm, k=0, cfg=cfg, occurrences=occurrences), 40, REPEATED)
    listed = {"ordered": '["Mira Stone", "Mira Stone"]', "all": '["Mira Stone"]'}
    read = read_by(nlp, make_examples(nlp, REPEATED))[0]
    assert [kind for kind in listed if listed[kind] in read] == [occurrences]
    assert share_found(nlp, REPEATED) == 1.0
    for doc in nlp.pipe([text for text, _ in REPEATED]):
        one, other = doc.spans["llmner"].attrs["scores"]
        if occurrences == "all":
            assert one == other


def test_all_occurrences_of_anything(tiny_llm):
    """Wherever a listed string stands it is found, once; batches change nothing."""
    cfg = {"list_threshold": 0.0, "max_answer_tokens": 40}
    nlp = scrambled(initialized(make_nlp(tiny_llm, cfg=cfg, occurrences="all")))
    texts = ["Bo saw Bo saw Bo.", "Tea , tea , tea and Tea", "a b a b a b", *TEXTS[:3]]
    several = False
    for text, doc in zip(texts, nlp.pipe(texts)):
        assert_valid(doc, text)
        assert_same(doc, nlp(text))
        found = [(s.start, s.end, s.label_) for s in doc.spans["llmner"]]
        assert len(set(found)) == len(found)
        for start, end, label in found:
            places = all_places(doc, doc[start:end].text)
            several = several or len(places) > 1
            assert {(*place, label) for place in places} <= set(found)
    assert several


def all_places(doc, string):
    """RETURNS (List[Tuple[int, int]]): Of a string, in tokens."""
    n = len(doc)
    runs = [(a, b) for a in range(n) for b in range(a + 1, n + 1)]
    return [(a, b) for a, b in runs if doc[a:b].text == string]


def test_full_fine_tuning(tiny_llm, tmp_path):
    """rank = 0 trains a copy of the weights; the shared ones, which also encode, stay as they are."""
    llm = pool.make_llm(tiny_llm, device="cpu").load()
    before = {name: p.clone() for name, p in llm.model.named_parameters()}
    nlp = initialized(make_nlp(tiny_llm, rank=0, cfg=FIXED))
    sgd = make_sgd(0.003, grad_clip=1.0)
    losses = [nlp.update(make_examples(nlp), sgd=sgd)["ra_it_ner"] for _ in range(12)]
    assert losses[-1] < 0.6 * losses[0]
    pipe = nlp.get_pipe("ra_it_ner")
    assert pipe.shared_llm() is llm
    for name, p in llm.model.named_parameters():
        assert torch.equal(p, before[name]) and not p.requires_grad and p.grad is None
    nlp.to_disk(tmp_path)
    loaded = spacy.load(tmp_path)
    for one, other in zip(nlp.pipe([*TEXTS, UNSEEN]), loaded.pipe([*TEXTS, UNSEEN])):
        assert_same(one, other, 1e-5)
        assert one._.llmner_examples == other._.llmner_examples


def shown(nlp, text=UNSEEN):
    """RETURNS (List[Tuple[str, float]]): Texts of the examples in front of a text, and their cosines."""
    texts = {e.hash: e.text for e in nlp.get_pipe("ra_it_ner").index.examples}
    (context,) = nlp(text)._.llmner_examples
    return [(texts[e["hash"]], e["similarity"]) for e in context["examples"]]


@pytest.mark.parametrize("kind", ["random", "mixed", "diverse", "bm25_rank"])
def test_kinds_of_retrieval(tiny_llm, kind, tmp_path):
    """Each text has examples that depend on nothing but itself, also when they are drawn."""
    retrieval = {"kind": kind, "candidates": 4, "mix": 0.5}
    nlp = initialized(make_nlp(tiny_llm, k=2, retrieval=retrieval, cfg={"list_threshold": 1.0}))
    texts = [*TEXTS[:3], UNSEEN]
    contexts = [doc._.llmner_examples for doc in nlp.pipe(texts)]
    assert {len(context["examples"]) for (context,) in contexts} == {2}
    assert [doc._.llmner_examples for doc in nlp.pipe(texts[::-1])] == contexts[::-1]
    for text, (context,) in zip(texts, contexts):
        examples = shown(nlp, text)
        assert text not in dict(examples)
        assert [similarity for _, similarity in examples] == [
            e["similarity"] for e in context["examples"]
        ]
    if kind == "bm25_rank":
        assert shown(nlp, "Is tea cold in Port Ellam ?")[0][0] == "Tea is cold in Port Ellam."
    nlp.update(make_examples(nlp, TRAIN[:2]), sgd=make_sgd())
    nlp.to_disk(tmp_path)
    assert [doc._.llmner_examples for doc in spacy.load(tmp_path).pipe(texts)] == contexts


@pytest.mark.parametrize(
    ("gate", "lowest"), [("cosine", 0.999), ("bm25", 1e6), ("bm25_relative", 1.0)]
)
def test_a_gate_that_lets_nothing_pass(tiny_llm, gate, lowest):
    """Texts are then read and learnt as without examples."""
    retrieval = {"gate": gate, "threshold": lowest}
    nlp = initialized(make_nlp(tiny_llm, k=2, retrieval=retrieval, cfg=FIXED))
    assert nlp(UNSEEN)._.llmner_examples == [{"reason": "in-domain", "examples": []}]
    plain = initialized(make_nlp(tiny_llm, k=0, cfg=FIXED))
    for one, other in zip(nlp.pipe(TEXTS), plain.pipe(TEXTS)):
        assert_same(one, other)
    for nlp_ in (nlp, plain):
        assert not any("Here are some examples" in r for r in read_by(nlp_, make_examples(nlp_)))
    examples = make_examples(nlp)
    assert gradients_of(nlp, examples)[0] == pytest.approx(gradients_of(plain, examples)[0])


def test_a_gate_lets_the_most_similar_pass(tiny_llm):
    nlp = initialized(make_nlp(tiny_llm, k=4, cfg=FIXED))
    cosines = [similarity for _, similarity in shown(nlp)]
    lowest = (cosines[1] + cosines[2]) / 2
    gated = make_nlp(tiny_llm, k=4, retrieval={"gate": "cosine", "threshold": lowest}, cfg=FIXED)
    assert shown(initialized(gated)) == shown(nlp)[:2]


def test_random_k_shuffles(tiny_llm):
    """0 to k examples in any order; without it always k, the most similar first."""
    nlp = initialized(make_nlp(tiny_llm, k=2))
    pipe = nlp.get_pipe("ra_it_ner")
    examples = make_examples(nlp)[:1]
    nearest = [text for text, _ in shown(nlp, TEXTS[0])]

    def orders(n):
        out = set()
        for _ in range(n):
            (read,) = read_by(nlp, examples)
            there = [text for text in TEXTS[1:] if f"Text: {text}" in read]
            out.add(tuple(sorted(there, key=read.index)))
        return out

    one, other = nearest
    assert orders(40) == {(), (one,), (other,), (one, other), (other, one)}
    pipe.cfg["random_k"] = False
    assert orders(5) == {(one, other)}


def test_chinese(tiny_llm):
    """By characters, with the published wording."""
    data = [
        ("林小燕在成都住。", [(0, 3, "PER"), (4, 6, "LOC")]),
        ("她喜欢茶。", []),
        ("从成都到海城。", [(1, 3, "LOC"), (4, 6, "LOC")]),
    ]
    words = {"PER": "人名", "LOC": "地点"}
    cfg = {"negative_rate": 1.0}
    settings = {"conversation": "published_zh", "label_words": words, "system": ""}
    nlp = train(make_nlp(tiny_llm, lang="zh", cfg=cfg, **settings), steps=40, data=data)
    for text, gold in data:
        assert entities(nlp(text)) == gold
    read = read_by(nlp, make_examples(nlp, data[:1]))[0]
    assert '文本中属于"人名"的实体有哪些？' in read and '["林小燕"]' in read
    assert "\\u" not in read and "PER" not in read


def test_pool_of_another_encoder(tiny_llm, other_llm, tmp_path):
    """Refused when training begins; it says by which encoder it was made and which is set."""
    index = ExampleIndex(make_nlp(other_llm).get_pipe("ra_it_ner").encoder)
    index.add([BO, ADA])
    index.to_disk(tmp_path)
    nlp = make_with_pool(tiny_llm, tmp_path)
    with pytest.raises(LLMMismatchError, match="made by the encoder .*other.*is searched with"):
        initialized(nlp)
    # Of the same LLM, but another layer.
    index = ExampleIndex(nlp.get_pipe("ra_it_ner").encoder)
    index.encoder.layer = 1
    index.add([BO, ADA])
    index.to_disk(tmp_path)
    with pytest.raises(LLMMismatchError, match=r"\(layer 1\)"):
        initialized(make_with_pool(tiny_llm, tmp_path))


def test_training_texts_encoded_by_another_encoder(tiny_llm, other_llm, tmp_path):
    """Refused too, though nothing would be added to such a pool."""
    index = initialized(make_nlp(other_llm)).get_pipe("ra_it_ner").index
    index.to_disk(tmp_path)
    nlp = make_with_pool(tiny_llm, tmp_path)
    with pytest.raises(LLMMismatchError, match="made by the encoder"):
        initialized(nlp)


def make_with_pool(llm, path):
    nlp = make_nlp(llm)
    nlp.config["initialize"]["components"]["ra_it_ner"] = {"pool": str(path)}
    return nlp


def test_a_long_text_whose_examples_are_cut(trained, monkeypatch):
    """Windows take the room of the examples; a short last window keeps its own."""
    pipe = trained.get_pipe("ra_it_ner")
    monkeypatch.setitem(pipe.cfg, "list_threshold", 0.0)
    monkeypatch.setitem(pipe.cfg, "use_examples", "always")
    monkeypatch.setitem(pipe.cfg, "context", 300)
    monkeypatch.setitem(pipe.cfg, "max_answer_tokens", 60)
    text = "\n".join([*TEXTS * 6, "Bo sang."])
    doc = trained(text)
    assert_valid(doc, text)
    reasons = [context["reason"] for context in doc._.llmner_examples]
    assert len(reasons) > 3 and "always, cut" in reasons
    for context in doc._.llmner_examples:
        assert bool(context["examples"]) is (context["reason"] == "always")
    assert {ent.start * 4 // len(doc) for ent in doc.ents} == {0, 1, 2, 3}
    for batched, alone in zip(trained.pipe([text, *TEXTS]), [doc, *map(trained, TEXTS)]):
        assert_same(batched, alone)
        assert batched._.llmner_examples == alone._.llmner_examples


def test_a_long_training_text_whose_examples_are_cut(tiny_llm):
    """Every window is learnt, though there is no room for examples."""
    cfg = {"context": 300, "max_answer_tokens": 60, **FIXED}
    nlp = make_nlp(tiny_llm, k=2, cfg=cfg)
    text, ents, at = "", [], 0
    for line, found in TRAIN * 4:
        ents += [(at + start, at + end, label) for start, end, label in found]
        text += line + "\n"
        at = len(text)
    data = [*TRAIN, (text, ents)]
    initialized(nlp, data)
    longest = [r for r in read_by(nlp, make_examples(nlp, data[-1:])) if "Here are some" not in r]
    assert len(longest) > 2
    before = state_of(nlp)
    assert nlp.update(make_examples(nlp, data[-1:]), sgd=make_sgd())["ra_it_ner"] > 0
    assert not same_state(before, state_of(nlp))


def test_nothing_is_made_of_nothing(trained):
    pipe = trained.get_pipe("ra_it_ner")
    assert pipe.predict([]) == [] and list(trained.pipe([])) == []
    assert pipe.update([]) == {"ra_it_ner": 0.0}
