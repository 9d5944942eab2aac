"""Train, save, load, and settings that make no sense."""

import copy
import pickle
import random
import subprocess
import sys

import pytest
import spacy
import torch
from spacy.training import Example

from spacy_llmner.errors import LLMMismatchError, LLMNERError, LLMNotFoundError
from spacy_llmner.llm import registry as pool
from spacy_llmner.ra_it_ner.decoding import ask_types
from spacy_llmner.ra_it_ner.prompts import Passage
from spacy_llmner.ra_it_ner.training_data import training_sequences
from tests.helpers import TEXTS, TRAIN, assert_same, make_examples, make_sgd, same_state, state_of
from tests.ra_it_ner.helpers import initialized, make_nlp, scrambled, train

UNSEEN = "Yesterday Mira Stone left Port Ellam ; nobody saw Oskar."


def assert_same_answers(one, other, tolerance=1e-5):
    for a, b in zip(one.pipe([*TEXTS, UNSEEN]), other.pipe([*TEXTS, UNSEEN])):
        assert_same(a, b, tolerance)
        assert a._.llmner_examples == b._.llmner_examples


def test_IO(trained, tmp_path):
    """Checklist 15 too: a saved index finds the same examples."""
    trained.to_disk(tmp_path)
    loaded = spacy.load(tmp_path)
    assert_same_answers(trained, loaded)
    assert loaded.get_pipe("ra_it_ner").labels == ("LOC", "PER")
    fresh = spacy.util.load_model_from_config(trained.config)
    fresh.from_bytes(trained.to_bytes())
    assert_same_answers(trained, fresh)
    assert same_state(state_of(fresh), state_of(loaded))
    assert_same_answers(trained, pickle.loads(pickle.dumps(trained)))
    copied = copy.deepcopy(trained.get_pipe("ra_it_ner"))
    assert copied.labels == ("LOC", "PER") and len(copied.index) == len(TRAIN)


def test_loading_reads_no_llm(trained, tmp_path):
    trained.to_disk(tmp_path)
    pool.clear()
    nlp = spacy.load(tmp_path)
    nlp.to_bytes()
    assert pool.loaded() == []
    nlp(TEXTS[0])
    assert len(pool.loaded()) == 1  # the encoder shares it


def test_other_llm_is_refused(trained, other_llm, tmp_path):
    trained.to_disk(tmp_path)
    nlp = spacy.load(tmp_path, config={"components.ra_it_ner.llm.name": other_llm})
    with pytest.raises(LLMMismatchError, match="'ra_it_ner' was trained on the LLM.*paths.llm"):
        nlp(TEXTS[0])


@pytest.mark.parametrize(
    "setting,value,match",
    [
        ("alpha", 64, "alpha = 16, but its model is given 64"),
        ("conversation", "published_zh", "conversation.examples = 'Here are.*given '以下"),
        ("system", "Be good.", "system = None, but its model is given 'Be good.'"),
        ("occurrences", "all", "occurrences = 'ordered', but its model is given 'all'"),
    ],
)
def test_what_was_trained_fits_one_model_only(tiny_llm, tmp_path, setting, value, match):
    initialized(make_nlp(tiny_llm, k=0)).to_disk(tmp_path)
    with pytest.raises(LLMNERError, match=f"'ra_it_ner' was trained with {match}.*leave out"):
        spacy.load(tmp_path, config={f"components.ra_it_ner.model.{setting}": value})


def test_what_labels_are_called_is_open(tiny_llm, tmp_path):
    """Also when it is loaded; and without training there is nothing that a model must fit."""
    nlp = initialized(make_nlp(tiny_llm, k=0, label_words={"PER": "person"}))
    nlp.to_disk(tmp_path / "trained")
    words = {"components.ra_it_ner.model.label_words.PER": "name"}
    again = spacy.load(tmp_path / "trained", config=words)
    assert again.get_pipe("ra_it_ner").settings.label_words == {"PER": "name"}
    make_nlp(tiny_llm, k=0).to_disk(tmp_path / "untrained")
    spacy.load(tmp_path / "untrained", config={"components.ra_it_ner.model.alpha": 64})


def test_source(trained):
    nlp = spacy.blank("en")
    nlp.add_pipe("ra_it_ner", source=trained)
    assert_same_answers(trained, nlp)


def test_update_moves_the_adapter_only(tiny_llm):
    nlp = initialized(make_nlp(tiny_llm))
    pipe = nlp.get_pipe("ra_it_ner")
    base = {k: v.clone() for k, v in pipe.shared_llm().model.state_dict().items()}
    before, first = state_of(nlp), {}
    random.seed(0)
    sgd = make_sgd(0.01, grad_clip=1.0)
    nlp.update(make_examples(nlp), sgd=sgd, losses=first)
    for _ in range(15):
        last = nlp.update(make_examples(nlp), sgd=sgd, losses={})
    assert last["ra_it_ner"] < 0.7 * first["ra_it_ner"]
    assert not same_state(before, state_of(nlp))
    assert all(torch.equal(v, base[k]) for k, v in pipe.shared_llm().model.state_dict().items())


def test_what_was_held_out_is_learnt_too(tiny_llm):
    """Checklist 9: the loss of texts that it was not tuned on falls."""
    held_out = [("Oskar Blum sings in Port Ellam.", [(0, 10, "PER"), (20, 30, "LOC")])]
    nlp = initialized(make_nlp(tiny_llm, cfg={"random_k": False, "negative_rate": 1.0}))
    losses = [nlp.update(make_examples(nlp, held_out), sgd=None, losses={})["ra_it_ner"]]
    nlp.get_pipe("ra_it_ner").module.zero_grad()
    sgd = make_sgd(0.01, grad_clip=1.0)
    for _ in range(15):
        nlp.update(make_examples(nlp), sgd=sgd)
    losses.append(nlp.update(make_examples(nlp, held_out), sgd=None, losses={})["ra_it_ner"])
    assert losses[1] < 0.8 * losses[0]


def test_a_seed_repeats_training(tiny_llm):
    one, other = (train(make_nlp(tiny_llm), steps=3) for _ in range(2))
    assert same_state(state_of(one), state_of(other))


def test_merged_weights_say_the_same(tiny_llm, load):
    """Checklist 9: LoRA merged into the weights gives the same states."""
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
    """Checklist 8: what the user says is not learnt, what the LLM has read only if asked for."""
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


def test_types_that_a_text_has_not_are_answered_by_nothing(tiny_llm):
    """Checklist 6, and that the others are answered in the order of the text."""
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
    """A Doc may say which labels its annotators knew; others are never taken for absent."""
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


@pytest.mark.parametrize(
    ("setting", "value", "must"),
    [
        ("use_examples", "sometimes", "one of auto, always, never"),
        ("list_threshold", 1.5, "between 0 and 1"),
        ("negative_rate", -0.1, "between 0 and 1"),
        ("window", 0, "positive"),
        ("context", 0, "positive"),
        ("max_batch_tokens", 0, "positive"),
        ("least_negatives", -1, "0 or more"),
        ("example_threshold", 1.5, "a cosine, from -1 to 1"),
    ],
)
def test_settings_without_sense(tiny_llm, setting, value, must):
    with pytest.raises(LLMNERError, match=f"`{setting}` of 'ra_it_ner' is .*{must}"):
        make_nlp(tiny_llm, cfg={setting: value})


@pytest.mark.parametrize(
    ("setting", "value", "message"),
    [
        ("conversation", "mine", "'mine' is no conversation. Possible: published_en"),
        ("notation", "xml", "`notation`.*one of json, python"),
        ("occurrences", "some", "`occurrences`.*one of ordered, all"),
        ("rank", -1, "`rank`.*0 or more"),
    ],
)
def test_model_without_sense(tiny_llm, setting, value, message):
    with pytest.raises(LLMNERError, match=message):
        make_nlp(tiny_llm, **{setting: value})


@pytest.mark.parametrize(
    "setting,value",
    [
        ("use_examples", "foo"),
        ("window", 0),
        ("threshold", "0.3"),
        ("example_threshold", "0.3"),
        ("constrained", "no"),
        ("labels", None),
        ("labels", "PER"),
    ],
)
def test_settings_without_sense_in_use(tiny_llm, setting, value):
    nlp = make_nlp(tiny_llm, cfg={"labels": ["PER"]})
    nlp.get_pipe("ra_it_ner").cfg[setting] = value
    with pytest.raises(LLMNERError, match=f"`{setting}` of 'ra_it_ner' is {value!r}, but must"):
        nlp("Some text")


def test_labels_that_cannot_be_encoded(tiny_llm):
    match = r"`labels` of 'ra_it_ner' is \[.*'\\ud800'\], but must be words that UTF-8 can encode"
    nlp = make_nlp(tiny_llm, cfg={"labels": ["ship"]})
    pipe = nlp.get_pipe("ra_it_ner")
    with pytest.raises(LLMNERError, match=match):
        pipe.set_labels(["PER", "\ud800"])
    with pytest.raises(LLMNERError, match=match):
        pipe.add_label("\ud800")
    assert pipe.labels == ("ship",)
    doc = nlp.make_doc("Some text")
    doc._.llmner_labels = ["\ud800"]
    with pytest.raises(LLMNERError, match=match):
        pipe(doc)


def test_first_layer_beyond_the_llm(tiny_llm):
    with pytest.raises(LLMNERError, match="`first_layer`.*below 4, the number of layers"):
        initialized(make_nlp(tiny_llm, first_layer=4))


def test_no_llm_set():
    nlp = spacy.blank("en")
    nlp.add_pipe("ra_it_ner", config={"labels": ["PER"]})
    with pytest.raises(LLMNotFoundError, match="ra_it_ner.llm.name"):
        nlp("Some text")


def test_a_corpus_without_entities(tiny_llm):
    nlp = make_nlp(tiny_llm)
    with pytest.raises(LLMNERError, match="None of the training examples for 'ra_it_ner' has an"):
        initialized(nlp, [("Nobody came.", [])])
    with pytest.raises(LLMNERError, match="There are no training examples for 'ra_it_ner'"):
        nlp.initialize(lambda: make_examples(nlp, [("", [])]))


def test_what_is_not_learnt_is_told(tiny_llm):
    nlp = make_nlp(tiny_llm, k=0)
    bare = [Example(nlp.make_doc(text), nlp.make_doc(text)) for text in TEXTS[:2]]
    told = (
        f"'ra_it_ner' does not learn 2 of {len(TRAIN) + 2} windows.*in 2, tokens are not annotated"
    )
    with pytest.warns(UserWarning, match=told):
        nlp.initialize(lambda: [*make_examples(nlp), *bare])


def test_update_before_initialize(tiny_llm):
    nlp = make_nlp(tiny_llm, cfg={"labels": ["PER"]})
    with pytest.raises(LLMNERError, match="'ra_it_ner' is not trained yet"):
        nlp.get_pipe("ra_it_ner").update(make_examples(nlp))


def test_unpickled_in_another_process(trained, tmp_path):
    """The extensions are there too."""
    path = tmp_path / "nlp.pickle"
    path.write_bytes(pickle.dumps(trained))
    read = (
        "import pickle, sys; nlp = pickle.load(open(sys.argv[1], 'rb'));"
        "doc = nlp(sys.argv[2]); print([(e.text, e._.score > 0) for e in doc.ents],"
        "len(doc._.llmner_examples))"
    )
    run = [sys.executable, "-c", read, str(path), TEXTS[0]]
    out = subprocess.run(run, capture_output=True, text=True)
    assert out.returncode == 0, out.stderr
    assert out.stdout.strip() == str([(e.text, True) for e in trained(TEXTS[0]).ents]) + " 1"


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
    """GPT-2 has no positions beyond: a list of many names is cut there."""
    nlp = make_nlp(tiny_models["gpt2"], k=0)
    names = ", ".join(["Oskar Blum"] * 30)
    places = [(at, at + 10, "PER") for at in range(0, len(names), 12)]
    pipe = initialized(nlp, [(names, places)]).get_pipe("ra_it_ner")
    reads = pipe.shared_llm().max_length
    packed = pipe.make_training_batch(make_examples(nlp, [(names, places)]))
    assert max(int(p.positions.max()) for p in packed) == reads - 2  # the last token reads nothing
    assert nlp.update(make_examples(nlp, [(names, places)]), sgd=make_sgd(0.001))["ra_it_ner"] > 0


def test_what_the_llm_has_read_is_learnt_once(tiny_llm):
    """Not as often as there are types."""
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
