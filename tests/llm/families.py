"""Tiny random LLMs of any family that transformers has."""

from pathlib import Path
from typing import Any, Dict

import torch
from transformers import AutoConfig, AutoModelForCausalLM

from tests.conftest import SIZE, byte_level_tokenizer

# Settings that make a difference: scales of logits, soft caps, values of another width than queries.
SETTINGS: Dict[str, Dict[str, Any]] = {
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
}
SETTINGS["lfm2"] = {"layer_types": ["conv", "full_attention"] * 2, "conv_L_cache": 3}
SETTINGS["deepseek_v2"] = SETTINGS["deepseek_v3"]
# Other names of the sizes, which configs ignore if they don't know them.
SMALL = {
    **{"head_dim": 8, "ffn_dim": 48, "d_model": 32, "n_heads": 4, "word_embed_proj_dim": 32},
    **{"n_embd": 32, "n_inner": 48, "n_layer": 4, "n_head": 4, "n_positions": 256},
    **{"num_local_experts": 2, "num_experts": 2, "n_routed_experts": 2, "num_experts_per_tok": 1},
    **{"moe_intermediate_size": 16, "sliding_window": 4, "layers": 4, "decoder_layers": 4},
    **{"encoder_layers": 1, "d_kv": 8, "num_layers": 4, "d_ff": 48, "num_heads": 4},
    **{
        "rotary_dim": 8,
        "shared_expert_intermediate_size": 16,
        "ffn_hidden_size": 48,
        "state_size": 8,
    },
    **{"mamba_n_heads": 4, "mamba_d_head": 16, "mamba_d_state": 8, "mamba_n_groups": 1},
    **{"linear_num_value_heads": 4, "linear_num_key_heads": 2, "linear_key_head_dim": 8},
    **{"linear_value_head_dim": 8, "n_group": 1, "topk_group": 1},
}
MAX_PARAMETERS = 30_000_000


def save_random_llm(folder: Path, family: str) -> str:
    """Save a tiny random LLM with a byte-level tokenizer.

    family (str): The model type, as in config.json.
    RETURNS (str): The folder.
    """
    tokenizer = byte_level_tokenizer()
    ids = {"bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 1, "vocab_size": len(tokenizer)}
    if family in SETTINGS:
        settings = [{**SIZE, **ids, **SETTINGS[family]}]
    else:  # the first settings that the family's config and model accept
        own = _own_settings(family)
        settings = [{**own, **SIZE, **ids}, {**SIZE, **ids}, {**own, **ids}]
    error: Exception = ValueError(family)
    for values in settings:
        try:
            config = AutoConfig.for_model(family, **values)
            with torch.device("meta"):
                model = AutoModelForCausalLM.from_config(config)
            if sum(p.numel() for p in model.parameters()) > MAX_PARAMETERS:
                error = ValueError("the smallest model that was tried is too large")
                continue
            model = AutoModelForCausalLM.from_config(config)
            break
        except Exception as e:
            error = e
    else:
        raise error
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            is_norm = "norm" in name or "ln_" in name
            parameter.copy_(1 + 0.1 * noise if is_norm else 0.3 * noise)
    tokenizer.save_pretrained(folder)
    model.save_pretrained(folder)
    return str(folder)


def _own_settings(family: str) -> Dict[str, Any]:
    """RETURNS (Dict[str, Any]): The sizes that a family's config has. A cache would take a sliding window
    into account, even if the model has none."""
    try:
        config = AutoConfig.for_model(family)
    except Exception:  # some configs have no defaults
        return SMALL
    return {name: value for name, value in SMALL.items() if hasattr(config, name)}
