"""LLMs that only transformers 5 has, while they write: their caches and their upper layers are special."""

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from spacy_llmner.errors import LLMNERError
from spacy_llmner.llm.hidden_states import FeatureSpec, StepReader, tap_generation
from spacy_llmner.llm.registry import make_llm
from spacy_llmner.llm.views import generating_view
from tests.conftest import SIZE, byte_level_tokenizer
from tests.llm.test_hidden_states import Reader

N_TOKENS = 420  # of the tokenizer
FAMILIES = {
    # The upper two layers share their keys and values with the lower two.
    "gemma4_text": {
        "head_dim": 8,
        "global_head_dim": 8,
        "sliding_window": 4,
        "layer_types": ["sliding_attention", "full_attention"] * 2,
        "num_kv_shared_layers": 2,
        "hidden_size_per_layer_input": 8,
        "vocab_size_per_layer_input": N_TOKENS,
    },
    # Two layers without attention, which have a state instead of keys and values.
    "qwen3_5_text": {
        "head_dim": 8,
        "layer_types": ["linear_attention", "full_attention"] * 2,
        "linear_num_key_heads": 2,
        "linear_num_value_heads": 2,
        "linear_key_head_dim": 8,
        "linear_value_head_dim": 8,
    },
    "gpt_oss": {"head_dim": 8, "num_local_experts": 2, "num_experts_per_tok": 1},
}
IDS = [7, 30, 2, 99, 12, 55, 301, 8, 4, 77, 120]
LAYERS = (1, 3, 4)


@pytest.fixture(scope="module")
def folder_of(tmp_path_factory):
    """Get the folder of a tiny random LLM. Skips the test if transformers doesn't have its family."""
    folders = {}

    def get(family):
        if family not in CONFIG_MAPPING:
            pytest.skip(f"this version of transformers has no {family}")
        if family not in folders:
            path = folders[family] = str(tmp_path_factory.mktemp(family))
            tokenizer = byte_level_tokenizer()
            tokenizer.save_pretrained(path)
            ids = {"bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 1}
            settings = {**SIZE, **ids, **FAMILIES[family]}
            config = AutoConfig.for_model(family, vocab_size=N_TOKENS, **settings)
            model = AutoModelForCausalLM.from_config(config)
            generator = torch.Generator().manual_seed(0)
            with torch.no_grad():
                for name, parameter in model.named_parameters():
                    noise = torch.randn(parameter.shape, generator=generator)
                    parameter.copy_(1 + 0.1 * noise if "norm" in name else 0.3 * noise)
            model.save_pretrained(path)
        return folders[family]

    return get


@torch.no_grad()
def eager(folder, ids):
    """RETURNS (Tuple[Tensor, Tensor]): Hidden states (tokens, layers, width) and logits by transformers."""
    model = AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager").eval()
    out = model(torch.tensor([ids]), use_cache=False, output_hidden_states=True)
    return torch.stack([out.hidden_states[layer][0] for layer in LAYERS], dim=1), out.logits[0]


def assert_close(found, expected):
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-3)


@pytest.mark.parametrize("family", ["gemma4_text", "qwen3_5_text"])
def test_step_by_step(folder_of, family):
    llm = make_llm(folder_of(family), device="cpu").load()
    hidden, logits = eager(folder_of(family), IDS)
    steps = StepReader(llm, FeatureSpec(LAYERS))
    fed = [steps.feed(ids) for ids in (IDS[:6], *([token] for token in IDS[6:-1]))]
    last = steps.feed_last(IDS[-1:])
    assert_close(torch.cat([*(features.hidden for _, features in fed), last.hidden]), hidden)
    assert_close(torch.stack([found for found, _ in fed]), logits[5:-1])


@pytest.mark.parametrize("family", ["gemma4_text", "qwen3_5_text"])
def test_generate(folder_of, family):
    llm = make_llm(folder_of(family), device="cpu").load()
    with tap_generation(llm, FeatureSpec(LAYERS)) as read:
        reader = Reader(read)
        view = generating_view(llm, LAYERS)
        inputs = torch.tensor([IDS])
        out = view.generate(inputs, max_new_tokens=6, do_sample=False, streamer=reader)
    hidden, _ = eager(folder_of(family), out[0, :-1].tolist())
    assert_close(torch.cat([features.hidden for features in reader.found]), hidden)


def test_attention_sinks_are_refused(folder_of):
    with pytest.raises(LLMNERError, match=r"\(gpt_oss\) is not supported: its attention has sinks"):
        make_llm(folder_of("gpt_oss"), device="cpu").load()
