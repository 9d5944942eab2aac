"""LLMs that are spread over several devices. The second device is torch's "meta" device: it computes shapes
only, but raises an error for tensors of another device, as a GPU does."""

import json

import numpy as np
import pytest
import spacy
import torch

from spacy_llmner.decoding.forward import ForwardPasses
from spacy_llmner.errors import LLMNERError
from spacy_llmner.llm import lora
from spacy_llmner.llm import registry as pool
from spacy_llmner.llm.hidden_states import FeatureSpec, StepReader, read_texts
from spacy_llmner.llm.loading import LoadedLLM, load_llm
from spacy_llmner.llm.lora import AdapterSettings, new_adapter
from spacy_llmner.llm.packing import TrainingSequence, pack, target_logits
from spacy_llmner.llm.placement import device_of, follow_devices
from spacy_llmner.llm.registry import make_llm
from spacy_llmner.llm.spec import LLMSpec
from tests.ember_probe import helpers as ember

IDS = [0, 20, 31, 45, 60]
META = torch.device("meta")
# All parts of a Llama.
PARTS = {"model.embed_tokens": "cpu", "model.layers": "cpu", "model.norm": "cpu", "lm_head": "cpu"}


@pytest.fixture
def spread(any_llm):
    """An LLM whose upper two layers, final norm and LM head are on the "meta" device."""
    llm = load_llm(LLMSpec(any_llm, device_map="auto").resolve())
    decoder = llm.decoder
    blocks = decoder.h if hasattr(decoder, "h") else decoder.layers
    norm = decoder.ln_f if hasattr(decoder, "ln_f") else decoder.norm
    head = llm.model.lm_head
    if head.weight is llm.model.get_input_embeddings().weight:
        head.weight = torch.nn.Parameter(head.weight.clone())
    for module in (blocks[2], blocks[3], norm, head):
        module.to(META)
    follow_devices(llm.model)
    return LoadedLLM(llm.spec, llm.model, llm.tokenizer, llm.fingerprint)


def test_device(spread):
    assert spread.is_spread and spread.device == torch.device("cpu")


def test_tree_passes(spread):
    """Keys, values and masks are on the device of each layer."""
    passes = ForwardPasses(spread.device)
    for start, ids in ((0, IDS), (len(IDS), [70, 71])):
        n, positions = len(ids), np.arange(start, start + len(ids))
        mask = np.tril(np.ones((n, start + n), bool), start)
        numbers = np.array([ids, positions, positions])
        hidden = passes.forward(spread.decoder, numbers, mask, np.arange(start + n))
        assert hidden.device == META and hidden.shape == (n, spread.width)
    devices = [passes.cache.keys[layer].device.type for layer in range(4)]
    assert devices == ["cpu", "cpu", "meta", "meta"]
    copied = passes.cache.copy(torch.tensor([2, 0]))
    assert [copied.keys[layer].device.type for layer in range(4)] == devices
    assert spread.logits(hidden, torch.tensor([3, 5])).shape == (2, 2)
    assert spread.logits(hidden).device == META


def test_views(spread, any_llm, load):
    """Recorded layers below the border are those of the LLM on one device."""
    spec = FeatureSpec((1, 2))
    expected = read_texts(load(any_llm), [IDS, IDS[:2]], spec)
    for found, exact in zip(read_texts(spread, [IDS, IDS[:2]], spec), expected):
        assert torch.equal(found.hidden, exact.hidden)
    with pytest.raises(
        NotImplementedError
    ):  # values of "meta" can't come back, so they were asked for
        StepReader(spread, spec).feed(IDS)


def test_training(spread, any_llm, load):
    """LoRA matrices go to the devices of their layers. ("meta" tensors have no gradients to train them.)"""
    adapter, _ = new_adapter(load(any_llm), AdapterSettings(rank=2, first_layer=0))
    for name, _ in adapter.named_parameters():
        layer = int(next(part for part in name.split("/") if part.isdigit()))
        owner = name.rpartition("/")[0]
        assert lora._device_of(owner, spread).type == ("cpu" if layer < 2 else "meta")
    packed = pack([TrainingSequence(IDS, [False, *[True] * 4])])
    assert target_logits(spread, spread.decoder, [packed]).shape == (4, spread.n_logits)


@pytest.mark.parametrize("device_map", ["auto", PARTS])
def test_one_device(tiny_llm, load, device_map):
    """With all of it on the CPU, an LLM with a device_map is as any other."""
    llm = make_llm(tiny_llm, device_map=device_map, dtype="float32").load()
    if llm.device.type != "cpu":
        pytest.skip("there is a GPU")
    exact = load(tiny_llm)
    assert llm is not exact and llm.fingerprint == exact.fingerprint
    assert device_of(llm.model) == llm.device and not llm.is_spread
    spec = FeatureSpec((2, 4))
    found, expected = (read_texts(x, [IDS], spec)[0].hidden for x in (llm, exact))
    assert torch.equal(found, expected)
    assert not any(hasattr(module, "_hf_hook") for module in llm.model.modules())


def test_a_table_in_a_config(tiny_llm, tmp_path):
    block = {"@misc": "spacy_llmner.LLM.v1", "name": tiny_llm, "device_map": PARTS}
    nlp = ember.train(ember.make_nlp("", cfg={"llm": block}, width=16), steps=1)
    nlp.to_disk(tmp_path)
    pool.clear()
    other = spacy.load(tmp_path)
    spec = other.get_pipe("ember_probe").llm.spec
    assert json.loads(spec.device_map) == PARTS
    assert pool.count_handles(spec) >= 1
    assert other("Mira Stone met Oskar Blum.").text
    assert "device_map" in repr(other.get_pipe("ember_probe").llm)


def test_key(tiny_llm):
    keys = [
        make_llm(tiny_llm, **settings).key
        for settings in (
            {"device_map": PARTS},
            {"device_map": dict(reversed(PARTS.items()))},
            {"device_map": "auto"},
            {"device": "cpu"},
            {"device": "cpu", "quantization": "bitsandbytes-4bit"},
            {"device": "cpu", "quantization": "bitsandbytes-8bit"},
        )
    ]
    assert keys[0] == keys[1] and len(set(keys)) == 5


def test_device_and_device_map(tiny_llm):
    with pytest.raises(LLMNERError, match=r"LLMNER133.*\(cpu\).*\(auto\)"):
        make_llm(tiny_llm, device="cpu", device_map="auto")


@pytest.mark.parametrize(
    "value", ["balanced", {}, {"": "cpu"}, {"model": "disk"}, {"model": "cuda"}, [1], "[1]"]
)
def test_wrong_device_map(tiny_llm, value):
    with pytest.raises(LLMNERError, match=r"LLMNER006.*not a valid device_map.*cuda:0"):
        make_llm(tiny_llm, device_map=value)


def test_numbers_are_gpus(tiny_llm):
    spec = make_llm(tiny_llm, device_map={"model": 1, "lm_head": "cpu"}).spec
    assert spec.device_map_table == {"model": "cuda:1", "lm_head": "cpu"}
    assert spec.main_device == "cuda:1"


def test_incomplete_device_map(tiny_llm):
    table = {"model.layers": "cpu"}
    with pytest.raises(LLMNERError, match=r"LLMNER134.*device_map.*all parts of the model"):
        make_llm(tiny_llm, device_map=table).load()
