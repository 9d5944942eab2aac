"""The self-check: what can't be computed correctly is refused, with the reason."""

import json

import pytest
import torch

from spacy_llmner.errors import LLMNERError
from spacy_llmner.llm import lm_head, loading, self_check, tree_attention
from spacy_llmner.llm.attention import ATTENTION
from spacy_llmner.llm.hidden_states import FeatureSpec, StepReader, read_texts
from spacy_llmner.llm.registry import clear, make_llm
from spacy_llmner.models import catalogue
from tests.conftest import save_tiny

USES = ["reads", "streams", "trees", "attention"]
EMBER = {"@architectures": "spacy_llmner.EmberPaper.v1"}


@pytest.fixture
def home(tmp_path, monkeypatch):
    monkeypatch.setenv(catalogue.HOME_VARIABLE, str(tmp_path / "home"))
    clear()
    yield tmp_path / "home"
    clear()


@pytest.fixture
def loads(monkeypatch):
    """Counts how often a check runs."""
    runs = []
    check = self_check._check
    monkeypatch.setattr(self_check, "_check", lambda llm: runs.append(llm) or check(llm))
    return runs


def test_shapes_of_the_project(tiny_models, home):
    for folder in tiny_models.values():
        llm = make_llm(folder, device="cpu").load()
        assert list(llm.findings) == USES
        for finding in llm.findings.values():
            assert finding.states < 1e-4 and (finding.log_probs or 0) < 1e-4 and not finding.reason


def test_findings_are_remembered(tiny_llm, home, loads):
    first = make_llm(tiny_llm, device="cpu").load().findings
    clear()
    assert make_llm(tiny_llm, device="cpu").load().findings == first
    assert len(loads) == 1
    make_llm(tiny_llm, device="cpu", dtype="bfloat16").load()
    assert len(loads) == 2  # another dtype is another check


def test_findings_of_other_weights_are_not_used(tmp_path, home, loads):
    for seed in (3, 4):
        make_llm(save_tiny(tmp_path / str(seed), "llama", seed), device="cpu").load()
    assert len(loads) == 2


def test_a_broken_store_is_ignored(tiny_llm, home, loads):
    make_llm(tiny_llm, device="cpu").load()
    clear()
    (file,) = (home / "checks").glob("*.json")
    file.write_text("{")
    make_llm(tiny_llm, device="cpu").load()
    assert len(loads) == 2 and json.loads(file.read_text())["findings"]


def test_the_check_can_be_switched_off(tiny_llm, home, loads):
    llm = make_llm(tiny_llm, device="cpu", self_check=False).load()
    assert not loads and llm.findings == {}
    # A second handle asks for the check of the same weights.
    assert make_llm(tiny_llm, device="cpu").load() is llm
    assert len(loads) == 1 and list(llm.findings) == USES


def test_a_refused_llm_that_another_handle_loaded(tiny_llm, home, monkeypatch):
    """It is refused each time."""
    wrong = self_check.Finding(1.0, None, "its hidden states differ")
    monkeypatch.setattr(self_check, "_check", lambda llm: {"reads": wrong})
    unchecked, handle = (make_llm(tiny_llm, device="cpu", self_check=c) for c in (False, True))
    unchecked.load()
    for llm in (handle, handle, make_llm(tiny_llm, device="cpu")):
        with pytest.raises(LLMNERError, match="its hidden states differ"):
            llm.load()


@pytest.mark.parametrize("failing", ["_reference", "read_texts"])
def test_memory_that_is_not_enough_is_not_stored(tiny_llm, home, monkeypatch, failing):
    """The next check can succeed."""

    def full(*args, **settings):
        raise torch.OutOfMemoryError("CUDA out of memory.")

    with monkeypatch.context() as patch:
        patch.setattr(self_check, failing, full)
        with pytest.raises(MemoryError, match="no room for the self-check.*out of memory"):
            make_llm(tiny_llm, device="cpu").load()
    assert make_llm(tiny_llm, device="cpu").load().findings["reads"].reason == ""


def test_other_log_probabilities_are_refused(tiny_llm, home, monkeypatch):
    """For example, because a model multiplies its logits by a factor that we don't know of."""
    logits = lm_head.lm_logits
    monkeypatch.setattr(loading, "lm_logits", lambda *args: 0.5 * logits(*args))
    llm = make_llm(tiny_llm, device="cpu").load()
    assert not llm.findings["reads"].reason
    with pytest.raises(LLMNERError, match=r"\(llama\) can't .* log-probabilities differ .* nats"):
        llm.require("trees")


def test_other_attention_is_refused(tiny_llm, home, monkeypatch):
    attend = tree_attention.masked_attention
    monkeypatch.setattr(tree_attention, "masked_attention", lambda *args: 1.5 * attend(*args))
    llm = make_llm(tiny_llm, device="cpu").load()
    with pytest.raises(LLMNERError, match="share a prefix: its hidden states differ .*%"):
        read_texts(llm, [[5, 6]], FeatureSpec((2,)), prefix=[7])
    assert read_texts(llm, [[5, 6]], FeatureSpec((2,)))[0].hidden.shape == (2, 1, 32)


def test_wrong_states_are_refused_at_load(tiny_llm, home, monkeypatch):
    read = self_check.read_texts

    def wrong(*args, **kwargs):
        found = read(*args, **kwargs)
        for features in found:
            features.hidden += 1
        return found

    monkeypatch.setattr(self_check, "read_texts", wrong)
    for _ in range(2):  # a refused LLM is not kept
        with pytest.raises(
            LLMNERError, match=r"is not supported: its hidden states differ .*check"
        ):
            make_llm(tiny_llm, device="cpu").load()


def test_streams_and_attention_are_refused(tiny_llm, home, monkeypatch):
    def broken(*args):
        raise RuntimeError("no such cache")

    monkeypatch.setitem(self_check.USES, "streams", broken)
    monkeypatch.setitem(self_check.USES, "attention", broken)
    llm = make_llm(tiny_llm, device="cpu").load()
    with pytest.raises(
        LLMNERError, match="can't be used for streaming: RuntimeError: no such cache"
    ):
        StepReader(llm, FeatureSpec((1,)))
    with pytest.raises(
        LLMNERError, match="attention weights .* can't be used: RuntimeError.*EmberPr"
    ):
        read_texts(llm, [[5, 6]], FeatureSpec((1,), window=2))


def test_sliding_windows_are_checked(tiny_models, home, monkeypatch):
    """Also windows that are longer than the text of the check."""
    mask = tree_attention.TreePass._mask
    monkeypatch.setattr(
        tree_attention.TreePass, "_mask", lambda self, k, window, n: mask(self, k, None, n)
    )
    llm = make_llm(tiny_models["gemma3"], device="cpu").load()
    assert llm.findings["trees"].reason


def test_the_check_changes_nothing(tiny_models, home):
    """Neither the weights nor the configs of the shared model."""
    llm = make_llm(tiny_models["gemma3"], device="cpu", self_check=False).load()
    config = llm.model.config.to_json_string()
    windows = [layer.self_attn.sliding_window for layer in llm.decoder.layers]
    weights = {name: p.clone() for name, p in llm.model.named_parameters()}
    self_check.self_check(llm, remember=False)
    assert llm.model.config.to_json_string() == config
    assert llm.model.config._attn_implementation == ATTENTION
    assert [layer.self_attn.sliding_window for layer in llm.decoder.layers] == windows
    assert all(torch.equal(p, weights[name]) for name, p in llm.model.named_parameters())
    assert llm.views == {} and len(llm.prefixes) == 0
