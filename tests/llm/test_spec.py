import multiprocessing
import os

import pytest
import torch

from spacy_llmner.errors import LLMNERError
from spacy_llmner.llm import spec as spec_module
from spacy_llmner.llm.spec import DTYPES, LLMSpec, is_forked


@pytest.fixture
def no_cuda(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)


@pytest.fixture
def two_gpus(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 1)


def test_auto_on_a_cpu(no_cuda):
    spec = LLMSpec("x").resolve()
    assert spec == LLMSpec("x", None, "float32", "cpu")
    assert spec.resolve() == spec
    assert hash(spec) == hash(LLMSpec("x", device="cpu").resolve())


@pytest.mark.parametrize(
    ("device", "resolved", "dtype"),
    [
        ("auto", "cuda:1", "bfloat16"),
        ("cuda", "cuda:1", "bfloat16"),
        ("cuda:0", "cuda:0", "bfloat16"),
        ("cpu", "cpu", "float32"),
    ],
)
def test_auto_with_gpus(two_gpus, device, resolved, dtype):
    spec = LLMSpec("x", device=device).resolve()
    assert (spec.device, spec.dtype) == (resolved, dtype)


@pytest.mark.parametrize("dtype", DTYPES)
def test_what_is_named_stays(no_cuda, dtype):
    spec = LLMSpec("x", "v1.0", dtype, "cpu")
    assert spec.resolve() == spec


@pytest.mark.parametrize("dtype", ["int8", "", "float64", "torch.float32", "Float32"])
def test_unknown_dtype(dtype):
    with pytest.raises(LLMNERError) as error:
        LLMSpec("x", dtype=dtype)
    assert f"'{dtype}' is not a valid dtype" in str(error.value)
    assert "auto, float32, bfloat16, float16" in str(error.value)


@pytest.mark.parametrize("device", ["gpu", "", "cuda:", "cuda:x", "cuda:-1", "cpu:0", "CPU", "mps"])
def test_unknown_device(device):
    with pytest.raises(LLMNERError) as error:
        LLMSpec("x", device=device)
    assert f"'{device}' is not a valid device" in str(error.value)
    assert "auto, cpu, cuda, cuda:0" in str(error.value)


@pytest.mark.parametrize("device", ["cuda", "cuda:0"])
def test_no_gpu(no_cuda, device):
    spec = LLMSpec("x", device=device)  # a config for a machine with a GPU can be read anywhere
    with pytest.raises(LLMNERError) as error:
        spec.resolve()
    assert f"'{device}' is not available: torch sees no CUDA device" in str(error.value)
    assert "Set `device` of the LLM to 'cpu' or 'auto'" in str(error.value)


def test_missing_gpu(two_gpus):
    with pytest.raises(LLMNERError, match="'cuda:2' is not available: torch sees 2 CUDA"):
        LLMSpec("x", device="cuda:2").resolve()


def test_forked_process(two_gpus, monkeypatch):
    monkeypatch.setattr(multiprocessing, "parent_process", lambda: object())
    assert not is_forked()  # spawned: it has a GPU of its own
    assert LLMSpec("x").resolve().device == "cuda:1"
    monkeypatch.setattr(spec_module, "_was_forked", True)
    assert LLMSpec("x", device="cpu").resolve().device == "cpu"
    with pytest.raises(LLMNERError, match="n_process > 1 can't be used with an LLM .* on cuda"):
        LLMSpec("x").resolve()


@pytest.mark.skipif(not hasattr(os, "register_at_fork"), reason="no fork here")
@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_who_was_forked(method):
    with multiprocessing.get_context(method).Pool(1) as processes:
        assert processes.apply(is_forked) == (method == "fork")
    assert not is_forked()
