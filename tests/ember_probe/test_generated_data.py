import pytest
import spacy
from spacy.tokens import Doc, DocBin, Span
from spacy.training import Example

from spacy_llmner.ember_probe.generated_data import continue_prompts, generate_examples, mask_prompt
from spacy_llmner.llm.registry import make_llm
from spacy_llmner.pipeline.gold import gold_mentions
from tests.ember_probe.helpers import TEXTS, make_nlp, make_sgd, same_state, state_of, train

PROMPTS = [*TEXTS, "Mira"]


@pytest.fixture
def annotator():
    """Everything that looks like a word is a THING."""
    nlp = spacy.blank("en")
    pattern = {"label": "THING", "pattern": [{"IS_ALPHA": True}]}
    nlp.add_pipe("entity_ruler").add_patterns([pattern])
    return nlp


@pytest.fixture
def llm(tiny_llm):
    return make_llm(tiny_llm, device="cpu")


def test_only_what_was_written_is_annotated(llm, annotator):
    examples = list(generate_examples(llm, PROMPTS, annotator, max_new_tokens=30))
    assert examples
    for eg in examples:
        prompt = next(p for p in reversed(PROMPTS) if eg.reference.text.startswith(p))
        assert len(eg.reference.text) > len(prompt)
        assert eg.predicted.text == eg.reference.text and not eg.predicted.ents
        for token in eg.reference:
            if token.idx < len(prompt):
                assert token.ent_iob == 0
        assert all(ent.start_char >= len(prompt) for ent in eg.reference.ents)
        entities, unknown = gold_mentions(eg)
        assert (0, 1) in unknown
        assert len(entities) == len(eg.reference.ents)
    assert any(eg.reference.ents for eg in examples)


def test_batched_is_alone(llm):
    loaded = llm.load()
    alone = [continue_prompts(loaded, [prompt], 12, 1.2)[0] for prompt in PROMPTS]
    assert continue_prompts(loaded, PROMPTS, 12, 1.2) == alone
    assert continue_prompts(loaded, [], 12, 1.2) == []


def test_greedy_with_penalty_as_transformers_does_it(llm):
    loaded = llm.load()
    ids = loaded.tokenizer.bos + loaded.tokenizer.encode(TEXTS[0]).ids
    import torch

    out = loaded.model.generate(
        input_ids=torch.tensor([ids]),
        attention_mask=torch.ones(1, len(ids)),
        max_new_tokens=10,
        do_sample=False,
        repetition_penalty=1.5,
    )
    text = loaded.tokenizer.hf.decode(out[0, len(ids) :], skip_special_tokens=True)
    written = continue_prompts(loaded, TEXTS[:1], 10, 1.5)[0]
    # A character that is cut is left out.
    assert written and text.startswith(written)


def test_prompts_without_room_are_left_out(llm, annotator):
    long = "Mira Stone " * llm.load().max_length
    assert continue_prompts(llm.load(), [long], 5, 1.2) == [""]
    assert list(generate_examples(llm, [long], annotator, max_new_tokens=5)) == []
    assert list(generate_examples(llm, [], annotator)) == []


def test_an_entity_across_the_border_is_not_known():
    nlp = spacy.blank("en")
    doc = nlp("Mira Stone met Oskar Blum")
    doc.ents = [Span(doc, 0, 2, label="PER"), Span(doc, 3, 5, label="PER")]
    masked = mask_prompt(doc, len("Mira"))
    assert [t.ent_iob for t in masked] == [0, 0, 2, 3, 1]
    assert [ent.text for ent in masked.ents] == ["Oskar Blum"]
    # A token that the prompt ends in belongs to it.
    assert [t.ent_iob for t in mask_prompt(doc, len("Mira Stone m"))][:3] == [0, 0, 0]
    assert all(t.ent_iob == 0 for t in mask_prompt(doc, len(doc.text)))


def test_docbin_keeps_what_is_not_known(llm, annotator, tmp_path):
    references = [eg.reference for eg in generate_examples(llm, PROMPTS, annotator)]
    DocBin(docs=references).to_disk(tmp_path / "x.spacy")
    again = list(DocBin().from_disk(tmp_path / "x.spacy").get_docs(annotator.vocab))
    for one, other in zip(references, again):
        assert [t.ent_iob for t in one] == [t.ent_iob for t in other]
        assert [t.ent_type_ for t in one] == [t.ent_type_ for t in other]


def test_update_learns_from_it(tiny_llm, annotator):
    nlp = make_nlp(tiny_llm, width=16)
    examples = list(generate_examples(nlp.get_pipe("ember_probe").llm, PROMPTS, annotator))
    nlp.initialize(lambda: examples)
    before = state_of(nlp)
    losses = nlp.update(examples, sgd=make_sgd())
    assert losses["ember_probe"] > 0
    assert not same_state(before, state_of(nlp))
    # The component's own LLM can be named by the component.
    written = generate_examples(nlp.get_pipe("ember_probe"), PROMPTS, annotator)
    assert [eg.reference.text for eg in written] == [eg.reference.text for eg in examples]


def test_masked_words_give_no_gradient(tiny_llm):
    nlp = train(make_nlp(tiny_llm, width=16), steps=1)
    ember = nlp.get_pipe("ember_probe")
    doc = nlp.make_doc(TEXTS[0])
    unknown = Doc(doc.vocab, [t.text for t in doc], [bool(t.whitespace_) for t in doc])
    unknown.set_ents([], missing=[unknown[:]], default="outside")
    batch = ember.predictor().batch([doc], ember.read([doc]))
    _, (gradient,) = ember.get_loss([Example(doc, unknown)], ember.module(batch))
    assert gradient.abs().max() == 0
