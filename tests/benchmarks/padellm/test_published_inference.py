"""The published inference gives the same as the decoding engine, and the methods of the speed benchmark
run."""

import pytest
import spacy
from spacy.training import Example

from benchmarks.padellm.equivalence import as_strings, check_equivalence, decode_mentions
from benchmarks.padellm.forced_answers import OwnAnswers, force_gold_answers
from benchmarks.padellm.published_inference import (
    GreedyLoop,
    HFGenerate,
    left_padded,
    parse_count,
    published_mentions,
)
from benchmarks.padellm.speed import batch_methods, measure, methods, ratios, table
from spacy_llmner.padellm_ner.decoding import MentionDecodingSettings
from spacy_llmner.padellm_ner.templates import TEMPLATES, TemplateEncoder

TEXTS = [
    ("Ada Hale met Bo Lund in Bonn.", [(0, 8, "PER"), (13, 20, "PER"), (24, 28, "LOC")]),
    ("Nobody came.", []),
]


@pytest.fixture(scope="module", params=["compact", "published_en"])
def nlp(request, tiny_llm):
    """Trained a little: it finds mentions, but makes mistakes."""
    nlp = spacy.blank("en")
    model = {"@architectures": "spacy_llmner.PaDeLLM.v1", "template": request.param}
    nlp.add_pipe("padellm_ner", config={"llm": {"name": tiny_llm}, "model": model})
    egs = [Example.from_dict(nlp.make_doc(t), {"entities": e}) for t, e in TEXTS]
    spacy.util.fix_random_seed(0)
    optimizer = nlp.initialize(lambda: egs)
    optimizer.learn_rate = 0.01
    for _ in range(30):
        nlp.update(egs, sgd=optimizer)
    return nlp


def docs(nlp):
    return [nlp.make_doc(text) for text, _ in TEXTS] + [nlp.make_doc("Bo, Bo and Ada in Bern")]


def test_constrained_is_the_engine(nlp):
    pipe = nlp.get_pipe("padellm_ner")
    llm, view, prompt_encoder = pipe.adapted_llm()
    loop = GreedyLoop(llm, view)
    ours = decode_mentions(pipe, docs(nlp), MentionDecodingSettings())
    assert any(found for written in ours for found in written.values())
    for doc, written in zip(docs(nlp), ours):
        assert published_mentions(pipe, prompt_encoder, doc, loop, constrained=True) == as_strings(
            doc, written
        )


def test_generate_is_the_greedy_loop(nlp):
    pipe = nlp.get_pipe("padellm_ner")
    llm, view, prompt_encoder = pipe.adapted_llm()
    loop, generate = GreedyLoop(llm, view), HFGenerate(llm, view)
    for doc in docs(nlp):
        lean = published_mentions(pipe, prompt_encoder, doc, loop)
        assert published_mentions(pipe, prompt_encoder, doc, generate) == lean
    assert (loop.work.passes, loop.work.tokens) == (generate.work.passes, generate.work.tokens)


def test_forced_answers_take_the_steps_of_another_template(nlp):
    pipe = nlp.get_pipe("padellm_ner")
    llm, view, _ = pipe.adapted_llm()
    prompt_encoder = TemplateEncoder(TEMPLATES["published_en"], llm.tokenizer, {})
    doc = docs(nlp)[0]
    answers = OwnAnswers(pipe, prompt_encoder)(doc)
    loop = GreedyLoop(llm, view)
    strings = published_mentions(pipe, prompt_encoder, doc, loop, forced=answers)
    assert strings == as_strings(doc, decode_mentions(pipe, doc, pipe.decoding_settings)[0])
    written = [a for of_label in answers.values() for a in of_label]
    counts = [prompt_encoder.number(len(of_label)) for of_label in answers.values()]
    assert loop.work.passes == max(map(len, counts)) + max(map(len, written), default=0)


@pytest.mark.parametrize("factory", ["padellm_ner", "autoreg_ner"])
def test_untrained_components_write_forced_answers(factory, tiny_llm):
    nlp = spacy.blank("en")
    pipe = nlp.add_pipe(factory, config={"llm": {"name": tiny_llm}})
    egs = [Example.from_dict(nlp.make_doc(t), {"entities": e}) for t, e in TEXTS]
    nlp.initialize(lambda: egs)
    force_gold_answers(pipe, egs)
    for text, ents in TEXTS:
        assert [(e.start_char, e.end_char, e.label_) for e in nlp(text).ents] == ents


@pytest.mark.parametrize("factory", ["padellm_ner", "autoreg_ner"])
def test_forced_mention_of_many_words(factory, tiny_llm):
    """In the compact template, the count 1 and the question about mention 1 begin with the same tokens."""
    text = "On Monday the old Ada Hale, who had lived in the hills, wrote 1 letter. Nobody read it."
    nlp = spacy.blank("en")
    pipe = nlp.add_pipe(factory, config={"llm": {"name": tiny_llm}})
    eg = Example.from_dict(nlp.make_doc(text), {"entities": [(18, 26, "PER")]})
    nlp.initialize(lambda: [eg])
    force_gold_answers(pipe, [eg])
    assert [ent.text for ent in nlp(text).ents] == ["Ada Hale"]


@pytest.mark.parametrize(("template", "loss"), [("compact", "allowed"), ("published_en", "raw")])
def test_methods_of_the_speed_benchmark(template, loss, tiny_llm):
    """Each method runs, with its own answers and with gold answers. Speed-ups change nothing."""
    model = {"@architectures": "spacy_llmner.PaDeLLM.v1", "template": template, "loss": loss}
    nlp, ar_nlp = spacy.blank("en"), spacy.blank("en")
    config = {"llm": {"name": tiny_llm}, "max_mention_tokens": 8}
    pipe = nlp.add_pipe("padellm_ner", config={**config, "model": model})
    ar = ar_nlp.add_pipe("autoreg_ner", config={**config, "model": model})
    egs = [Example.from_dict(nlp.make_doc(t), {"entities": e}) for t, e in TEXTS]
    for one in (nlp, ar_nlp):
        one.initialize(lambda: egs)
    some = docs(nlp)[:2]
    exact = check_equivalence(pipe, ar, some, 1)
    assert exact["default = plain"] == exact["sentences"] == 2
    names = methods(pipe, ar, gold=False).keys()
    assert ("generate" in names) == (loss == "raw")
    batched = batch_methods(pipe, ar, gold=False)
    for ways in (names, batched):
        assert any("unconstrained" in name for name in ways) == (loss == "raw")
    for part in (methods(pipe, ar, gold=False), batched):
        measured = measure(part, [[doc] for doc in some], 1, pipe)
        assert all(row["passes"] > 0 for row in table(measured).values())
        assert "autoregressive" in ratios(measured, "ours")
    for component in (pipe, ar):
        force_gold_answers(component, egs)
    assert "generate" not in methods(pipe, ar, gold=True)


def test_padding_is_on_the_left():
    ids, mask = left_padded([[5, 6, 7], [8]], 1)
    assert ids.tolist() == [[5, 6, 7], [1, 1, 8]]
    assert mask.tolist() == [[1, 1, 1], [0, 0, 1]]


def test_counts(load, tiny_llm):
    prompt_encoder = TemplateEncoder(TEMPLATES["published_en"], load(tiny_llm).tokenizer, {})
    for n in (0, 3, 12, 120):
        answer = prompt_encoder.number(n)
        assert parse_count(prompt_encoder, answer, answer[-1:]) == n
    for text, n in (("many", 0), ("2 of them", 2), ("", 0)):
        assert (
            parse_count(
                prompt_encoder,
                [*prompt_encoder.encode(text), prompt_encoder.end],
                [prompt_encoder.end],
            )
            == n
        )
