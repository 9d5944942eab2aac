"""Overfit, save, load: as spaCy tests its own components."""

import copy
import json
import pickle
import shutil

import pytest
import spacy
import torch
from safetensors.torch import load_file

from spacy_llmner.errors import LLMMismatchError, LLMNERError, LLMNotFoundError
from spacy_llmner.llm import registry as pool
from tests.ember_probe.helpers import (
    FEW_SHOT,
    PAPER,
    STRUCTURED,
    TEXTS,
    assert_same,
    damage,
    entities,
    make_nlp,
    same_state,
    share_found,
    state_of,
    train,
)

UNSEEN = "Yesterday Mira Stone left Port Ellam ; nobody saw Oskar."


@pytest.fixture(params=["default", "look_right", "read_twice", "paper"])
def any_trained(request):
    if request.param == "read_twice":
        tiny_llm = request.getfixturevalue("tiny_llm")
        return train(make_nlp(tiny_llm, width=32, read_twice=True))
    fixture = {"default": "trained", "look_right": "trained_right", "paper": "trained_next"}
    return request.getfixturevalue(fixture[request.param])


def assert_same_answers(one, other, tolerance=1e-5):
    for a, b in zip(one.pipe([*TEXTS, UNSEEN]), other.pipe([*TEXTS, UNSEEN])):
        assert_same(a, b, tolerance)


def test_overfitting_IO(any_trained, tmp_path):
    assert share_found(any_trained) == 1.0
    any_trained.to_disk(tmp_path)
    loaded = spacy.load(tmp_path)
    assert_same_answers(any_trained, loaded)
    assert loaded.get_pipe("ember_probe").labels == ("LOC", "PER")

    fresh = spacy.util.load_model_from_config(any_trained.config)
    fresh.from_bytes(any_trained.to_bytes())
    assert_same_answers(any_trained, fresh)
    # Bytes are those of the same weights, however often they were saved.
    assert same_state(state_of(fresh), state_of(loaded))


def test_overfitting_IO_paper(trained_paper, tmp_path):
    # The random LLM's attention hardly tells neighbours apart.
    assert share_found(trained_paper) > 0.75
    trained_paper.to_disk(tmp_path)
    assert_same_answers(trained_paper, spacy.load(tmp_path))


def test_pickle(trained):
    data = pickle.dumps(trained)
    assert_same_answers(trained, pickle.loads(data))
    # The LLM is in memory, but not in the pickle.
    pool.clear()
    assert abs(len(pickle.dumps(trained)) - len(data)) < 1000


def test_pickle_while_training(tiny_llm, tmp_path):
    """An open feature cache and a half-trained optimizer stay where they are."""
    nlp = train(make_nlp(tiny_llm, width=16, cfg={"feature_cache": str(tmp_path)}), steps=2)
    again = pickle.loads(pickle.dumps(nlp))
    assert entities(again(TEXTS[0])) == entities(nlp(TEXTS[0]))
    copied = copy.deepcopy(nlp.get_pipe("ember_probe"))
    assert copied.labels == ("LOC", "PER")


def test_only_the_probe_is_saved(any_trained, tmp_path):
    any_trained.to_disk(tmp_path)
    pipe = any_trained.get_pipe("ember_probe")
    assert sorted(p.name for p in (tmp_path / "ember_probe").iterdir()) == [
        "cfg",
        "model.safetensors",
    ]
    saved = load_file(tmp_path / "ember_probe" / "model.safetensors")
    assert saved.keys() == pipe.module.state_dict().keys()
    cfg = json.loads((tmp_path / "ember_probe" / "cfg").read_text())
    assert cfg["llm"]["fingerprint"] == pipe.shared_llm().fingerprint
    assert len(json.dumps(cfg)) < 1000
    n_parameters = sum(p.numel() for p in pipe.module.state_dict().values())
    assert len(pipe.to_bytes(exclude=["vocab"])) < 4 * n_parameters + 10_000


def test_llm_stays_as_it_was(tiny_llm):
    llm = pool.make_llm(tiny_llm, device="cpu").load()
    before = {name: p.clone() for name, p in llm.model.named_parameters()}
    nlp = train(make_nlp(tiny_llm, width=16), steps=3)
    nlp(TEXTS[0])
    assert nlp.get_pipe("ember_probe").shared_llm() is llm
    assert not llm.model.training
    for name, p in llm.model.named_parameters():
        assert torch.equal(p, before[name])
        assert not p.requires_grad and p.grad is None


def test_loading_reads_no_llm(trained, tmp_path):
    trained.to_disk(tmp_path)
    pool.clear()
    nlp = spacy.load(tmp_path)
    nlp.to_bytes()
    assert pool.loaded() == []
    nlp(TEXTS[0])
    assert len(pool.loaded()) == 1


def test_other_llm_is_refused(trained, other_llm, tmp_path):
    trained.to_disk(tmp_path)
    config = {"components.ember_probe.llm.name": other_llm}
    nlp = spacy.load(tmp_path, config=config)
    with pytest.raises(LLMMismatchError, match="E008|was trained on the LLM.*paths.llm"):
        nlp(TEXTS[0])
    # No document's fault: an error handler does not hide it.
    nlp.set_error_handler(lambda *args: None)
    with pytest.raises(LLMMismatchError):
        list(nlp.pipe(TEXTS))


@pytest.mark.parametrize(
    "setting,value,match",
    [
        ("layers", [1], r"layers = None, but its model is given \[1\]"),
        ("prefix", "In short:", "prefix = '', but its model is given 'In short:'"),
        ("read_twice", True, "read_twice = False"),
        ("width", 8, "width = 32"),
        ("look_right", True, "look_right = False"),
    ],
)
def test_what_was_trained_fits_one_model_only(trained, tmp_path, setting, value, match):
    trained.to_disk(tmp_path)
    with pytest.raises(LLMNERError, match=f"'ember_probe' was trained with {match}.*leave out"):
        spacy.load(tmp_path, config={f"components.ember_probe.model.{setting}": value})


def test_other_kind_of_probe_is_refused(trained, tmp_path):
    trained.to_disk(tmp_path)
    model = {"@architectures": "spacy_llmner.EmberPaper.v1"}
    config = spacy.util.load_config(tmp_path / "config.cfg")
    config["components"]["ember_probe"]["model"] = model
    config.to_disk(tmp_path / "config.cfg")
    with pytest.raises(LLMNERError, match="was trained with kind = 'ember_probe'.*'ember_paper'"):
        spacy.load(tmp_path)


def test_repoint_to_a_moved_llm(trained, tiny_llm, tmp_path):
    trained.to_disk(tmp_path / "pipeline")
    moved = tmp_path / "moved"
    moved.symlink_to(tiny_llm)
    config = {"components.ember_probe.llm.name": str(moved)}
    nlp = spacy.load(tmp_path / "pipeline", config=config)
    assert_same_answers(trained, nlp)


def test_no_llm_set(tmp_path):
    nlp = spacy.blank("en")
    nlp.add_pipe("ember_probe")
    with pytest.raises(LLMNERError, match="no labels.*spacy train"):
        nlp("Some text")
    with pytest.raises(LLMNotFoundError, match="ember_probe.llm.name"):
        train(nlp)


def test_untrained(tiny_llm):
    nlp = make_nlp(tiny_llm)
    nlp.get_pipe("ember_probe").add_label("PER")
    with pytest.raises(LLMNERError, match="not trained yet"):
        nlp("Some text")


@pytest.mark.parametrize("file", ["cfg", "model.safetensors"])
@pytest.mark.parametrize("left", [None, 0, 9, -9])
def test_broken_folder(trained, tmp_path, file, left):
    trained.to_disk(tmp_path)
    damage(tmp_path / "ember_probe" / file, left)
    with pytest.raises(
        LLMNERError, match="does not hold a trained 'ember_probe'.*again with nlp.to_disk"
    ):
        spacy.load(tmp_path)


def test_untrained_can_be_saved(tiny_llm, tmp_path):
    nlp = make_nlp(tiny_llm)
    nlp.to_disk(tmp_path)
    assert spacy.load(tmp_path).get_pipe("ember_probe").labels == ()


def test_sourced_component(trained):
    nlp = spacy.blank("en")
    nlp.add_pipe("ember_probe", source=trained)
    assert_same_answers(trained, nlp)


def test_two_in_one_pipeline(trained):
    """Two components share one LLM and keep their results apart."""
    nlp = spacy.blank("en")
    nlp.add_pipe("ember_probe", source=trained)
    config = {**trained.get_pipe_config("ember_probe"), "spans_key": "second"}
    nlp.add_pipe(config.pop("factory"), name="second", config=config)
    first, second = nlp.get_pipe("ember_probe"), nlp.get_pipe("second")
    second.from_bytes(first.to_bytes())
    second.cfg["spans_key"] = "second"
    doc = nlp(TEXTS[0])
    assert set(doc.spans) == {"llmner", "second"}
    assert doc.spans["second"].attrs["scores"] == doc.spans["llmner"].attrs["scores"]
    assert [doc.spans[key].attrs["method"] for key in doc.spans] == ["ember_probe", "second"]
    assert second.shared_llm() is first.shared_llm()


@pytest.mark.parametrize(
    "setting,value,match",
    [
        ("threshold", -0.1, "`threshold` of 'ember_probe' is -0.1, but must be between 0 and 1"),
        ("threshold", 1.5, "between 0 and 1"),
        ("max_batch_tokens", 0, "must be positive"),
    ],
)
def test_senseless_settings(tiny_llm, setting, value, match):
    with pytest.raises(LLMNERError, match=match):
        make_nlp(tiny_llm, cfg={setting: value})


@pytest.mark.parametrize("value", [-1, 2.0, "0.3", None, float("nan")])
def test_senseless_threshold_of_a_component_in_use(trained, value):
    nlp = copy.deepcopy(trained)
    nlp.get_pipe("ember_probe").cfg["threshold"] = value
    with pytest.raises(LLMNERError, match="`threshold` .* must be between 0 and 1"):
        nlp(TEXTS[0])
    with pytest.raises(LLMNERError, match="`threshold` .* must be between 0 and 1"):
        nlp.get_pipe("ember_probe").stream(TEXTS[0])


@pytest.mark.parametrize(
    "architecture,settings,match",
    [
        (STRUCTURED, {"width": 1}, "`model.width` of 'ember_probe' is 1, but must be at least 2"),
        (STRUCTURED, {"max_words": 0}, "`model.max_words` .* must be positive"),
        (STRUCTURED, {"layers": []}, "`model.layers` .* must be numbers of layers"),
        (STRUCTURED, {"layers": [-1]}, "`model.layers` .* must be numbers of layers"),
        (PAPER, {"width": 0}, "`model.width` .* must be positive"),
        (PAPER, {"layer": -1}, "`model.layer` .* is -1, but must be 0 or more"),
        (PAPER, {"max_words": -2}, "`model.max_words` .* must be positive"),
        (FEW_SHOT, {"k": 0}, "`model.k` .* must be positive"),
        (FEW_SHOT, {"max_words": 0}, "`model.max_words` .* must be positive"),
        (FEW_SHOT, {"layer": -3}, "`model.layer` .* is -3, but must be 0 or more"),
    ],
)
def test_senseless_settings_of_an_architecture(tiny_llm, architecture, settings, match):
    with pytest.raises(LLMNERError, match=match):
        make_nlp(tiny_llm, architecture, **settings)


def test_layer_that_the_llm_does_not_have(tiny_llm):
    with pytest.raises(LLMNERError, match="Layer 9 was asked for.*has 4 layers"):
        train(make_nlp(tiny_llm, layers=[0, 9]))


def test_no_document_is_blamed_for_a_broken_llm(trained, tiny_llm, tmp_path):
    shutil.copytree(tiny_llm, tmp_path / "llm")
    (tmp_path / "llm/config.json").write_text("{}")
    trained.to_disk(tmp_path / "pipeline")
    config = {"components.ember_probe.llm.name": str(tmp_path / "llm")}
    nlp = spacy.load(tmp_path / "pipeline", config=config)
    nlp.set_error_handler(lambda *args: None)
    with pytest.raises(LLMNERError, match="is incomplete or broken"):
        list(nlp.pipe(TEXTS))
