import numpy
import pytest
import torch
from gguf import GGUFReader, GGUFWriter
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    LlamaConfig,
    LlamaForCausalLM,
)

from spacy_llmner.errors import LLMNERError
from spacy_llmner.models import catalogue, gguf_tokenizers, gguf_weights


def ids(text):
    return [int(token_id) for token_id in text.split()]


# What the original tokenizers make of these texts, as published in the test suites of independent
# ports that were written against the tokenizer.json of SmolLM, SmolLM2 and Gemma 3.
SMOLLM2_IDS = {
    "Hello, world!": ids("19556 28 905 17"),
    "The capital of France is Paris.": ids("504 3575 282 4649 314 7042 30"),
    "I have 42 cats and 3 dogs.": ids("57 457 216 36 34 7680 284 216 35 5046 30"),
    "12345 123 1 42 999": ids("33 34 35 36 37 216 33 34 35 216 33 216 36 34 216 41 41 41"),
    "123 4567 3.14159": ids("33 34 35 216 36 37 38 39 216 35 30 33 36 33 37 41"),
    "  Multiple   spaces  here": ids("216 16560 256 5600 216 1535"),
    "  leading and trailing spaces  ": ids("216 2899 284 35079 5600 256"),
    "line1\nline2\n\nline3": ids("1311 33 198 1311 34 198 198 1311 35"),
    "tabs\there\ttoo": ids("100 7366 197 1531 197 23034"),
    "can't won't don't": ids("4055 982 3763 982 1326 982"),
    "ALLCAPS lowercase MiXeD": ids("12631 33467 67 37748 11633 72 85 52"),
    "中英混合test测试123": ids(
        "28589 179 229 126 177 132 132 16357 226 2129 43222 229 16313 239 33 34 35"
    ),
    "Привет мир": ids("155 249 46879 16464 32547 41337 7872 9175"),
    "مرحبا بالعالم": ids("21706 20602 44626 31462 10805 45726 22208 34966 22208 21706"),
    "emoji: \U0001f469\u200d\U0001f4bb \U0001f680 \u2764\ufe0f": ids(
        "391 33777 42 15107 235 119 321 231 10813 236 136 15107 244 218 4636 247 114 31752"
    ),
    "<|im_start|>user\nHi there!<|im_end|>\n": ids("1 4093 198 26843 665 17 2 198"),
    "": ids(""),
}
GEMMA_IDS = {
    "Hello, world!": ids("9259 236764 1902 236888"),
    "The capital of France is": ids("818 5279 529 7001 563"),
    "1+1=2": ids("236770 236862 236770 236784 236778"),
    "def foo():\n    return 42": ids("2063 46293 6141 107 140 2060 236743 236812 236778"),
    "I'm don't can't": ids("236777 236789 236757 1537 236789 236745 740 236789 236745"),
    "Hello 你好": ids("9259 43758 237389"),
    "  spaces  and\ttabs": ids("138 35220 138 624 255968 39218"),
    "emoji: 🎉🚀": ids("67906 236787 204906 242015"),
    "<bos>Hello": ids("2 9259"),
}
# SmolLM2's vocabulary has no token for some bytes, and leaves them out.
NO_BYTE = "\x04\x06\x13\x14\x16\x1d"


@pytest.fixture(scope="session")
def smollm2_tokenizer(smollm2):
    return AutoTokenizer.from_pretrained(smollm2)


def write_gguf(path, model, fields):
    """Write a model as llama.cpp does."""
    config = model.config
    name = "llama" if config.model_type == "llama" else "gemma3"
    names = {new: old for old, new in gguf_weights.LAYER_NAMES[name].items()}
    names.update({new: old for old, new in gguf_weights.OTHER_NAMES.items()})
    writer = GGUFWriter(path, name)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_key_length(config.head_dim)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(1234.0)
    if name == "gemma3":
        writer.add_sliding_window(config.sliding_window)
    writer.add_tokenizer_model(fields["model"])
    writer.add_tokenizer_pre(fields["pre"])
    writer.add_token_list(fields["tokens"])
    writer.add_token_types(fields["types"])
    writer.add_token_scores(fields["scores"])
    writer.add_token_merges(fields["merges"])
    for token_id, add in enumerate(("unk", "bos", "eos", "pad")):
        getattr(writer, f"add_{add}_token_id")(token_id)
    for key, weights in model.state_dict().items():
        if key == "lm_head.weight":
            continue
        parts = key.removesuffix(".weight").removeprefix("model.").split(".")
        weights = weights.numpy()
        if parts[0] == "layers":
            new = f"blk.{parts[1]}.{names['.'.join(parts[2:])]}.weight"
        else:
            new = f"{names[parts[0]]}.weight"
        if name == "llama" and parts[-1] in ("q_proj", "k_proj"):
            heads = config.num_attention_heads if "q" in parts[-1] else config.num_key_value_heads
            split = weights.reshape(heads, 2, -1, weights.shape[1])
            weights = numpy.ascontiguousarray(split.swapaxes(1, 2).reshape(weights.shape))
        if name == "gemma3" and "norm" in parts[-1]:
            weights = weights + 1
        writer.add_tensor(new, weights)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


SHAPE = {
    "vocab_size": 8,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 7,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 4,
    "max_position_embeddings": 64,
    "rope_theta": 1234.0,
    "tie_word_embeddings": True,
}
TOKENS = ["<unk>", "<s>", "</s>", "<pad>", "a", "b", "ab", "1"]


@pytest.mark.parametrize("kind", ["llama", "gemma3"])
def test_gguf_conversion_gives_the_model_back(tmp_path, kind):
    torch.manual_seed(0)
    if kind == "llama":
        model = LlamaForCausalLM(LlamaConfig(**SHAPE, rms_norm_eps=1e-5))
    else:
        model = Gemma3ForCausalLM(
            Gemma3TextConfig(**SHAPE, query_pre_attn_scalar=4, sliding_window=3)
        )
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.3)
    fields = {
        "model": "gpt2" if kind == "llama" else "llama",
        "pre": "smollm" if kind == "llama" else "default",
        "tokens": TOKENS,
        "types": [3, 3, 3, 3, 1, 1, 1, 1],
        "scores": [0.0, 0.0, 0.0, 0.0, -3.0, -4.0, -1.0, -5.0],
        "merges": ["a b"],
    }
    write_gguf(tmp_path / "model.gguf", model, fields)
    path = tmp_path / "converted"
    path.mkdir()
    catalogue._convert_gguf(tmp_path / "model.gguf", path, 64, progress=False)
    saved = load_file(path / "model.safetensors")
    for name, weights in model.state_dict().items():
        if name != "lm_head.weight":
            torch.testing.assert_close(saved[name], weights, rtol=0, atol=1e-6)
    converted = AutoModelForCausalLM.from_pretrained(path, torch_dtype=torch.float32)
    ids = torch.tensor([[1, 4, 5, 6, 7, 4, 5, 6]])
    torch.testing.assert_close(
        converted.eval()(ids).logits, model.eval()(ids).logits, rtol=1e-3, atol=1e-4
    )
    tokenizer = AutoTokenizer.from_pretrained(path)
    assert dict(tokenizer("abab11")) == {"input_ids": [6, 6, 7, 7], "attention_mask": [1] * 4}
    assert (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id) == (1, 2, 3)
    assert tokenizer.decode([1, 6, 7, 2], skip_special_tokens=True) == "ab1"


def test_unsupported_gguf(tmp_path):
    fields = {
        "tokenizer.ggml.model": "bert",
        "tokenizer.ggml.tokens": [],
        "tokenizer.ggml.pre": "x",
    }
    fields["tokenizer.ggml.token_type"] = []
    with pytest.raises(LLMNERError, match="model is 'bert' and tokenizer.ggml.pre is 'x'"):
        gguf_tokenizers.build_tokenizer(fields)
    with pytest.raises(LLMNERError, match="architecture is 'mamba'.*llama, gemma3"):
        gguf_weights.build_config({"general.architecture": "mamba"})


def test_sentencepiece_bpe():
    space = gguf_tokenizers.SPACE
    pieces = {"abc": -0.0, "bc": -1.0, "ab": -2.0, f"{space}a": -3.0, "a": -4.0, "b": -5.0}
    pieces.update({"c": -6.0, space: -7.0})
    control, user_defined = {"<unk>": 3, "<bos>": 3}, {"  ": 4, "   ": 4, "\n": 4}
    raw_bytes = {f"<0x{i:02X}>": 6 for i in range(256)}
    kinds = {**control, **user_defined, **raw_bytes, **dict.fromkeys(pieces, 1)}
    scores = [pieces.get(token, -1000.0) for token in kinds]
    tokenizer = gguf_tokenizers.sentencepiece_bpe(
        list(kinds), list(kinds.values()), scores, "<unk>"
    )

    def tokens(text):
        encoded = tokenizer.encode(text)
        assert tokenizer.decode(encoded.ids, skip_special_tokens=False) == text
        return encoded.tokens

    # The highest score comes first: bc before ab before the space and a; abc is merged from a, bc.
    assert tokens("abc ab") == ["abc", space, "ab"]
    assert tokens("abb") == ["ab", "b"]
    # Runs of spaces and user-defined tokens are found first, the longest run first, and not merged.
    assert tokens("   a") == [space * 3, "a"]
    assert tokens("b    a") == ["b", space * 3, f"{space}a"]
    assert tokens("a\nb") == ["a", "\n", "b"]
    assert tokens("é") == ["<0xC3>", "<0xA9>"]
    assert tokens("<bos>a") == ["<bos>", "a"]
    assert tokenizer.encode("ab").offsets == [(0, 2)]


def test_merges_from_scores():
    scores = {"abc": -0.0, "bc": -1.0, "ab": -2.0, "a": -3.0, "b": -4.0, "c": -5.0}
    merges = gguf_tokenizers.merges_from_scores(scores)
    assert merges == [("a", "bc"), ("ab", "c"), ("b", "c"), ("a", "b")]


@pytest.mark.llm
@pytest.mark.parametrize("text", SMOLLM2_IDS)
def test_smollm2_encodes_as_the_original(smollm2_tokenizer, text):
    encoded = smollm2_tokenizer(text)
    assert encoded["input_ids"] == SMOLLM2_IDS[text]
    assert set(encoded) == {"input_ids", "attention_mask"}
    assert smollm2_tokenizer.decode(encoded["input_ids"]) == text


@pytest.mark.llm
def test_smollm2_special_tokens(smollm2_tokenizer):
    tokenizer = smollm2_tokenizer
    assert (tokenizer.bos_token, tokenizer.eos_token, tokenizer.pad_token, tokenizer.unk_token) == (
        "<|im_start|>",
        "<|im_end|>",
        "<|im_end|>",
        "<|endoftext|>",
    )
    assert (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id) == (1, 2, 2)
    assert tokenizer.model_max_length == 8192
    assert len(tokenizer) == 49152
    chat = [{"role": "user", "content": "Hi"}]
    text = tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
    assert text.startswith("<|im_start|>system\nYou are a helpful AI assistant")
    assert text.endswith("<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n")
    assert tokenizer(text)["input_ids"][:2] == [1, 9690]
    assert "im_start" not in tokenizer.decode(
        tokenizer(text)["input_ids"], skip_special_tokens=True
    )


@pytest.mark.llm
@given(text=st.text(st.characters(codec="utf8", exclude_characters=NO_BYTE, max_codepoint=0x3FFFF)))
def test_smollm2_round_trip(smollm2_tokenizer, text):
    ids = smollm2_tokenizer(text)["input_ids"]
    assert smollm2_tokenizer.decode(ids) == text


@pytest.mark.llm
@given(text=st.text(st.sampled_from("0123456789 .,\nabAB-")))
def test_smollm2_digits_stand_alone(smollm2_tokenizer, text):
    offsets = smollm2_tokenizer(text, return_offsets_mapping=True)["offset_mapping"]
    for start, end in offsets:
        piece = text[start:end]
        assert piece.isdigit() == any(char.isdigit() for char in piece)
        assert len(piece) == 1 or not piece.isdigit()


@pytest.mark.llm
@pytest.mark.parametrize("char", NO_BYTE)
def test_smollm2_leaves_out_bytes_without_token(smollm2_tokenizer, char):
    encoded = smollm2_tokenizer(f"a{char}b", return_offsets_mapping=True)
    assert smollm2_tokenizer.decode(encoded["input_ids"]) == "ab"
    assert encoded["offset_mapping"][-1][1] == 3


def test_gemma_encodes_as_the_original():
    # Its licence has to be accepted, so it is tested where somebody has.
    path = catalogue.path_of("gemma-3-270m")
    if path is None:
        pytest.skip("gemma-3-270m is not downloaded")
    tokenizer = AutoTokenizer.from_pretrained(path)
    for text, ids in GEMMA_IDS.items():
        assert tokenizer(text)["input_ids"] == ids
        assert tokenizer.decode(ids) == text
    assert (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id) == (2, 1, 0)


def test_gguf_metadata_is_plain(tmp_path):
    writer = GGUFWriter(tmp_path / "x.gguf", "llama")
    writer.add_token_list(["a", "b"])
    writer.add_block_count(3)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    fields = gguf_weights.read_fields(GGUFReader(tmp_path / "x.gguf"))
    assert fields["tokenizer.ggml.tokens"] == ["a", "b"]
    assert fields["llama.block_count"] == 3
