"""LLMs of more families: the log-probabilities match those of the model's own eager attention."""

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from spacy_llmner.errors import LLMNERError
from spacy_llmner.llm import lm_head, loading
from spacy_llmner.llm.registry import make_llm
from spacy_llmner.llm.tree_attention import causal_pass, run_decoder
from tests.conftest import SIZE, byte_level_tokenizer

# Settings that make a difference: scales of logits, soft caps, values with a different width than queries.
FAMILIES = {
    "granite": {"logits_scaling": 4.0, "attention_multiplier": 0.3, "residual_multiplier": 0.5},
    "granitemoe": {"logits_scaling": 4.0, "num_local_experts": 2, "num_experts_per_tok": 1},
    "cohere": {"logit_scale": 0.25},
    "cohere2": {"logit_scale": 0.25, "sliding_window": 4, "head_dim": 8},
    "gemma2": {
        "head_dim": 8,
        "query_pre_attn_scalar": 8,
        "sliding_window": 4,
        "attn_logit_softcapping": 1.0,
        "final_logit_softcapping": 2.0,
    },
    "deepseek_v3": {
        "num_key_value_heads": 4,
        "kv_lora_rank": 8,
        "q_lora_rank": 8,
        "qk_nope_head_dim": 8,
        "qk_rope_head_dim": 4,
        "v_head_dim": 6,
        "first_k_dense_replace": 4,
    },
    "olmo2": {},
    "phi3": {},
}
IDS = [7, 30, 2, 99, 12, 55, 301, 8, 4, 77, 120]


@pytest.fixture(scope="module", params=FAMILIES)
def folder(request, tmp_path_factory):
    """Folder of a tiny random LLM."""
    path = tmp_path_factory.mktemp(request.param)
    tokenizer = byte_level_tokenizer()
    tokenizer.save_pretrained(path)
    ids = {"bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 1}
    settings = {**SIZE, **ids, **FAMILIES[request.param]}
    config = AutoConfig.for_model(request.param, vocab_size=len(tokenizer), **settings)
    model = AutoModelForCausalLM.from_config(config)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            parameter.copy_(1 + 0.1 * noise if "norm" in name else 0.3 * noise)
    model.save_pretrained(path)
    return str(path)


@torch.no_grad()
def test_numbers_of_the_eager_model(folder):
    eager = AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager").eval()
    expected = torch.log_softmax(eager(torch.tensor([IDS])).logits[0].float(), -1)
    llm = make_llm(folder, device="cpu").load()
    own = torch.log_softmax(llm.model(torch.tensor([IDS])).logits[0].float(), -1)
    torch.testing.assert_close(own, expected, rtol=0, atol=1e-4)
    positions = torch.arange(len(IDS))[None]
    one_pass = causal_pass(0, len(IDS), llm.device)
    hidden = run_decoder(llm.decoder, torch.tensor([IDS]), positions, one_pass)[0]
    ours = torch.log_softmax(llm.logits(hidden), -1)
    torch.testing.assert_close(ours, expected, rtol=0, atol=1e-4)
    some = torch.tensor([3, 50, 200])
    torch.testing.assert_close(llm.logits(hidden, some), llm.logits(hidden)[:, some])


def test_half_precision_is_not_refused(folder):
    """A scale or a cap after rounding differs a little from one before it."""
    llm = make_llm(folder, device="cpu", dtype="bfloat16").load()
    assert llm.model.dtype == torch.bfloat16


def test_other_log_probabilities_are_refused(tiny_llm, monkeypatch):
    """For example, because a model multiplies its logits by a factor that we don't know of."""
    logits = lm_head.lm_logits
    monkeypatch.setattr(lm_head, "lm_logits", lambda *args: 0.5 * logits(*args))
    with pytest.raises(LLMNERError, match=r"\(llama\) is not supported: .* differ .* nats"):
        loading.load_llm(make_llm(tiny_llm, device="cpu").spec.resolve())
