"""The messages about quantization and memory. None of these needs bitsandbytes."""

import json
import logging
import shutil

import pytest
import torch
from safetensors.torch import load_file

from spacy_llmner.errors import LLMNERError, LLMNotFoundError
from spacy_llmner.llm import memory, quantized_loading
from spacy_llmner.llm.memory import free_bytes, needed_bytes
from spacy_llmner.llm.registry import clear, make_llm
from spacy_llmner.llm.spec import LLMSpec
from tests.conftest import change_json

FOUR = "bitsandbytes-4bit"


@pytest.fixture
def folder(tiny_llm, tmp_path):
    """A copy that can be changed."""
    return shutil.copytree(tiny_llm, tmp_path / "llm")


def load(path, **settings):
    return make_llm(str(path), device="cpu", **settings).load()


@pytest.mark.parametrize("name", ["model-Q4_K_M.gguf", "model.GGUF"])
@pytest.mark.parametrize("exists", [True, False])
def test_gguf_file(tmp_path, name, exists):
    if exists:
        (tmp_path / name).write_bytes(b"GGUF")
    with pytest.raises(LLMNotFoundError, match=rf"LLMNER128.*{name}.*llama.cpp.*{FOUR}"):
        load(tmp_path / name)


@pytest.mark.parametrize("config", [True, False])
def test_folder_of_gguf_files(folder, config):
    (folder / "model.safetensors").unlink()
    (folder / "weights.gguf").write_bytes(b"GGUF")
    if not config:
        (folder / "config.json").unlink()
    with pytest.raises(LLMNotFoundError, match=r"LLMNER128.*weights\.gguf"):
        load(folder)


def test_gguf_beside_weights(folder):
    (folder / "weights.gguf").write_bytes(b"GGUF")
    assert load(folder).n_layers == 4


@pytest.mark.parametrize(
    "quantization, method, command",
    [
        (FOUR, "bitsandbytes", r'pip install "spacy-llmner\[quantized\]"'),
        (
            {"quant_method": "torchao", "quant_type": "int8_weight_only"},
            "torchao",
            "transformers 5",
        ),
        ({"quant_method": "gptq", "bits": 4}, "gptq", "gptqmodel"),
    ],
)
def test_missing_package(tiny_llm, monkeypatch, quantization, method, command):
    def missing(*args):
        raise ImportError("no such package")

    monkeypatch.setattr(quantized_loading, "_transformers_config", missing)
    match = rf"LLMNER129.*'{method}'.*no such package.*{command}"
    with pytest.raises(LLMNERError, match=match):
        load(tiny_llm, quantization=quantization)


def test_missing_package_of_a_folder(folder):
    """transformers says what is missing for weights that are quantized already."""
    change_json(folder / "config.json", quantization_config={"quant_method": "awq", "bits": 4})
    with pytest.raises(LLMNERError, match=r"LLMNER(129|134).*awq"):
        load(folder)


@pytest.mark.parametrize(
    "value, reason",
    [
        ("4bit", "neither one of the names nor a table"),
        ("", "neither one of the names nor a table"),
        ([4], "neither one of the names nor a table"),
        ({}, "the method 'None'"),
        ({"quant_method": "q4"}, "the method 'q4'"),
        ({"quant_method": "bitsandbytes"}, "neither `load_in_4bit` nor"),
        ({"load_in_4bit": True, "bnb_4bit_quant": "nf4"}, "no option 'bnb_4bit_quant'"),
    ],
)
def test_unknown_quantization(tiny_llm, value, reason):
    with pytest.raises(LLMNERError, match=rf"LLMNER130.*{reason}.*bitsandbytes-4bit.*gptq"):
        make_llm(tiny_llm, quantization=value)


def test_unknown_method_of_a_folder(folder):
    """transformers would ignore the method, and read packed weights as if they were not."""
    change_json(folder / "config.json", quantization_config={"quant_method": "q4"})
    with pytest.raises(LLMNERError, match=r"LLMNER130.*'q4'.*config\.json"):
        load(folder)


def test_quantized_already(folder):
    change_json(folder / "config.json", quantization_config={"quant_method": "gptq", "bits": 4})
    with pytest.raises(LLMNERError, match=r"LLMNER131.*already \(gptq\).*Remove `quantization`"):
        load(folder, quantization=FOUR)


def test_the_dtype_of_a_quantized_folder(folder):
    """It is that of its config, unless it is set."""
    change_json(folder / "config.json", quantization_config={"quant_method": "gptq", "bits": 4})
    assert LLMSpec(str(folder), device="cpu").resolve().dtype == "auto"
    assert LLMSpec(str(folder), dtype="float16", device="cpu").resolve().dtype == "float16"


@pytest.mark.parametrize(
    "free, advice",
    [
        (0.6, r"bfloat16.* or .*bitsandbytes-4bit"),
        (0.4, r"fit with `quantization = \"bitsandbytes-4bit\"` "),
        (0.001, "No dtype or quantization would make it fit"),
    ],
)
def test_too_little_memory(tiny_llm, monkeypatch, free, advice):
    """Before it is loaded, with the numbers and what would fit."""
    clear()  # another test may have loaded it
    needed = needed_bytes(tiny_llm, None, "float32")
    # A tiny LLM consists mostly of embeddings, which are never quantized.
    monkeypatch.setattr(memory, "UNQUANTIZED", ())
    monkeypatch.setattr(memory, "GB", 1)
    monkeypatch.setattr(memory, "free_bytes", lambda spec: int(free * needed))
    match = rf"LLMNER132.*needs {needed}\.00 GB in float32.*{int(free * needed)}\.00 GB.*{advice}"
    with pytest.raises(LLMNERError, match=match):
        load(tiny_llm)


def test_needed_memory(any_llm, tmp_path):
    """It is that of the model in memory."""
    model = load(any_llm).model
    values = sum(p.numel() for p in model.parameters())
    assert needed_bytes(any_llm, None, "float32") == 4 * values
    assert needed_bytes(any_llm, None, "bfloat16") == 2 * values
    matrices = sum(
        p.numel() for n, p in model.named_parameters() if ".layers." in n and p.dim() > 1
    )
    if matrices:
        expected = 4 * (values - matrices) + matrices * (0.5 + 4 / 64)
        assert needed_bytes(any_llm, None, "float32", FOUR) == int(expected)
    assert needed_bytes(any_llm, None, "float32", '{"quant_method": "torchao"}') is None
    assert needed_bytes(str(tmp_path), None, "float32") is None


def test_needed_memory_of_pickled_weights(folder):
    state = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    torch.save(state, folder / "pytorch_model.bin")
    exact = sum(tensor.nbytes for tensor in state.values())
    assert exact <= needed_bytes(str(folder), None, "float32") < 1.2 * exact
    assert load(folder).n_layers == 4


def test_limit_of_a_container(tmp_path, monkeypatch):
    spec = LLMSpec("x", device="cpu").resolve()
    monkeypatch.setattr(memory, "CGROUP", tmp_path)
    machine = free_bytes(spec)
    assert machine > 1000
    (tmp_path / "memory.max").write_text("3000\n")
    (tmp_path / "memory.current").write_text("2500\n")
    (tmp_path / "memory.stat").write_text("anon 5\ninactive_file 400\n")
    assert free_bytes(spec) == 900
    (tmp_path / "memory.max").write_text("max\n")
    assert free_bytes(spec) > 900


def test_a_broken_folder_is_not_a_question_of_memory(folder):
    (folder / "model.safetensors").write_bytes(b"not tensors")
    with pytest.raises(LLMNERError, match="LLMNER004"):
        load(folder)


def test_log_of_bitsandbytes():
    """Its message about casts comes in each layer of each pass."""
    record = logging.LogRecord(
        "x", 30, "x", 1, "MatMul8bitLt: inputs will be cast from", None, None
    )
    assert not quantized_loading._not_about_casts(record)


def test_saved_facts(pipelines, tmp_path):
    pipelines("ember_probe").to_disk(tmp_path)
    saved = json.loads((tmp_path / "ember_probe" / "cfg").read_text())["llm"]
    assert (saved["dtype"], saved["quantization"]) == ("float32", None)
