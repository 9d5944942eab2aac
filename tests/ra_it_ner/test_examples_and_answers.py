"""Examples in training and in use, what an answer lists, and bad input."""

import pytest
import spacy
from spacy.tokens import Span
from spacy.training import Example

from spacy_llmner.errors import LLMMismatchError
from spacy_llmner.retrieval.index import ExampleIndex
from tests.helpers import (
    TEXTS,
    TRAIN,
    assert_same,
    assert_valid,
    make_examples,
    make_sgd,
    same_state,
    share_found,
    state_of,
)
from tests.ra_it_ner.helpers import ADA, BO, initialized, make_nlp, scrambled, train

UNSEEN = "Yesterday Mira Stone left Port Ellam ; nobody saw Oskar."
# No random numbers: the nearest examples are shown, and both labels are requested, or none.
FIXED = {"random_k": False, "negative_rate": 1.0, "least_negatives": 0}


def read_by(nlp, examples):
    """RETURNS (List[str]): The inputs of the LLM in training, text by text."""
    pipe = nlp.get_pipe("ra_it_ner")
    hf = pipe.shared_llm().tokenizer.hf
    return [hf.decode(packed.ids) for packed in pipe.make_training_batch(examples)]


def test_examples_of_an_earlier_corpus_are_gone(tiny_llm):
    """Initialization creates a new adapter and a new index of examples."""
    nlp = initialized(make_nlp(tiny_llm))
    first = state_of(nlp)
    nlp.update(make_examples(nlp), sgd=make_sgd())
    initialized(nlp, TRAIN[:3])
    assert same_state(first, state_of(nlp))
    assert [e.text for e in nlp.get_pipe("ra_it_ner").index.examples] == TEXTS[:3]


def test_of_two_that_begin_alike_the_longer_is_learnt(tiny_llm):
    """An ordered answer lists only one of several mentions that begin with the same word."""
    nlp = make_nlp(tiny_llm, k=0, cfg={"train_spans": "sc"})
    doc = nlp.make_doc("Port Ellam Club met in Port Ellam.")
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
    """An answer lists every mention, or each string once for all of its occurrences."""
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
    """Each occurrence of a listed string is found once. Batches change nothing."""
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
    """RETURNS (List[Tuple[int, int]]): All occurrences of a string, in tokens."""
    n = len(doc)
    runs = [(a, b) for a in range(n) for b in range(a + 1, n + 1)]
    return [(a, b) for a, b in runs if doc[a:b].text == string]


def shown(nlp, text=UNSEEN):
    """RETURNS (List[Tuple[str, float]]): The texts of the examples before a text, and their cosines."""
    texts = {e.hash: e.text for e in nlp.get_pipe("ra_it_ner").index.examples}
    (context,) = nlp(text)._.llmner_examples
    return [(texts[e["hash"]], e["similarity"]) for e in context["examples"]]


@pytest.mark.parametrize("kind", ["random", "mixed", "diverse", "bm25_rank"])
def test_kinds_of_retrieval(tiny_llm, kind, tmp_path):
    """The examples of a text depend only on the text, even if they are random."""
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
    """Then training and prediction are the same as without examples."""
    retrieval = {"gate": gate, "threshold": lowest}
    nlp = initialized(make_nlp(tiny_llm, k=2, retrieval=retrieval, cfg=FIXED))
    assert nlp(UNSEEN)._.llmner_examples == [{"reason": "in-domain", "examples": []}]
    plain = initialized(make_nlp(tiny_llm, k=0, cfg=FIXED))
    for one, other in zip(nlp.pipe(TEXTS), plain.pipe(TEXTS)):
        assert_same(one, other)
    for nlp_ in (nlp, plain):
        assert not any("Here are some examples" in r for r in read_by(nlp_, make_examples(nlp_)))
    examples = make_examples(nlp)
    losses = [n.update(examples, sgd=None)["ra_it_ner"] for n in (nlp, plain)]
    assert losses[0] == pytest.approx(losses[1])


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


def test_chinese_prompts(tiny_llm):
    """With the published wording."""
    data = [("林小燕在成都住。", [(0, 3, "PER"), (4, 6, "LOC")])]
    words = {"PER": "人名", "LOC": "地点"}
    settings = {"conversation": "published_zh", "label_words": words, "system": ""}
    nlp = initialized(make_nlp(tiny_llm, lang="zh", cfg={"negative_rate": 1.0}, **settings), data)
    read = read_by(nlp, make_examples(nlp, data))[0]
    assert '文本中属于"人名"的实体有哪些？' in read and '["林小燕"]' in read
    assert "\\u" not in read and "PER" not in read


def test_pool_of_another_encoder(tiny_llm, other_llm, tmp_path):
    """Training raises an error that names both encoders."""
    index = ExampleIndex(make_nlp(other_llm).get_pipe("ra_it_ner").encoder)
    index.add([BO, ADA])
    index.to_disk(tmp_path)
    nlp = make_with_pool(tiny_llm, tmp_path)
    with pytest.raises(LLMMismatchError, match="built with the encoder .*other.*is searched with"):
        initialized(nlp)
    # Of the same LLM, but another layer.
    index = ExampleIndex(nlp.get_pipe("ra_it_ner").encoder)
    index.encoder.layer = 1
    index.add([BO, ADA])
    index.to_disk(tmp_path)
    with pytest.raises(LLMMismatchError, match=r"\(layer 1\)"):
        initialized(make_with_pool(tiny_llm, tmp_path))


def test_training_texts_encoded_by_another_encoder(tiny_llm, other_llm, tmp_path):
    """There is an error, although nothing would be added to such a pool."""
    index = initialized(make_nlp(other_llm)).get_pipe("ra_it_ner").index
    index.to_disk(tmp_path)
    nlp = make_with_pool(tiny_llm, tmp_path)
    with pytest.raises(LLMMismatchError, match="built with the encoder"):
        initialized(nlp)


def make_with_pool(llm, path):
    nlp = make_nlp(llm)
    nlp.config["initialize"]["components"]["ra_it_ner"] = {"pool": str(path)}
    return nlp


def test_a_long_text_whose_examples_are_cut(trained, monkeypatch):
    """Long windows leave no room for examples. A short last window keeps its examples."""
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
    """Every window is used in training, although there is no room for examples."""
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
