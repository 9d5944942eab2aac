"""The examples of a component: their sources, when they help, and examples from long documents."""

import copy

import pytest
import spacy
import srsly
from spacy.tokens import Span
from spacy.training import Example

from spacy_llmner.cli.index import build_index
from spacy_llmner.errors import LLMMismatchError, LLMNERError
from spacy_llmner.retrieval.examples import LabelledText
from spacy_llmner.retrieval.index import ExampleIndex
from tests.helpers import TEXTS, TRAIN, make_examples
from tests.ra_it_ner.helpers import ADA, BO, initialized, make_nlp


def test_index_of_another_encoder_is_refused(trained, other_llm, tmp_path):
    trained.to_disk(tmp_path)
    moved = {"components.ra_it_ner.encoder.llm.name": other_llm}
    nlp = spacy.load(tmp_path, config=moved)
    with pytest.raises(LLMMismatchError, match="encode"):
        nlp(TEXTS[0])


def test_broken_examples_of_a_saved_pipeline(trained, tmp_path):
    """`spacy llmner index` can't mend them."""
    trained.to_disk(tmp_path)
    path = tmp_path / "ra_it_ner" / "pool" / "vectors.safetensors"
    path.write_bytes(path.read_bytes()[:50])
    with pytest.raises(LLMNERError, match="load the pool .*/pool .*SafetensorError") as raised:
        spacy.load(tmp_path)
    assert "nlp.to_disk" in str(raised.value) and "llmner index" not in str(raised.value)


def test_pool_from_a_folder(tiny_llm, trained, tmp_path):
    index = ExampleIndex(trained.get_pipe("ra_it_ner").encoder)
    index.add([BO, ADA])
    index.to_disk(tmp_path)
    nlp = make_nlp(tiny_llm)
    nlp.config["initialize"]["components"]["ra_it_ner"] = {"pool": str(tmp_path)}
    initialized(nlp)
    examples = nlp.get_pipe("ra_it_ner").index.examples
    assert len(examples) == 2 + len(TRAIN) and BO in examples


def test_long_texts_of_a_pool_are_shown(tiny_llm, trained, tmp_path):
    """`spacy llmner index` splits them into parts. No part is an example for its own text."""
    corpus, sentence = tmp_path / "corpus.jsonl", "Bo is in Bern now. "
    text = "".join(f"{number} {sentence}" for number in range(100))
    srsly.write_jsonl(corpus, [{"text": text, "spans": [{"start": 2, "end": 4, "label": "PER"}]}])
    build_index(corpus, tmp_path / "index", llm=tiny_llm, device="cpu")
    nlp = make_nlp(tiny_llm, cfg={"labels": ["PER"], "use_examples": "always", "window": 64})
    pipe = nlp.get_pipe("ra_it_ner")
    pipe.set_index(pipe.index.from_disk(tmp_path / "index"))
    (context,) = nlp(TEXTS[0])._.llmner_examples
    assert context["reason"] == "always" and len(context["examples"]) == 1
    assert {c["reason"] for c in nlp(text)._.llmner_examples} == {"always"}
    assert not any(c["examples"] for c in nlp(text)._.llmner_examples)


def test_without_examples_nothing_is_indexed(vanilla):
    pipe = vanilla.get_pipe("ra_it_ner")
    assert len(pipe.index) == 0
    assert vanilla(TEXTS[0])._.llmner_examples == [{"reason": "no examples", "examples": []}]


def test_calibrate(wild, monkeypatch):
    pipe = wild.get_pipe("ra_it_ner")
    monkeypatch.setitem(pipe.cfg, "example_threshold", None)
    threshold = pipe.calibrate(make_examples(wild))
    assert threshold == pipe.cfg["example_threshold"] and pipe.cfg["use_examples"] == "auto"
    (context,) = wild(TEXTS[0])._.llmner_examples
    assert context["reason"] == "threshold"
    assert max([e["similarity"] for e in context["examples"]], default=1.0) >= threshold


def test_calibrate_needs_texts_with_entities(wild, monkeypatch):
    pipe = wild.get_pipe("ra_it_ner")
    monkeypatch.setitem(pipe.cfg, "example_threshold", None)
    bare = [Example(wild.make_doc(text), wild.make_doc(text)) for text in TEXTS[:2]]
    for examples, counts in (
        ([], "of 0 texts, 0 are annotated and 0 have an entity"),
        (bare, "of 2 texts, 0 are annotated and 0 have an entity"),
        ([*bare, *make_examples(wild, TRAIN[3:4])], "of 3 texts, 1 are annotated and 0 have an en"),
    ):
        with pytest.raises(LLMNERError, match=f"'ra_it_ner' can't be calibrated.*{counts}"):
            pipe.calibrate(examples)
    assert pipe.cfg["example_threshold"] is None
    found = pipe.calibrate([*bare, *make_examples(wild)])
    assert found == pipe.calibrate(make_examples(wild))  # what is not annotated does not count


def test_calibrate_needs_examples(wild, vanilla, monkeypatch):
    monkeypatch.setattr(wild.get_pipe("ra_it_ner"), "index", ExampleIndex(None))
    for nlp, has in ((wild, "0 examples and retrieval.k = 2"), (vanilla, "0 .*retrieval.k = 0")):
        pipe = nlp.get_pipe("ra_it_ner")
        with pytest.raises(LLMNERError, match=f"'ra_it_ner' can't be calibrated.*{has}.*add_exa"):
            pipe.calibrate(make_examples(nlp))
        assert pipe.cfg["example_threshold"] is None and pipe.cfg["use_examples"] == "auto"


def test_calibrate_reads_in_batches(wild, monkeypatch):
    pipe = wild.get_pipe("ra_it_ner")
    monkeypatch.setitem(pipe.cfg, "example_threshold", None)
    monkeypatch.setattr("spacy_llmner.ra_it_ner.example_pipe.CALIBRATION_BATCH", 4)
    at_once, predict = [], pipe.predict
    monkeypatch.setattr(pipe, "predict", lambda docs: at_once.append(len(docs)) or predict(docs))
    pipe.calibrate(make_examples(wild))
    assert at_once == [4, 2, 4, 2]


SENTENCES = [
    "Mira Stone met Oskar Blum in Varnholm.",
    "They sang on the bridge near Port Ellam.",
    "Then Oskar Blum went home to Varnholm.",
]


def long_doc(nlp):
    """A Doc of three windows of one sentence each."""
    doc = nlp.make_doc(" ".join(SENTENCES))
    names = [("Mira Stone", "PER"), ("Oskar Blum", "PER"), ("Port Ellam", "LOC")]
    found = [(doc.text.index(name), name, label) for name, label in names]
    found.append((doc.text.rindex("Varnholm"), "Varnholm", "LOC"))
    doc.set_ents([doc.char_span(at, at + len(name), label=label) for at, name, label in found])
    return doc


def test_long_docs_are_examples_window_by_window(tiny_llm):
    """No window is an example for another window of the same Doc, neither in training nor later."""
    nlp = make_nlp(tiny_llm, k=3, cfg={"window": 44, "random_k": False, "use_examples": "always"})
    doc = long_doc(nlp)
    data = [
        *TRAIN,
        (doc.text, [(e.start_char, e.end_char, e.label_) for e in doc.ents]),
    ]
    initialized(nlp, data)
    pipe = nlp.get_pipe("ra_it_ner")
    parts = [e for e in pipe.index.examples if e.doc_id == LabelledText(data[-1][0]).hash]
    assert [p.text for p in parts] == SENTENCES
    assert [[p.text[a:b] for a, b, _ in p.entities] for p in parts] == [
        ["Mira Stone", "Oskar Blum"],
        ["Port Ellam"],
        ["Varnholm"],
    ]
    hf = pipe.shared_llm().tokenizer.hf
    for packed in pipe.make_training_batch([make_examples(nlp, data)[-1]]):
        read = hf.decode(packed.ids)
        assert sum(read.count(sentence) for sentence in SENTENCES) == 1
    for context in nlp(data[-1][0])._.llmner_examples:
        assert len(context["examples"]) == 3
        assert all(e["doc_id"] != parts[0].doc_id for e in context["examples"])


def test_a_training_text_in_the_pool_is_not_its_own_example(tiny_llm, tmp_path):
    """This is true although `spacy llmner index` stores names of files, not of Docs."""
    nlp = make_nlp(tiny_llm, k=3, cfg={"window": 44, "random_k": False})
    doc = long_doc(nlp)
    index = ExampleIndex(nlp.get_pipe("ra_it_ner").encoder)
    index.add([LabelledText(doc.text, (), "corpus.spacy:7")])
    index.to_disk(tmp_path)
    nlp.config["initialize"]["components"]["ra_it_ner"] = {"pool": str(tmp_path)}
    data = [(doc.text, [(e.start_char, e.end_char, e.label_) for e in doc.ents])]
    initialized(nlp, data)
    pipe = nlp.get_pipe("ra_it_ner")
    hf = pipe.shared_llm().tokenizer.hf
    for packed in pipe.make_training_batch(make_examples(nlp, data)):
        assert sum(hf.decode(packed.ids).count(sentence) for sentence in SENTENCES) == 1


def test_unannotated_docs_are_no_examples(trained):
    """Otherwise they would be shown as texts without entities."""
    pipe = copy.deepcopy(trained.get_pipe("ra_it_ner"))
    assert pipe.add_examples([trained.make_doc("Bo sang in Bern.")]) == 0
    part = trained.make_doc("Bo sang in Bern.")
    part.set_ents([Span(part, 0, 1, label="PER")], default="missing")
    assert pipe.add_examples([part]) == 0
    part.set_ents([Span(part, 0, 1, label="PER")])
    assert pipe.add_examples([part, part]) == 1
    assert pipe.index.examples[-1].entities == ((0, 2, "PER"),)


def test_what_is_no_annotated_doc(trained):
    pipe = copy.deepcopy(trained.get_pipe("ra_it_ner"))
    (eg,) = make_examples(trained, TRAIN[:1])
    given = {"str": "Bo sang", "Example": eg, "tuple": TRAIN[0]}
    for kind, thing in given.items():
        told = f"add_examples.. of 'ra_it_ner' takes annotated Docs.* a {kind}: .*set_ents"
        with pytest.raises(LLMNERError, match=told):
            pipe.add_examples([eg.reference, thing])
    with pytest.raises(LLMNERError, match="annotated Docs"):
        pipe.add_examples("Bo sang")
    assert len(pipe.index) == len(TRAIN)
    with pytest.raises(TypeError, match="Example objects"):
        pipe.calibrate(["Bo sang"])
