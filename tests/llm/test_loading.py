"""LLMs that can't be loaded, and the error messages."""

import json
from types import SimpleNamespace

import pytest
import torch
from transformers import AutoTokenizer

from spacy_llmner.errors import LLMNERError, LLMNotFoundError
from spacy_llmner.llm import location
from spacy_llmner.llm import registry as pool
from spacy_llmner.llm.registry import make_llm
from tests.conftest import change_json


def cpu(path):
    return make_llm(str(path), device="cpu")


def test_loaded_in_inference_mode(make_tiny, tmp_path):
    llm = cpu(make_tiny(tmp_path / "llm", "llama"))
    with torch.inference_mode():
        model = llm.load().model
    assert not any(tensor.is_inference() for tensor in model.state_dict().values())


def test_more_tokens_than_embeddings(make_tiny, tmp_path):
    """The error is about the setup, not about a document with such a token."""
    path = make_tiny(tmp_path / "llm", "llama")
    tokenizer = AutoTokenizer.from_pretrained(path)
    n = len(tokenizer)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<image>"]})
    tokenizer.save_pretrained(path)
    cpu(path).load()  # text is never encoded to a special token
    tokenizer.add_tokens(["Varnholm"])
    tokenizer.save_pretrained(path)
    pool.clear()
    with pytest.raises(LLMNERError, match=rf"has {n + 2} tokens.*only {n} of .*'Varnholm'"):
        cpu(path).load()


@pytest.mark.parametrize("name", ["smollm2-135m-instuct", "SmolLM2-135M-Instruct"])
def test_misspelt_name(name, monkeypatch):
    """The hub is asked once, and the nearest name of the catalogue is suggested."""
    asked = []

    def head(url, **settings):
        asked.append(url)
        raise ConnectionError

    monkeypatch.setattr(location.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(location, "get_session", lambda: SimpleNamespace(head=head))
    match = "can't be reached: ConnectionError.*Did you mean 'smollm2-135m-instruct'"
    with pytest.raises(LLMNotFoundError, match=match):
        cpu(name).load()
    assert len(asked) == 1


def test_the_hub_does_not_have_it(monkeypatch):
    answer = SimpleNamespace(status_code=404)
    monkeypatch.setattr(location.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(
        location, "get_session", lambda: SimpleNamespace(head=lambda *args, **kwargs: answer)
    )
    with pytest.raises(LLMNotFoundError, match="'nobody/nothing'.*hub answers 404") as e:
        cpu("nobody/nothing").load()
    assert "Did you mean" not in str(e.value)
    with pytest.raises(LLMNotFoundError, match="not a valid hub id"):
        cpu("no thing").load()


def test_is_on_disk(tiny_llm, tmp_path, monkeypatch):
    """Without asking the hub."""
    monkeypatch.setenv("SPACY_LLMNER_HOME", str(tmp_path))
    monkeypatch.setattr(location, "get_session", lambda: pytest.fail("asks the hub"))
    assert location.is_on_disk(tiny_llm)
    for name in ("smollm2-135m-instruct", "nobody/nothing", "no thing"):
        assert not location.is_on_disk(name)


def test_folder_of_an_adapter(tmp_path):
    (tmp_path / "adapter_config.json").write_text('{"base_model_name_or_path": "some/base"}')
    with pytest.raises(LLMNotFoundError, match="a LoRA adapter of 'some/base'. Merge it"):
        cpu(tmp_path).load()


def test_folder_with_code_of_its_own(make_tiny, tmp_path, monkeypatch):
    monkeypatch.setattr("builtins.input", lambda *args: pytest.fail("asks on the standard input"))
    path = make_tiny(tmp_path / "llm", "llama")
    config = json.loads((tmp_path / "llm" / "config.json").read_text())
    config.update(model_type="odd", auto_map={"AutoConfig": "odd.Config"})
    (tmp_path / "llm" / "config.json").write_text(json.dumps(config))
    with pytest.raises(LLMNERError, match="type 'odd' are not supported.*auto_map.*not run"):
        cpu(path).load()


@pytest.mark.parametrize(
    ("changed", "reason"),
    [
        ({"transformers_version": "99.1.0"}, "version 99.1.0 saved it"),
        ({"model_type": "llama99"}, "it doesn't know models of the type 'llama99'"),
    ],
)
def test_llm_of_a_newer_transformers(make_tiny, tmp_path, changed, reason):
    """Older versions would ignore settings that newer ones write, such as those of position embeddings."""
    path = make_tiny(tmp_path / "llm", "llama")
    change_json(tmp_path / "llm" / "config.json", **changed)
    with pytest.raises(LLMNERError, match=f"newer version of transformers than .*: {reason}"):
        cpu(path).load()


def test_invalid_generation_config(make_tiny, tmp_path):
    path = make_tiny(tmp_path / "llm", "llama")
    (tmp_path / "llm" / "generation_config.json").write_text('{"max_new_tokens": -1}')
    with pytest.raises(LLMNERError, match="generation_config.json has invalid values"):
        cpu(path).load()
