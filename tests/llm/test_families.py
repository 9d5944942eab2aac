"""LLMs of many families: right numbers, or a reason why not."""

import pytest
import torch
from transformers import AutoModelForCausalLM

from spacy_llmner.errors import LLMNERError
from spacy_llmner.llm.hidden_states import FeatureSpec, StepReader, read_texts
from spacy_llmner.llm.registry import make_llm
from spacy_llmner.llm.tree_attention import causal_pass, run_decoder
from spacy_llmner.models.versions import IS_5
from tests.conftest import change_json
from tests.llm.families import save_random_llm

IDS = [7, 30, 2, 99, 12, 55, 301, 8, 4, 77, 120]
# Families for every use, with settings in tests/llm/families.py that make a difference.
ALL_USES = (
    *(
        "llama",
        "mistral",
        "mixtral",
        "qwen2",
        "qwen3",
        "qwen3_moe",
        "gemma",
        "gemma2",
        "gemma3_text",
    ),
    *("phi", "phi3", "opt", "gpt2", "gpt_neox", "granite", "granitemoe", "cohere", "cohere2"),
    *("deepseek_v3", "olmo2", "smollm3", "glm4", "starcoder2", "helium"),
)
# Families that read finished texts and stream, but not trees. In transformers 5, some of them can do more.
NO_TREES = (
    *("falcon", "bloom", "gpt_neox_japanese"),
    *(("mpt", "xglm") if IS_5 else ("gptj", "codegen")),
)
# Families with recurrent or convolutional layers.
RECURRENT = ("mamba", "bamba")


@pytest.fixture(scope="module")
def folder_of(tmp_path_factory):
    folders = {}

    def get(family):
        if family not in folders:
            folders[family] = save_random_llm(tmp_path_factory.mktemp(family), family)
        return folders[family]

    return get


@pytest.mark.parametrize("family", ALL_USES)
@torch.no_grad()
def test_numbers_of_the_eager_model(folder_of, family):
    folder = folder_of(family)
    eager = AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager").eval()
    out = eager(torch.tensor([IDS]), output_hidden_states=True)
    expected = torch.log_softmax(out.logits[0].float(), -1)
    llm = make_llm(folder, device="cpu").load()
    assert not any(finding.reason for finding in llm.findings.values())
    hidden = read_texts(llm, [IDS, IDS[:4]], FeatureSpec((0, 2, llm.n_layers)))[0].hidden
    states = torch.stack([out.hidden_states[k][0] for k in (0, 2, llm.n_layers)], 1)
    torch.testing.assert_close(hidden, states, rtol=1e-3, atol=1e-3)
    positions = torch.arange(len(IDS))[None]
    one_pass = causal_pass(0, len(IDS), llm.device)
    hidden = run_decoder(llm.decoder, torch.tensor([IDS]), positions, one_pass)[0]
    ours = torch.log_softmax(llm.logits(hidden), -1)
    torch.testing.assert_close(ours, expected, rtol=0, atol=1e-4)
    some = torch.tensor([3, 50, 200])
    torch.testing.assert_close(llm.logits(hidden, some), llm.logits(hidden)[:, some])


@pytest.mark.parametrize("family", ["granite", "gemma2", "qwen3_moe", "deepseek_v3"])
def test_half_precision_is_not_refused(folder_of, family):
    """Rounding makes a difference, but a small one."""
    llm = make_llm(folder_of(family), device="cpu", dtype="bfloat16").load()
    assert llm.model.dtype == torch.bfloat16
    assert not any(finding.reason for finding in llm.findings.values())


@pytest.mark.parametrize("family", NO_TREES + RECURRENT)
@torch.no_grad()
def test_finished_texts_without_trees(folder_of, family):
    """EMBER needs neither trees nor attention that can be replaced."""
    folder = folder_of(family)
    eager = AutoModelForCausalLM.from_pretrained(folder).eval()
    states = eager(torch.tensor([IDS]), output_hidden_states=True, use_cache=False).hidden_states
    llm = make_llm(folder, device="cpu").load()
    hidden = read_texts(llm, [IDS, IDS[:4]], FeatureSpec((2,)))[0].hidden
    expected = states[1 if family == "mamba" else 2][
        0
    ]  # transformers leaves out Mamba's embeddings
    torch.testing.assert_close(hidden[:, 0], expected, rtol=1e-3, atol=1e-3)
    with pytest.raises(
        LLMNERError, match=r"share a prefix: some layers \(.*can be used in ember_p"
    ):
        read_texts(llm, [IDS], FeatureSpec((2,)), prefix=[5, 6])


@pytest.mark.parametrize("family", NO_TREES)
def test_streaming_without_trees(folder_of, family):
    llm = make_llm(folder_of(family), device="cpu").load()
    assert not llm.findings["streams"].reason
    reader = StepReader(llm, FeatureSpec((1,)))
    states = [reader.feed(IDS[:5])[1].hidden, *(reader.feed([i])[1].hidden for i in IDS[5:])]
    whole = read_texts(llm, [IDS], FeatureSpec((1,)))[0].hidden
    torch.testing.assert_close(torch.cat(states), whole, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("family", ["bert", "t5"])
def test_other_models_are_refused(folder_of, tmp_path, family):
    with pytest.raises((LLMNERError, ValueError), match="not supported|T5Config"):
        make_llm(folder_of(family), device="cpu").load()


def test_longrope_does_not_exceed_its_original_length(tmp_path):
    """transformers rotates all positions of a batch in another way if one of its texts is longer."""
    folder = save_random_llm(tmp_path / "phi3", "phi3")
    scaling = {"type": "longrope", "short_factor": [1.0] * 4, "long_factor": [2.0] * 4}
    change_json(
        tmp_path / "phi3" / "config.json",
        rope_scaling=scaling,
        original_max_position_embeddings=64,
    )
    llm = make_llm(folder, device="cpu").load()
    assert llm.model.config.max_position_embeddings == 256
    assert llm.max_length == 64
