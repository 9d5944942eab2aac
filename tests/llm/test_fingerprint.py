"""Fingerprints of an LLM's weights."""

import os
from types import SimpleNamespace

import pytest
from safetensors.torch import load_file, save_file
from transformers import AutoConfig

from spacy_llmner.llm import fingerprint
from spacy_llmner.llm.fingerprint import fingerprint_of


@pytest.fixture
def home(tmp_path, monkeypatch):
    """An empty SPACY_LLMNER_HOME."""
    monkeypatch.setenv("SPACY_LLMNER_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


def test_every_weight_counts_in_the_fingerprint(smollm2, tmp_path, home):
    """If all queries and values are negated, the LLM's output changes. The samples of 0.1.0 missed this."""
    config = SimpleNamespace(
        model_type="llama", num_hidden_layers=30, hidden_size=576, vocab_size=49152
    )
    original = fingerprint_of(str(smollm2), None, config)
    state = load_file(smollm2 / "model.safetensors")
    for name, tensor in state.items():
        if "q_proj" in name or "v_proj" in name:
            state[name] = -tensor
    save_file(state, tmp_path / "model.safetensors", metadata={"format": "pt"})
    assert fingerprint_of(str(tmp_path), None, config) != original


def test_hash_of_weights_is_stored(make_tiny, tmp_path, home, monkeypatch):
    path = make_tiny(tmp_path / "llm", "llama")
    config = AutoConfig.from_pretrained(path)
    reads = []
    monkeypatch.setattr(
        fingerprint, "_hash", lambda files, hash=fingerprint._hash: reads.append(1) or hash(files)
    )
    first = fingerprint_of(path, None, config)
    assert fingerprint_of(path, None, config) == first and len(reads) == 1
    (stored,) = (home / "fingerprints").iterdir()
    stored.write_text("{")
    assert fingerprint_of(path, None, config) == first and len(reads) == 2
    weights = tmp_path / "llm" / "model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    os.utime(weights, (1, 1))
    assert fingerprint_of(path, None, config) != first and len(reads) == 3


def test_without_a_writable_home(make_tiny, tmp_path, monkeypatch):
    path = make_tiny(tmp_path / "llm", "llama")
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("SPACY_LLMNER_HOME", str(tmp_path / "file"))
    config = AutoConfig.from_pretrained(path)
    assert fingerprint_of(path, None, config) == fingerprint_of(path, None, config)
