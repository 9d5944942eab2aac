"""ember_probe with `ask_llm`: the LLM chooses the labels of what the matcher found."""

import pytest
import spacy
import torch
from transformers import AutoModelForCausalLM

from spacy_llmner.ember_probe.matcher.answers import Question, answer_log_probs
from spacy_llmner.errors import LLMNERError

TEXT = "Ada Hale met Bo Lund in Bonn and saw apple in Port Ellam"
LABELS = ["person", "town", "fruit", "old place"]
ASK = {"ask_llm": True}
MENTIONS = {"mode": "mentions", "threshold": 0.2}


def found(doc):
    return [(ent.text, ent.label_, ent._.llmner_score) for ent in doc.ents]


def same(left, right):
    assert [ent[:2] for ent in left] == [ent[:2] for ent in right]
    assert [ent[2] for ent in left] == pytest.approx([ent[2] for ent in right], abs=1e-4)


@pytest.fixture
def llm(make):
    return make(LABELS).get_pipe("ember_probe").shared_llm()


def test_answers_have_the_probabilities_of_the_llm(llm, tiny_llm):
    phrases = ["person", "town", "old place", "old town"]
    questions = [Question("Bonn", phrases), Question("Bo Lund", phrases[:2])]
    found = answer_log_probs(llm, [(TEXT, questions)], 64)[0]
    assert [list(answers) for answers in found] == [phrases, phrases[:2]]
    model = AutoModelForCausalLM.from_pretrained(tiny_llm).eval()
    for question, answers in zip(questions, found):
        for phrase, log_prob in answers.items():
            mention = question.mention
            article = "an" if phrase.startswith("o") else "a"
            asked = f"\nQuestion: What is {mention}?\nAnswer: {mention} is"
            ids = [*llm.tokenizer.bos, *llm.tokenizer.encode(TEXT + asked).ids]
            answer = llm.tokenizer.encode(f" {article} {phrase}.").ids
            with torch.no_grad():
                logits = model(torch.tensor([[*ids, *answer]])).logits[0].log_softmax(-1)
            rows = range(len(ids) - 1, len(ids) - 1 + len(answer))
            expected = sum(float(logits[row, token]) for row, token in zip(rows, answer))
            assert log_prob == pytest.approx(expected, abs=1e-3)


def test_labels_change_but_not_how_probable_a_span_is(make):
    nlp, asked = make(LABELS, MENTIONS), make(LABELS, {**MENTIONS, **ASK})
    expected, ents = found(nlp(TEXT)), found(asked(TEXT))
    assert expected and [ent[0] for ent in ents] == [ent[0] for ent in expected]
    assert [ent[2] for ent in ents] == pytest.approx([ent[2] for ent in expected], abs=1e-4)


def test_answers_decide_between_labels(make, monkeypatch):
    # The LLM has random weights, so its answers are replaced.
    def answer(llm, jobs, max_batch_tokens):
        return [
            [
                {p: 0.0 if p == "fruit" and q.mention == "Bonn" else -99.0 for p in q.phrases}
                for q in qs
            ]
            for _, qs in jobs
        ]

    monkeypatch.setattr("spacy_llmner.ember_probe.matcher.answers.answer_log_probs", answer)
    labels = {ent.text: ent.label_ for ent in make(LABELS, {**MENTIONS, **ASK})(TEXT).ents}
    assert labels["Bonn"] == "fruit" and labels["Port Ellam"] == "town"


def test_batches_and_single_texts_are_the_same(make):
    nlp = make(LABELS, {"threshold": 0.1, **ASK})
    texts = [TEXT, "", "Mira Stone met plum", " ", TEXT + " and Rome"]
    for doc, text in zip(nlp.pipe(texts), texts):
        same(found(doc), found(nlp(text)))


def test_a_long_text(make):
    nlp = make(LABELS, {"threshold": 0.1, **ASK})
    doc = nlp(" ".join([TEXT] * 30))
    assert len(doc) > 256
    assert {ent.text for ent in doc.ents if ent.start > 256} >= {"Bonn"}


def test_a_text_with_more_tokens_than_the_llm_reads(llm):
    beginning = "x" * llm.max_length * 8
    texts = [f"{beginning} Bonn", f"{beginning} Rome Bonn"]
    jobs = [(text, [Question("Bonn", ["person", "town"])]) for text in texts]
    (first,), (second,) = answer_log_probs(llm, jobs, 64)
    assert first == pytest.approx(second, abs=1e-4)


def test_one_label_needs_no_question(make, monkeypatch):
    expected = found(make(["town"])(TEXT))
    monkeypatch.setattr("spacy_llmner.ember_probe.matcher.answers.answer_log_probs", None)
    same(found(make(["town"], ASK)(TEXT)), expected)


def test_synonyms_and_other_labels(make):
    nlp = make(LABELS, {**MENTIONS, **ASK}, label_words={"town": ["town", "city"]})
    expected = found(nlp(TEXT))
    ember = nlp.get_pipe("ember_probe")
    ember.set_labels(["fruit", "place"])
    assert {ent.label_ for ent in nlp(TEXT).ents} <= {"fruit", "place"}
    doc = nlp.make_doc(TEXT)
    doc._.llmner_labels = LABELS
    same(found(nlp(doc)), expected)


def test_saved_and_loaded(make, tmp_path):
    nlp = make(LABELS, {"threshold": 0.1, **ASK})
    expected = found(nlp(TEXT))
    nlp.to_disk(tmp_path / "pipeline")
    same(found(spacy.load(tmp_path / "pipeline")(TEXT)), expected)


def test_it_cannot_stream(make):
    ember = make(LABELS, ASK).get_pipe("ember_probe")
    for start in (ember.reader, ember.streams, lambda: ember.stream("Ada")):
        with pytest.raises(LLMNERError, match="ask_llm"):
            start()


def test_only_with_labels_in_words(tiny_llm):
    nlp = spacy.blank("en")
    model = {"@architectures": "spacy_llmner.EmberFewShot.v2"}
    with pytest.raises(LLMNERError, match="LLMNER149"):
        nlp.add_pipe("ember_probe", config={"llm": str(tiny_llm), "model": model, **ASK})
