"""Overfit, save, load, and settings that make no sense."""

import copy
import gc
import json
import pickle
import weakref

import pytest
import spacy
import torch
from safetensors.torch import load_file

from spacy_llmner.decoding.engine import DecodingEngine
from spacy_llmner.errors import LLMMismatchError, LLMNERError, LLMNotFoundError
from spacy_llmner.llm import registry as pool
from spacy_llmner.llm.tokenization import LLMTokenizer
from tests.helpers import (
    TEXTS,
    assert_same,
    damage,
    entities,
    make_examples,
    make_sgd,
    same_state,
    share_found,
    state_of,
)
from tests.padellm_ner.helpers import DATA, initialized, make_nlp, train

UNSEEN = "Yesterday Mira Stone left Port Ellam ; nobody saw Oskar."


def assert_same_answers(one, other, tolerance=1e-5):
    for a, b in zip(one.pipe([*TEXTS, UNSEEN]), other.pipe([*TEXTS, UNSEEN])):
        assert_same(a, b, tolerance)


def test_overfitting_IO(any_trained, tmp_path):
    assert share_found(any_trained, DATA) == 1.0
    any_trained.to_disk(tmp_path)
    loaded = spacy.load(tmp_path)
    assert_same_answers(any_trained, loaded)
    assert loaded.get_pipe("padellm_ner").labels == ("LOC", "PER")

    fresh = spacy.util.load_model_from_config(any_trained.config)
    fresh.from_bytes(any_trained.to_bytes())
    assert_same_answers(any_trained, fresh)
    assert same_state(state_of(fresh), state_of(loaded))


def test_from_bytes_in_use(tiny_llm, trained):
    """New weights count at once, also where old ones were in use."""
    nlp = initialized(make_nlp(tiny_llm))
    nlp(TEXTS[0])
    nlp.get_pipe("padellm_ner").from_bytes(trained.get_pipe("padellm_ner").to_bytes())
    assert_same_answers(trained, nlp)


def test_pickle_while_in_use(trained):
    trained(TEXTS[0])
    data = pickle.dumps(trained)
    again = pickle.loads(data)
    assert_same_answers(trained, again)
    # The LLM is in memory, but not in the pickle.
    pool.clear()
    assert abs(len(pickle.dumps(trained)) - len(data)) < 1000
    copied = copy.deepcopy(trained.get_pipe("padellm_ner"))
    assert copied.labels == ("LOC", "PER") and not copied._adapted.by_llm


def test_only_the_adapter_is_saved(any_trained, tmp_path):
    any_trained.to_disk(tmp_path)
    pipe = any_trained.get_pipe("padellm_ner")
    files = sorted(p.name for p in (tmp_path / "padellm_ner").iterdir())
    assert files == ["cfg", "model.safetensors"]
    saved = load_file(tmp_path / "padellm_ner" / "model.safetensors")
    assert saved.keys() == pipe.module.state_dict().keys()
    assert all("lora_" in name for name in saved)
    cfg = json.loads((tmp_path / "padellm_ner" / "cfg").read_text())
    assert cfg["llm"]["fingerprint"] == pipe.shared_llm().fingerprint
    n_parameters = sum(p.numel() for p in pipe.module.parameters())
    assert len(pipe.to_bytes(exclude=["vocab"])) < 4 * n_parameters + 20_000


def test_loading_reads_no_llm(trained, tmp_path):
    trained.to_disk(tmp_path)
    pool.clear()
    nlp = spacy.load(tmp_path)
    nlp.to_bytes()
    assert pool.loaded() == []
    nlp(TEXTS[0])
    assert len(pool.loaded()) == 1


def test_the_llm_may_be_missing(trained, tiny_llm, tmp_path):
    """A pipeline is loaded without its LLM; only using it needs one."""
    trained.to_disk(tmp_path)
    nlp = spacy.load(tmp_path, config={"components.padellm_ner.llm.name": "/no/such/folder"})
    with pytest.raises(LLMNotFoundError, match="Can't find the LLM '/no/such/folder'"):
        nlp(TEXTS[0])


def test_other_llm_is_refused(trained, other_llm, tmp_path):
    trained.to_disk(tmp_path)
    nlp = spacy.load(tmp_path, config={"components.padellm_ner.llm.name": other_llm})
    with pytest.raises(LLMMismatchError, match="'padellm_ner' was trained on the LLM.*paths.llm"):
        nlp(TEXTS[0])
    nlp.set_error_handler(lambda *args: None)  # no document's fault
    with pytest.raises(LLMMismatchError):
        list(nlp.pipe(TEXTS))
    with pytest.raises(LLMMismatchError):
        nlp.update(make_examples(nlp), sgd=make_sgd())


@pytest.mark.parametrize(
    "setting,value,match",
    [
        ("alpha", 64, "alpha = 16, but its model is given 64"),
        ("rank", 4, "rank = 8, but its model is given 4"),
        ("first_layer", 2, "first_layer = 0, but its model is given 2"),
        ("template", "published_en", r"template.prompt = ' \{text\}.*given 'text:"),
        ("label_words.PER", "name", "label_words = .*'PER': 'person'.*'PER': 'name'"),
    ],
)
def test_what_was_trained_fits_one_model_only(tiny_llm, tmp_path, setting, value, match):
    initialized(make_nlp(tiny_llm, label_words={"PER": "person"})).to_disk(tmp_path)
    with pytest.raises(LLMNERError, match=f"'padellm_ner' was trained with {match}.*leave out"):
        spacy.load(tmp_path, config={f"components.padellm_ner.model.{setting}": value})


def test_words_for_other_labels_may_change(tiny_llm, tmp_path):
    nlp = initialized(make_nlp(tiny_llm, label_words={"ORG": "firm"}))
    nlp.to_disk(tmp_path)
    words = {"components.padellm_ner.model.label_words.ORG": "organisation"}
    assert same_state(state_of(nlp), state_of(spacy.load(tmp_path, config=words)))


def test_repoint_to_a_moved_llm(trained, tiny_llm, tmp_path):
    config = copy.deepcopy(trained.config)
    config["paths"]["llm"] = "/gone"
    config["components"]["padellm_ner"]["llm"]["name"] = "${paths.llm}"
    moved = tmp_path / "moved"
    moved.symlink_to(tiny_llm)
    trained.to_disk(tmp_path / "pipeline")
    config.to_disk(tmp_path / "pipeline" / "config.cfg")
    nlp = spacy.load(tmp_path / "pipeline", config={"paths.llm": str(moved)})
    assert_same_answers(trained, nlp)


def test_no_llm_set():
    nlp = spacy.blank("en")
    nlp.add_pipe("padellm_ner")
    with pytest.raises(LLMNERError, match="no labels.*spacy train") as error:
        nlp("Some text")
    assert "fit(" not in str(error.value)
    with pytest.raises(LLMNotFoundError, match="padellm_ner.llm.name"):
        initialized(nlp)


def test_untrained(tiny_llm, tmp_path):
    nlp = make_nlp(tiny_llm)
    pipe = nlp.get_pipe("padellm_ner")
    nlp.to_disk(tmp_path)
    assert spacy.load(tmp_path).get_pipe("padellm_ner").labels == ()
    pipe.add_label("PER")
    for use in (lambda: nlp("Some text"), lambda: list(pipe.stream("Some text"))):
        with pytest.raises(LLMNERError, match="'padellm_ner' is not trained yet"):
            use()


@pytest.mark.parametrize("file", ["cfg", "model.safetensors"])
@pytest.mark.parametrize("left", [None, 0, 9, -9])
def test_broken_folder(trained, tmp_path, file, left):
    trained.to_disk(tmp_path)
    damage(tmp_path / "padellm_ner" / file, left)
    with pytest.raises(
        LLMNERError, match="does not hold a trained 'padellm_ner'.*again with nlp.to_disk"
    ):
        spacy.load(tmp_path)


def test_sourced_component(trained):
    nlp = spacy.blank("en")
    nlp.add_pipe("padellm_ner", source=trained)
    assert_same_answers(trained, nlp)


@pytest.mark.parametrize(
    "setting,value,match",
    [
        (
            "count",
            "all",
            "`count` of 'padellm_ner' is 'all', but must be one of argmax, calibrated",
        ),
        ("confidence", "sum", "must be one of product, mean"),
        ("probability", "some", "must be one of allowed, raw"),
        ("deduplicate", "yes", "must be one of none, string, span"),
        (
            "threshold",
            1.5,
            "`threshold` of 'padellm_ner' is 1.5, but must be between 0 and 1",
        ),
        ("count_threshold", -0.1, "must be between 0 and 1"),
        ("window", 0, "`window` of 'padellm_ner' is 0, but must be positive"),
        ("max_mention_tokens", 0, "`max_mention_tokens` .* must be positive"),
        ("max_batch_tokens", -3, "must be positive"),
    ],
)
def test_senseless_settings(tiny_llm, setting, value, match):
    with pytest.raises(LLMNERError, match=match):
        make_nlp(tiny_llm, cfg={setting: value})


@pytest.mark.parametrize(
    "setting,value",
    [
        ("count", "foo"),
        ("confidence", "foo"),
        ("deduplicate", "foo"),
        ("window", 0),
        ("threshold", 2.0),
        ("threshold", "0.3"),
        ("window", "long"),
    ],
)
def test_senseless_settings_of_a_component_in_use(tiny_llm, setting, value):
    """As docs/padellm_ner.md says how to set them."""
    nlp = make_nlp(tiny_llm)
    pipe = nlp.get_pipe("padellm_ner")
    pipe.cfg[setting] = value
    for use in (lambda: nlp("Some text"), lambda: list(pipe.stream("Some text"))):
        with pytest.raises(
            LLMNERError, match=f"`{setting}` of 'padellm_ner' is {value!r}, but must"
        ):
            use()


def test_loss_ignoring_needs_something_to_ignore(tiny_llm):
    with pytest.raises(LLMNERError, match="`learn_index` .* is False, but must be true: in this"):
        initialized(make_nlp(tiny_llm, learn_index=False, loss="raw"))
    with pytest.raises(LLMNERError, match="`loss` .* is 'raw', but must be 'allowed': with this"):
        initialized(make_nlp(tiny_llm, loss="raw"))
    with pytest.raises(LLMNERError, match="`learn_index` .* must be true: with loss = 'allowed'"):
        initialized(make_nlp(tiny_llm, learn_index=False, template="published_en"))
    initialized(make_nlp(tiny_llm, learn_index=False, template="published_en", loss="raw"))
    with pytest.raises(
        LLMNERError, match="`model.loss` .* is 'all', but must be one of allowed, raw"
    ):
        make_nlp(tiny_llm, loss="all")


def test_settings_that_do_not_fit(tiny_llm):
    with pytest.raises(
        LLMNERError, match="`first_layer` .* is 4, but must be below 4, the number of"
    ):
        initialized(make_nlp(tiny_llm, first_layer=4))
    words = {"PER": "name", "LOC": "name"}
    with pytest.raises(LLMNERError, match="`label_words` .*each of LOC, PER goes by another word"):
        initialized(make_nlp(tiny_llm, label_words=words))
    # Words for labels that are not there are no harm.
    initialized(make_nlp(tiny_llm, label_words={"PER": "person", "ORG": "person"}))


def test_a_prompt_that_leaves_no_room(tiny_llm):
    nlp = make_nlp(tiny_llm, label_words={"LOC": "somewhere in the world " * 40})
    with pytest.raises(
        LLMNERError, match="'padellm_ner' does not fit.*the label 'LOC'.*label_words"
    ):
        initialized(nlp)


def test_template_in_a_config(tiny_llm, tmp_path):
    template = {
        "@misc": "spacy_llmner.Template.v1",
        "prompt": "Text: {text}\nFind: {label}\n",
        "count": "How many? ",
        "count_end": "",
        "mention": "Number {index}: ",
    }
    nlp = train(make_nlp(tiny_llm, template=template, label_words={"PER": "person"}), steps=2)
    nlp.to_disk(tmp_path)
    again = spacy.load(tmp_path)
    settings = again.get_pipe("padellm_ner").settings
    assert settings.template.prompt == template["prompt"] and settings.template.bare
    assert settings.label_words == {"PER": "person"}
    assert_same_answers(nlp, again)


def test_full_fine_tuning(tiny_llm, tmp_path):
    """rank = 0 trains a copy of the weights; the shared ones stay as they are, and are saved as a whole."""
    llm = pool.make_llm(tiny_llm, device="cpu").load()
    before = {name: p.clone() for name, p in llm.model.named_parameters()}
    nlp = train(make_nlp(tiny_llm, rank=0), steps=20, learn_rate=0.005)
    assert share_found(nlp, DATA) == 1.0
    pipe = nlp.get_pipe("padellm_ner")
    assert pipe.shared_llm() is llm
    for name, p in llm.model.named_parameters():
        assert torch.equal(p, before[name]) and not p.requires_grad and p.grad is None
    trained = sum(p.numel() for p in pipe.module.parameters())
    embeddings = llm.model.get_input_embeddings().weight.numel()
    assert trained == sum(p.numel() for p in llm.decoder.parameters()) - embeddings
    nlp.to_disk(tmp_path)
    assert_same_answers(nlp, spacy.load(tmp_path))


def test_the_upper_half_is_trained(tiny_llm):
    nlp = initialized(make_nlp(tiny_llm, first_layer=None))
    layers = {name.split("/")[1] for name in state_of(nlp)}
    assert layers == {"2", "3"}


def test_passes_of_a_text(trained, monkeypatch):
    """All labels and mentions of a batch in a few passes."""
    made = []

    class Spy(DecodingEngine):
        def __init__(self, *args, **kwargs):
            super().__init__(*args, **kwargs)
            made.append(self)

    monkeypatch.setattr("spacy_llmner.padellm_ner.component.DecodingEngine", Spy)
    list(trained.pipe([TEXTS[0]] * 5))
    trained(TEXTS[0])
    batch, one = made
    assert batch.passes == one.passes < 10
    assert batch.tokens == 5 * one.tokens


def test_an_llm_without_an_end_token(tiny_llm, monkeypatch):
    monkeypatch.setattr(LLMTokenizer, "end", [])
    nlp = make_nlp(tiny_llm)
    with pytest.raises(LLMNERError, match="no end token.*eos_token"):
        nlp.initialize(lambda: make_examples(nlp))


def test_copies_of_weights_need_full_precision(tiny_llm):
    llm = {"@misc": "spacy_llmner.LLM.v1", "name": tiny_llm, "device": "cpu", "dtype": "bfloat16"}
    nlp = make_nlp(tiny_llm, cfg={"llm": llm}, rank=0)
    with pytest.raises(LLMNERError, match='`rank` of .padellm_ner. is 0.*`dtype` "float32"'):
        nlp.initialize(lambda: make_examples(nlp, DATA))


def test_unload_frees_the_weights(trained):
    """Though a component has used them."""
    trained(TEXTS[0])
    pipe = trained.get_pipe("padellm_ner")
    held = weakref.ref(next(pipe.shared_llm().model.parameters()))
    pipe.llm.unload()
    gc.collect()
    assert held() is None
    assert entities(trained(TEXTS[0])) == DATA[0][1]


def test_labels_of_another_corpus_are_added(tiny_llm):
    """As spaCy's own components do when they are initialized again."""
    nlp = make_nlp(tiny_llm)
    nlp.initialize(lambda: make_examples(nlp, DATA))
    other = [("Oskar Blum sang.", [(0, 10, "SINGER")])]
    nlp.initialize(lambda: make_examples(nlp, other))
    assert nlp.get_pipe("padellm_ner").labels == ("LOC", "PER", "SINGER")
