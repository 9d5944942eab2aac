"""Windows, labels, examples and answers."""

import json
import logging

import pytest
import spacy
from spacy.tokens import DocBin, Span

from spacy_llmner.cli.evaluate import evaluate
from spacy_llmner.decoding import engine as decoding
from spacy_llmner.errors import LLMNERError
from spacy_llmner.ra_it_ner import component
from spacy_llmner.ra_it_ner.decoding import ListDecodingSettings, ask_types
from tests.helpers import (
    TEXTS,
    assert_same,
    assert_valid,
    make_examples,
)
from tests.ra_it_ner.helpers import initialized, make_nlp, scrambled

UNSEEN = "Yesterday Mira Stone left Port Ellam ; nobody saw Oskar Blum. Then tea in Varnholm."


def test_long_text(trained, monkeypatch):
    """Windows end with sentences, and entities have the offsets of the whole text."""
    monkeypatch.setitem(trained.get_pipe("ra_it_ner").cfg, "list_threshold", 0.0)
    text = "\n".join(TEXTS * 8)
    doc = trained(text)
    assert_valid(doc, text)
    assert len(doc._.llmner_examples) > 1  # windows
    assert {ent.start * 4 // len(doc) for ent in doc.ents} == {0, 1, 2, 3}


def test_examples_are_cut_before_the_text(trained, monkeypatch):
    cfg = trained.get_pipe("ra_it_ner").cfg
    reasons = {}
    for context in (1024, 120):
        monkeypatch.setitem(cfg, "context", context)
        (reasons[context],) = trained(TEXTS[0])._.llmner_examples
    assert len(reasons[1024]["examples"]) == 1 and reasons[1024]["reason"] == "in-domain"
    assert reasons[120] == {"reason": "in-domain, cut", "examples": []}
    monkeypatch.setitem(cfg, "context", 20)
    told = r"no room for a text, since `context` is 20, of which 5 are.*Raise `context`.*reads at most 1024"
    with pytest.raises(LLMNERError, match=told):
        trained(TEXTS[0])


def test_an_llm_that_reads_too_little(tiny_llm, monkeypatch):
    """Raising `context` would not help."""
    nlp = make_nlp(tiny_llm, k=0, cfg={"labels": ["PER", "dis" + "like " * 300]})
    told = r"'dislike .*\.\.\.'.*no room for a text, since .* at most 1024 tokens, of which 256 are"
    with pytest.raises(LLMNERError, match=told):
        nlp(TEXTS[0])


def places(found):
    return [(span.start, span.end, span.label) for span in found.spans]


def test_what_all_texts_begin_with_is_read_once(wild, monkeypatch):
    """All texts of a batch begin with the same instruction."""
    made = []

    class Counted(decoding.DecodingEngine):
        def __init__(self, *args, **kwargs):
            super().__init__(*args, **kwargs)
            made.append(self)

    monkeypatch.setattr(component, "DecodingEngine", Counted)
    pipe = wild.get_pipe("ra_it_ner")
    together = pipe.predict(map(wild.make_doc, TEXTS))
    apart = [pipe.predict([wild.make_doc(text)])[0] for text in TEXTS]
    assert [places(found) for found in together] == [places(found) for found in apart]
    batch, *alone = made
    n = len(batch.prefix.ids)
    assert n > 1 and all(decoder.prefix is None for decoder in alone)
    assert batch.tokens == sum(decoder.tokens for decoder in alone) - n * (len(TEXTS) - 1)


@pytest.mark.parametrize("labels", [["PER", "LOC"], ["PER"], None])
def test_the_same_text_twice(wild, monkeypatch, labels):
    """The common prefix contains no part of the question about the first label."""
    pipe = wild.get_pipe("ra_it_ner")
    monkeypatch.setitem(pipe.cfg, "list_threshold", 0.0)

    def docs(n):
        made = [wild.make_doc(TEXTS[0]) for _ in range(n)]
        for doc in made[:2]:
            doc._.llmner_labels = labels
        return made

    one, two, three = ([places(found) for found in pipe.predict(docs(n))] for n in (1, 2, 3))
    assert one[0] and two == one * 2 and three[:2] == two
    assert three[2] == places(pipe.predict([wild.make_doc(TEXTS[0])])[0])


def test_half_is_greedy(wild, monkeypatch):
    """With list_threshold = 0.5, the answers are the same as with plain greedy decoding."""
    pipe = wild.get_pipe("ra_it_ner")
    monkeypatch.setitem(pipe.cfg, "list_threshold", 0.5)
    llm, view, prompt_encoder = pipe.adapted_llm()
    for text in TEXTS:
        doc = wild.make_doc(text)
        (passage,) = pipe._passages([doc], llm, prompt_encoder)
        request = pipe._request(prompt_encoder, passage, text, pipe._budget(llm))
        (answers,) = decoding.DecodingEngine(llm, view).run([request])
        for label in passage.labels:
            prompt = prompt_encoder.encode(passage.text, passage.selected.examples, label)
            assert (not answers[label]) == greedy_is_empty(wild, prompt, passage, text)


def greedy_is_empty(nlp, prompt, passage, text):
    from spacy_llmner.decoding.generate import decode
    from spacy_llmner.decoding.json_lists import TextLists

    llm, view, prompt_encoder = nlp.get_pipe("ra_it_ner").adapted_llm()
    rule = TextLists(llm.tokenizer, text, passage.bounds, prompt_encoder.end, ordered=True).rule

    def request(tree):
        root = tree.add(None, prompt[:-1])
        return (yield from decode(tree, root, prompt[-1:], rule, draft=0))

    (answer,) = decoding.DecodingEngine(llm, view).run([request])
    return not rule.spans(answer.state)


def test_the_context_goes_through_the_llm_once(trained, monkeypatch):
    """All types share examples and passage."""
    pipe = trained.get_pipe("ra_it_ner")
    llm, view, prompt_encoder = pipe.adapted_llm()
    labels = ["PER", "LOC", "plant", "planet", "river", "ship"]
    doc = trained.make_doc(TEXTS[0])
    monkeypatch.setitem(pipe.cfg, "labels", labels)
    monkeypatch.setitem(pipe.cfg, "use_examples", "always")
    (passage,) = pipe._passages([doc], llm, prompt_encoder)
    assert passage.selected.examples
    prompts = {x: prompt_encoder.encode(passage.text, passage.selected.examples, x) for x in labels}
    settings_ = ListDecodingSettings(list_threshold=1.0)  # ask, but write nothing
    decoder = decoding.DecodingEngine(llm, view)
    request = ask_types(prompt_encoder, prompts, doc.text, passage.bounds, settings_)
    assert decoder.run([request]) == [{label: [] for label in labels}]
    shared = len(prompt_encoder.encode(passage.text, passage.selected.examples, "PER")) - len(
        prompt_encoder.encode("", [], "PER")
    )
    tails = sum(len(ids) - shared for ids in prompts.values())
    assert decoder.tokens <= shared + tails < sum(map(len, prompts.values())) / 2
    assert decoder.passes == 1


def test_labels_of_one_document(wild):
    docs = [wild.make_doc(text) for text in TEXTS]
    docs[0]._.llmner_labels = ["ship", "river"]
    docs[1]._.llmner_labels = []
    out = list(wild.pipe(docs))
    assert {s.label_ for s in out[0].spans["llmner"]} <= {"ship", "river"}
    assert not out[1].ents
    for doc, text in zip(out[2:], TEXTS[2:]):
        assert_same(doc, wild(text))


def test_labels_of_a_document_are_evaluated(wild, tmp_path):
    """`llmner evaluate` asks each text for the labels that its annotators looked for."""
    wild.to_disk(tmp_path / "model")
    docs = [eg.reference for eg in make_examples(wild)]
    docs[0]._.llmner_labels = ["ship", "river"]
    DocBin(docs=docs, store_user_data=True).to_disk(tmp_path / "dev.spacy")
    first, second = evaluate(str(tmp_path / "model"), tmp_path / "dev.spacy").examples[:2]
    labels = {span.label_ for span in first.predicted.spans["llmner"]}
    assert labels and labels <= {"ship", "river"}
    assert_same(second.predicted, wild(TEXTS[1]))


def test_500_labels(tiny_llm):
    nlp = scrambled(initialized(make_nlp(tiny_llm)))
    pipe = nlp.get_pipe("ra_it_ner")
    pipe.set_labels([f"type {i}" for i in range(500)])
    doc = nlp(TEXTS[0])
    assert_valid(doc, TEXTS[0])
    assert len({s.label_ for s in doc.spans["llmner"]}) > 5


def test_labels_with_the_same_word(tiny_llm):
    nlp = make_nlp(tiny_llm, label_words={"PER": "person"})
    with pytest.raises(LLMNERError, match="a different word for each of PER, person"):
        nlp.get_pipe("ra_it_ner").set_labels(["PER", "person"])


def test_nothing_to_ask_for(tiny_llm):
    nlp = make_nlp(tiny_llm)
    with pytest.raises(LLMNERError, match=r"no labels to look for.*set_labels"):
        nlp("Some text")


def test_json_in_the_text(wild):
    text = json.dumps([{"Mira Stone": "PER"}, {"[Oskar]": 'a "b" \\'}])
    assert_valid(wild(text), text)


def test_policies_are_visible(trained, monkeypatch, caplog):
    """Three outcomes, and `doc._.llmner_examples` says which it was."""
    pipe = trained.get_pipe("ra_it_ner")
    outcomes = {}
    with caplog.at_level(logging.DEBUG, logger="spacy_llmner"):
        for policy in ("auto", "always", "never"):
            monkeypatch.setitem(pipe.cfg, "use_examples", policy)
            (outcomes[policy],) = trained(TEXTS[0])._.llmner_examples
    assert outcomes["auto"]["reason"] == "in-domain"
    assert outcomes["always"]["reason"] == "always"
    assert outcomes["never"] == {"reason": "never", "examples": []}
    (example,) = outcomes["always"]["examples"]
    assert set(example) == {"doc_id", "hash", "similarity"} and example["similarity"] < 1
    assert "1 examples for 'Mira Stone met Oskar Blum' (always)" in caplog.text
    monkeypatch.setitem(pipe.cfg, "use_examples", "auto")
    pipe_labels = pipe.labels
    try:
        pipe.set_labels(["ship"])
        (far,) = trained(TEXTS[0])._.llmner_examples
    finally:
        pipe.set_labels(pipe_labels)
    assert far == {"reason": "out-of-domain", "examples": []}


def test_no_text_is_its_own_example(trained):
    for text in TEXTS:
        doc = trained(text)
        hashes = {e.hash: e.text for e in trained.get_pipe("ra_it_ner").index.examples}
        for example in doc._.llmner_examples[0]["examples"]:
            assert hashes[example["hash"]] != text


def test_examples_added_later(trained, tmp_path):
    trained.to_disk(tmp_path)
    nlp = spacy.load(tmp_path)
    pipe = nlp.get_pipe("ra_it_ner")
    doc = nlp.make_doc("Mira Stone met Oskar Blum in Bonn.")
    doc.ents = [Span(doc, 6, 7, label="LOC")]
    before = len(pipe.index)
    assert pipe.add_examples([doc, doc]) == 1 and len(pipe.index) == before + 1
    (context,) = nlp(TEXTS[0])._.llmner_examples
    assert context["examples"][0]["hash"] == pipe.index.examples[-1].hash


def test_what_passes_no_gate_gives_the_plain_conversation(trained, monkeypatch):
    """As with use_examples = "never"."""
    pipe = trained.get_pipe("ra_it_ner")
    llm, _, prompt_encoder = pipe.adapted_llm()
    doc = trained.make_doc(TEXTS[0])
    monkeypatch.setitem(pipe.cfg, "labels", ["ship"])  # of another domain
    (gated,) = pipe._passages([doc], llm, prompt_encoder)
    monkeypatch.setitem(pipe.cfg, "use_examples", "never")
    (plain,) = pipe._passages([doc], llm, prompt_encoder)
    assert gated.selected.reason == "out-of-domain" and plain.selected.reason == "never"
    prompts = [prompt_encoder.encode(p.text, p.selected.examples, "ship") for p in (gated, plain)]
    assert prompts[0] == prompts[1] == prompt_encoder.encode(TEXTS[0], [], "ship")


def test_strings_without_a_place_are_dropped_and_counted(free, monkeypatch, caplog):
    monkeypatch.setattr("spacy_llmner.ra_it_ner.decoding.parse_list", lambda _: ["Tea", "Nowhere"])
    n_labels = len(free.get_pipe("ra_it_ner").labels)
    with caplog.at_level(logging.DEBUG, "spacy_llmner"):
        doc = free("Tea")
    assert {span.text for span in doc.spans["llmner"]} == {"Tea"}
    n = n_labels * 2
    assert (
        f"ra_it_ner: {n_labels} of {n} strings have no occurrence left in the text" in caplog.text
    )
