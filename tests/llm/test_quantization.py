"""Quantized LLMs. On a CPU, this needs bitsandbytes, which the tests don't install: without it, they are
skipped."""

import json
import warnings
from types import SimpleNamespace

import pytest
import spacy
import torch

from spacy_llmner.decoding.engine import DecodingEngine
from spacy_llmner.ember_probe.features.cache import FeatureCache
from spacy_llmner.errors import LLMNERError
from spacy_llmner.llm import quantized_loading
from spacy_llmner.llm import registry as pool
from spacy_llmner.llm.hidden_states import FeatureSpec, read_texts
from spacy_llmner.llm.lora import Adapter, AdapterSettings, new_adapter
from spacy_llmner.llm.quantization import is_packed_tensor
from spacy_llmner.llm.registry import make_llm
from tests.ember_probe import helpers as ember
from tests.helpers import TEXTS, assert_same, entities
from tests.padellm_ner import helpers as padellm
from tests.ra_it_ner import helpers as ra_it

FOUR, EIGHT = "bitsandbytes-4bit", "bitsandbytes-8bit"
IDS = [[0, 20, 31, 45, 60], [0, 70, 25], [0, 33, 91, 20, 20, 61, 34]]
LORA = AdapterSettings(rank=3, alpha=6, first_layer=0)
# Also quantize the LM head, which stays as it is by default.
ALL = {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4", "llm_int8_skip_modules": ["nothing"]}


@pytest.fixture(scope="module")
def wide_models(make_tiny, tmp_path_factory):
    """Folders of tiny random LLMs whose matrices are as wide as bitsandbytes needs them on some CPUs."""
    root = tmp_path_factory.mktemp("wide-llms")
    size = {"hidden_size": 64, "intermediate_size": 128, "max_position_embeddings": 1024}
    return {
        shape: make_tiny(root / shape, shape, 2, head_dim=16, scale=0.1, **size)
        for shape in ("llama", "qwen2", "gemma3", "gpt2")
    }


@pytest.fixture(scope="module")
def tiny_llm(wide_models):
    return wide_models["llama"]


@pytest.fixture(scope="module", params=["llama", "qwen2", "gemma3", "gpt2"])
def any_llm(request, wide_models):
    return wide_models[request.param]


def quantized(folder, quantization=FOUR, **settings):
    pytest.importorskip("bitsandbytes")
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*W023.*")
        return make_llm(str(folder), device="cpu", quantization=quantization, **settings).load()


def states(llm, texts=IDS):
    return [features.hidden for features in read_texts(llm, texts, FeatureSpec((2, 4)))]


def relative(found, expected):
    found, expected = torch.cat(found), torch.cat(expected)
    return float((found - expected).norm() / expected.norm())


@pytest.mark.parametrize(
    "quantization, most", [(FOUR, 0.4), (EIGHT, 0.05), ({"load_in_8bit": True}, 0.05)]
)
def test_states_are_close(any_llm, load, quantization, most):
    exact = load(any_llm)
    llm = quantized(any_llm, quantization)
    assert llm is not exact and llm is quantized(any_llm, quantization)
    assert llm.fingerprint == exact.fingerprint
    assert 1e-4 < relative(states(llm), states(exact)) < most
    matrices = [p for p in llm.decoder.parameters() if is_packed_tensor(p)]
    assert len(matrices) == 4 * (4 if "gpt2" in any_llm else 7)


def test_batches_and_trees(any_llm):
    """In 4 bits, a text has the same states alone, and in the trees of the decoding engine."""
    llm = quantized(any_llm)
    alone = torch.cat([states(llm, [ids])[0] for ids in IDS])
    assert torch.allclose(torch.cat(states(llm)), alone, atol=1e-4)
    after = read_texts(llm, [IDS[0][2:]], FeatureSpec((2, 4)), prefix=IDS[0][:2])[0].hidden
    assert torch.allclose(after, alone[2 : len(IDS[0])], atol=1e-4)


def test_a_quantized_head(tiny_llm):
    """Its rows can't be selected."""
    llm = quantized(tiny_llm, ALL)
    head = llm.model.lm_head
    hidden = torch.randn(3, llm.width)
    ids = torch.tensor([5, 2, 400])
    assert len(head.weight) != llm.n_logits == llm.model.config.vocab_size
    assert torch.equal(llm.logits(hidden, ids), llm.logits(hidden)[:, ids])

    def request(tree):
        node = tree.add(None, IDS[0], ask={4: ids.numpy()})
        yield
        return node.answers[4]

    answer = DecodingEngine(llm).run([request])[0]
    assert answer.ids.tolist() == ids.tolist()


@pytest.mark.parametrize("quantization", [FOUR, EIGHT])
def test_lora(any_llm, load, quantization):
    """LoRA matrices are float32, learn, and leave the packed weights alone."""
    llm = quantized(any_llm, quantization)
    ids = torch.tensor(IDS[:1])

    def forward(view):
        return view(input_ids=ids, use_cache=False).last_hidden_state

    with torch.no_grad():
        expected = forward(llm.decoder)
    before = {name: p.clone() for name, p in llm.model.named_parameters()}
    adapter, shapes = new_adapter(llm, LORA)
    assert {p.dtype for p in adapter.parameters()} == {torch.float32}
    view = adapter.attach(llm, LORA)
    assert torch.allclose(forward(view), expected, atol=1e-5)
    optimizer = torch.optim.Adam(adapter.parameters(), lr=0.01)
    losses = []
    for _ in range(8):
        loss = forward(view).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.95 * losses[0]
    assert all(torch.equal(p, before[name]) for name, p in llm.model.named_parameters())
    with torch.no_grad():
        assert torch.equal(forward(llm.decoder), expected)
        trained = forward(view)
        loaded = Adapter(shapes)
        loaded.load_state_dict(adapter.state_dict())
        assert torch.equal(forward(loaded.attach(llm, LORA)), trained)
        # The same adapter fits the LLM without quantization.
        exact = load(any_llm)
        delta = forward(adapter.attach(exact, LORA)) - forward(exact.decoder)
    assert delta.abs().max() > 1e-4


def test_no_copies_of_packed_weights(tiny_llm):
    llm = quantized(tiny_llm)
    with pytest.raises(LLMNERError, match=r"LLMNER135.*bitsandbytes-4bit.*`rank`"):
        new_adapter(llm, AdapterSettings(rank=0))


def test_saved_quantized(tiny_llm, tmp_path):
    """A folder that is quantized already is loaded as it is."""
    llm = quantized(tiny_llm)
    llm.model.save_pretrained(tmp_path)
    llm.tokenizer.hf.save_pretrained(tmp_path)
    found = make_llm(str(tmp_path), device="cpu").load()
    assert found.quantization == FOUR
    assert found.fingerprint != llm.fingerprint
    assert torch.allclose(torch.cat(states(found)), torch.cat(states(llm)), atol=1e-5)
    with pytest.raises(LLMNERError, match=r"LLMNER131.*already \(bitsandbytes-4bit\)"):
        quantized(tmp_path, EIGHT)


def test_dtype(tiny_llm):
    """The dtype is that of everything that is not quantized, and of the computation."""
    llm = quantized(tiny_llm, dtype="bfloat16")
    layer = llm.decoder.layers[0]
    assert llm.decoder.embed_tokens.weight.dtype == layer.input_layernorm.weight.dtype
    assert layer.self_attn.q_proj.compute_dtype == torch.bfloat16 == llm.model.dtype
    assert relative(states(llm), states(quantized(tiny_llm, dtype="float32"))) < 0.1


def test_eight_bits_warn(tiny_llm):
    pytest.importorskip("bitsandbytes")
    pool.clear()
    with pytest.warns(UserWarning, match=r"LLMNER-W023.*other texts of its batch"):
        make_llm(tiny_llm, device="cpu", quantization=EIGHT).load()


def set_quantization(folder, component, quantization=FOUR):
    """Change the config of a saved pipeline."""
    path = folder / "config.cfg"
    config = spacy.util.load_config(path)
    config["components"][component]["llm"]["quantization"] = quantization
    config.to_disk(path)


def block(llm, quantization=FOUR):
    return {
        "@misc": "spacy_llmner.LLM.v1",
        "name": str(llm),
        "device": "cpu",
        "quantization": quantization,
    }


def test_probe_of_another_precision(tiny_llm, tmp_path):
    """It is used, with one warning that says what the probe was trained on."""
    pytest.importorskip("bitsandbytes")
    nlp = ember.train(ember.make_nlp(tiny_llm, width=32))
    nlp.to_disk(tmp_path)
    cfg = json.loads((tmp_path / "ember_probe" / "cfg").read_text())["llm"]
    assert (cfg["dtype"], cfg["quantization"]) == ("float32", None)
    set_quantization(tmp_path, "ember_probe")
    other = spacy.load(tmp_path)
    match = r"LLMNER-W022.*in float32 without quantization.*in bitsandbytes-4bit"
    with pytest.warns(UserWarning, match=match):
        other(TEXTS[0])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = [entities(doc) for doc in other.pipe(TEXTS)]
    expected = [entities(doc) for doc in nlp.pipe(TEXTS)]
    assert sum(a == b for a, b in zip(found, expected)) >= len(TEXTS) - 2


@pytest.mark.parametrize("component", ["ember_probe", "padellm_ner", "ra_it_ner"])
def test_train_save_load(component, tiny_llm, tmp_path):
    """A pipeline trains on an LLM in 4 bits, and finds the same when it is loaded again."""
    pytest.importorskip("bitsandbytes")
    cfg = {"llm": block(tiny_llm)}
    if component == "ember_probe":
        nlp = ember.train(ember.make_nlp("", cfg=cfg, width=32))
    elif component == "padellm_ner":
        nlp = padellm.train(padellm.make_nlp("", cfg=cfg))
    else:
        cfg["encoder"] = {"@misc": "spacy_llmner.LLMEncoder.v1", "llm": cfg["llm"]}
        nlp = ra_it.train(ra_it.make_nlp("", cfg=cfg))
    found = list(nlp.pipe(TEXTS))
    assert sum(bool(doc.ents) for doc in found) >= 3
    nlp.to_disk(tmp_path)
    cfg = json.loads((tmp_path / component / "cfg").read_text())["llm"]
    assert cfg["quantization"] == FOUR
    pool.clear()
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*W022.*")
        for doc, text in zip(found, TEXTS):
            assert_same(spacy.load(tmp_path)(text), doc)


def test_a_table_in_a_config(tiny_llm, tmp_path):
    """Tables survive a config file."""
    table = {"load_in_4bit": True, "bnb_4bit_use_double_quant": True}
    nlp = ember.make_nlp("", cfg={"llm": {**block(tiny_llm, table)}})
    nlp.to_disk(tmp_path)
    spec = spacy.load(tmp_path).get_pipe("ember_probe").llm.spec
    assert json.loads(spec.quantization) == table
    assert spec == nlp.get_pipe("ember_probe").llm.spec


def test_cached_features(tiny_llm, load, tmp_path):
    """States of another precision are not mixed up."""
    reader = SimpleNamespace(key=lambda: "reader")
    caches = [FeatureCache(tmp_path, llm, reader) for llm in (load(tiny_llm), quantized(tiny_llm))]
    assert caches[0].folder != caches[1].folder


@pytest.mark.llm
def test_smollm2(smollm2, load):
    exact, llm = load(smollm2), quantized(smollm2)
    texts = [[0, *exact.tokenizer.hf(text)["input_ids"]] for text in TEXTS]
    spec = FeatureSpec((8, 15, 29))
    found, expected = (
        torch.cat([f.hidden[1:] for f in read_texts(model, texts, spec)]) for model in (llm, exact)
    )
    assert torch.nn.functional.cosine_similarity(found, expected, dim=-1).median() > 0.95
    assert llm.fingerprint == exact.fingerprint
    pool.clear()


def test_widths_that_bitsandbytes_computes_wrong(make_tiny, tmp_path, monkeypatch):
    """On some CPUs, it mixes up the scales of matrices whose width is not a multiple of the block size."""
    functional = pytest.importorskip("bitsandbytes.functional")
    narrow = make_tiny(tmp_path / "narrow", "llama")
    right = functional.dequantize_4bit

    def wrong(weight, state, *args, **kwargs):
        out = right(weight, state, *args, **kwargs)
        return out if out.shape[-1] % 64 == 0 else out + 1.0

    quantized_loading.computes_right.cache_clear()
    monkeypatch.setattr(functional, "dequantize_4bit", wrong)
    try:
        with pytest.raises(LLMNERError, match="LLMNER134.*32 columns"):
            quantized(narrow)
    finally:
        quantized_loading.computes_right.cache_clear()
