"""Training texts, loss masks, and sizes of conversations."""

import copy
import random
import warnings

import pytest
import spacy
import torch

from spacy_llmner.errors import LLMNERError
from spacy_llmner.ra_it_ner.decoding import ask_types
from spacy_llmner.ra_it_ner.prompts import Passage
from spacy_llmner.ra_it_ner.training_data import training_sequences
from tests.helpers import TEXTS, make_examples, make_sgd
from tests.ra_it_ner.helpers import initialized, make_nlp, scrambled

UNSEEN = "Yesterday Mira Stone left Port Ellam ; nobody saw Oskar."


def test_what_labels_are_called_is_open(tiny_llm, tmp_path):
    """Any word can be a label, even after loading."""
    nlp = initialized(make_nlp(tiny_llm, k=0, label_words={"PER": "person"}))
    nlp.to_disk(tmp_path)
    words = {"components.ra_it_ner.model.label_words.PER": "name"}
    again = spacy.load(tmp_path, config=words)
    assert again.get_pipe("ra_it_ner").settings.label_words == {"PER": "name"}


def test_loss_of_held_out_texts_falls(tiny_llm):
    """The loss of texts that it was not trained on falls."""
    held_out = [("Oskar Blum sings in Port Ellam.", [(0, 10, "PER"), (20, 30, "LOC")])]
    nlp = initialized(make_nlp(tiny_llm, cfg={"random_k": False, "negative_rate": 1.0}))
    losses = [nlp.update(make_examples(nlp, held_out), sgd=None, losses={})["ra_it_ner"]]
    nlp.get_pipe("ra_it_ner").module.zero_grad()
    sgd = make_sgd(0.01, grad_clip=1.0)
    for _ in range(15):
        nlp.update(make_examples(nlp), sgd=sgd)
    losses.append(nlp.update(make_examples(nlp, held_out), sgd=None, losses={})["ra_it_ner"])
    assert losses[1] < 0.8 * losses[0]


def test_merged_weights_are_equivalent(tiny_llm, load):
    """LoRA merged into the weights gives the same hidden states."""
    nlp = scrambled(initialized(make_nlp(tiny_llm)))
    pipe = nlp.get_pipe("ra_it_ner")
    llm, view, _ = pipe.adapted_llm()
    merged = copy.deepcopy(llm.decoder)
    scale = pipe.settings.adapter.alpha / pipe.settings.adapter.rank
    tensors = {k.replace("/", "."): v for k, v in pipe.module.state_dict().items()}
    for name, a in tensors.items():
        if ".lora_A." in name:
            b = tensors[name.replace(".lora_A.", ".lora_B.")]
            merged.get_submodule(name.split(".lora_A.")[0]).weight.data += scale * b @ a
    ids = torch.tensor([[5, 9, 30, 41, 7]])
    with torch.no_grad():
        one, other = (model(input_ids=ids).last_hidden_state for model in (view, merged))
    assert torch.allclose(one, other, atol=1e-4)
    assert not torch.allclose(one, llm.decoder(input_ids=ids).last_hidden_state, atol=1e-2)


@pytest.mark.parametrize("learn", [False, True])
def test_loss_mask(tiny_llm, learn):
    """The user's turns are not learnt, acknowledgements only with `learn_acknowledgements`."""
    nlp = initialized(make_nlp(tiny_llm, learn_acknowledgements=learn, notation="json"))
    pipe = nlp.get_pipe("ra_it_ner")
    hf = pipe.shared_llm().tokenizer.hf
    learnt = "".join(
        hf.decode(packed.targets.tolist(), skip_special_tokens=False)
        for packed in pipe.make_training_batch(make_examples(nlp))
    )
    assert "Stone" in learnt and '["' in learnt and "[]" in learnt and "<|im_end|>" in learnt
    assert "What describes" not in learnt and "river near" not in learnt
    assert ("read this text" in learnt) is learn


def test_absent_types_have_an_empty_answer(tiny_llm):
    """Others are answered in the order of the text."""
    nlp = initialized(make_nlp(tiny_llm, k=0))
    pipe = nlp.get_pipe("ra_it_ner")
    llm, _, prompt_encoder = pipe.adapted_llm()
    doc = nlp.make_doc("Oskar Blum met Ada in Rome.")
    (window,) = pipe.text_windows(doc)
    passage = Passage(0, window.words, doc.text, ["PER", "ship", "award"])
    mentions = {"PER": [(3, 4), (0, 2)]}
    learnt = training_sequences(prompt_encoder, passage, doc.text, mentions, pipe.settings)
    answers = [
        llm.tokenizer.hf.decode(
            [t for t, learn in zip(x.ids, x.loss) if learn], skip_special_tokens=True
        )
        for x in learnt
    ]
    assert [answer.strip() for answer in answers] == ['["Oskar Blum", "Ada"]', "[]", "[]"]


def test_random_k(tiny_llm):
    nlp = initialized(make_nlp(tiny_llm, k=2))
    pipe = nlp.get_pipe("ra_it_ner")
    sizes = {len(p) for _ in range(8) for p in pipe.make_training_batch(make_examples(nlp)[:1])}
    pipe.cfg["random_k"] = False
    pipe.cfg["negative_rate"] = 0.0
    fixed = {len(p) for _ in range(4) for p in pipe.make_training_batch(make_examples(nlp)[:1])}
    assert len(sizes) > 2 and len(fixed) == 1


def test_many_label_sets(tiny_llm):
    """If a Doc lists the labels that its annotators looked for, others are never assumed to be absent."""
    nlp = make_nlp(tiny_llm)
    examples = make_examples(nlp)
    for eg in examples[:3]:
        eg.reference._.llmner_labels = ["PER"]
    random.seed(0)
    nlp.initialize(lambda: examples)
    pipe = nlp.get_pipe("ra_it_ner")
    pipe.cfg["negative_rate"] = 1.0
    hf = pipe.shared_llm().tokenizer.hf
    for _ in range(10):
        for packed in pipe.make_training_batch([examples[1]]):  # has a PER only
            assert "LOC" not in hf.decode(packed.ids[-12:])


def test_labels_in_training(tiny_llm):
    nlp = make_nlp(tiny_llm, cfg={"labels": ["PER", "ship"]})
    initialized(nlp)
    pipe = nlp.get_pipe("ra_it_ner")
    assert pipe.labels == ("PER", "ship")
    assert pipe.cfg["frequencies"] == {"LOC": 4, "PER": 4}


def test_labels_of_a_doc_that_cannot_be_encoded(tiny_llm):
    match = r"`labels` of 'ra_it_ner' is \[.*'\\ud800'\], but must be words that UTF-8 can encode"
    nlp = make_nlp(tiny_llm, cfg={"labels": ["ship"]})
    pipe = nlp.get_pipe("ra_it_ner")
    doc = nlp.make_doc("Some text")
    doc._.llmner_labels = ["\ud800"]
    with pytest.raises(LLMNERError, match=match):
        pipe(doc)


def test_answers_stay_within_the_context(wild, monkeypatch):
    pipe = wild.get_pipe("ra_it_ner")
    monkeypatch.setitem(pipe.cfg, "context", 500)
    monkeypatch.setitem(pipe.cfg, "max_answer_tokens", 4000)
    longest = []

    def watched(prompt_encoder, prompts, text, bounds, settings):
        longest.append(max(map(len, prompts.values())) + settings.max_tokens)
        return ask_types(prompt_encoder, prompts, text, bounds, settings)

    monkeypatch.setattr("spacy_llmner.ra_it_ner.component.ask_types", watched)
    list(wild.pipe([*TEXTS, UNSEEN * 8]))
    assert set(longest) == {500}


def test_learnt_answers_stay_within_the_context(tiny_models):
    """GPT-2 has no more positions, so a list of many names is cut."""
    nlp = make_nlp(tiny_models["gpt2"], k=0)
    names = ", ".join(["Oskar Blum"] * 30)
    places = [(at, at + 10, "PER") for at in range(0, len(names), 12)]
    pipe = initialized(nlp, [(names, places)]).get_pipe("ra_it_ner")
    reads = pipe.shared_llm().max_length
    packed = pipe.make_training_batch(make_examples(nlp, [(names, places)]))
    assert max(int(p.positions.max()) for p in packed) == reads - 2  # the last is only a target
    assert nlp.update(make_examples(nlp, [(names, places)]), sgd=make_sgd(0.001))["ra_it_ner"] > 0


def test_what_the_llm_has_read_is_learnt_once(tiny_llm):
    """It is learned once, not once for each type."""
    weights = {}
    for learn in (False, True):
        nlp = make_nlp(tiny_llm, k=0, cfg={"negative_rate": 1.0}, learn_acknowledgements=learn)
        pipe = initialized(nlp).get_pipe("ra_it_ner")
        (packed,) = pipe.make_training_batch([make_examples(nlp)[1]])
        weights[learn] = float(packed.weights.sum())
    read = "I've read this text."
    tokens = len(pipe.shared_llm().tokenizer.encode(read))
    assert tokens <= weights[True] - weights[False] <= tokens + 3  # the turn's end


def test_labels_of_a_training_doc_are_checked(tiny_llm):
    nlp = initialized(make_nlp(tiny_llm))
    examples = make_examples(nlp)
    examples[0].reference._.llmner_labels = "PER"
    with pytest.raises(LLMNERError, match="`labels` of 'ra_it_ner' is .*a list of words"):
        nlp.update(examples)


def test_an_untrained_component_warns_once(roomy_llm):
    """Without an adapter, an LLM lists strings that are not entities."""
    nlp = make_nlp(roomy_llm, cfg={"max_answer_tokens": 8})
    nlp.get_pipe("ra_it_ner").set_labels(["PER"])
    with pytest.warns(
        UserWarning, match="'ra_it_ner' is not trained, .* with python -m spacy train"
    ):
        nlp(TEXTS[0])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        list(nlp.pipe(TEXTS[:2]))
        nlp = scrambled(initialized(make_nlp(roomy_llm, cfg={"max_answer_tokens": 8})))
        nlp(TEXTS[0])
