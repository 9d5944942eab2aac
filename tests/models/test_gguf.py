import unicodedata

import pytest
import torch
from gguf import GGUFReader, GGUFWriter
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from spacy_llmner.errors import LLMNERError
from spacy_llmner.models import catalogue, gguf_tokenizers, gguf_weights
from tests.models.gguf_files import FIELDS, tiny_model, write_gguf


def ids(text):
    return [int(token_id) for token_id in text.split()]


# What the original tokenizers make of these texts, as published in the test suites of independent
# ports that were written against the tokenizer.json of SmolLM, SmolLM2, Gemma 3 and Qwen 3.
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
QWEN_IDS = {
    "Hello, world!": ids("9707 11 1879 0"),
    "The capital of France is": ids("785 6722 315 9625 374"),
    "I’M I'm we're they've I'll I'd": ids("40 527 44 358 2776 582 2299 807 3003 358 3278 358 4172"),
    "a   b    ": ids("64 256 293 257"),
    "one\r\ntwo\n\nthree\t end": ids("603 319 19789 271 27856 197 835"),
    "中文 Ελληνικά русский हिन्दी العربية": ids(
        "104811 7851 243 33486 33486 41424 33269 29762 67337 74134 18108 43055 126302 84310 42311 101 "
        "30484 99 43647 129071"
    ),
    "emoji 👩🏽\u200d💻🚀 — café cafe\u0301": ids(
        "37523 61804 102 145375 378 235 145851 145836 1959 51950 51950"
    ),
    "0 12 345 6789": ids("15 220 16 17 220 18 19 20 220 21 22 23 24"),
    "<|im_start|>assistant\n<|im_end|>\n": ids("151644 77091 198 151645 198"),
}
# SmolLM2's vocabulary has no token for some bytes, and leaves them out.
NO_BYTE = "\x04\x06\x13\x14\x16\x1d"


@pytest.fixture(scope="session")
def smollm2_tokenizer(smollm2):
    return AutoTokenizer.from_pretrained(smollm2)


def convert(path, model, fields, dtype="float32", head=None):
    write_gguf(path / "model.gguf", model, fields, head)
    converted = path / "converted"
    converted.mkdir()
    catalogue._convert_gguf(path / "model.gguf", converted, 64, dtype, progress=False)
    return converted


@pytest.mark.parametrize("kind", ["llama", "gemma3", "qwen2"])
def test_gguf_conversion_gives_the_model_back(tmp_path, kind):
    model = tiny_model(kind)
    path = convert(tmp_path, model, FIELDS[kind])
    saved = load_file(path / "model.safetensors")
    for name, weights in model.state_dict().items():
        if name != "lm_head.weight":
            torch.testing.assert_close(saved[name], weights, rtol=0, atol=1e-6)
    assert len(saved) == len(model.state_dict()) - 1
    converted = AutoModelForCausalLM.from_pretrained(path, torch_dtype=torch.float32)
    ids = torch.tensor([[1, 4, 5, 6, 7, 4, 5, 6]])
    torch.testing.assert_close(
        converted.eval()(ids).logits, model(ids).logits, rtol=1e-3, atol=1e-4
    )
    tokenizer = AutoTokenizer.from_pretrained(path)
    assert dict(tokenizer("abab11")) == {"input_ids": [6, 6, 7, 7], "attention_mask": [1] * 4}
    # Qwen2 has no BOS token, although its file names one.
    bos = None if kind == "qwen2" else 1
    assert (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id) == (bos, 2, 3)
    assert tokenizer.decode([1, 6, 7, 2], skip_special_tokens=True) == "ab1"


def test_weights_are_as_safetensors_writes_them(tmp_path):
    """Pipelines store a fingerprint of all bytes of the file."""
    path = convert(tmp_path, tiny_model("llama"), FIELDS["llama"])
    again = tmp_path / "again.safetensors"
    save_file(load_file(path / "model.safetensors"), again, metadata={"format": "pt"})
    assert again.read_bytes() == (path / "model.safetensors").read_bytes()


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_conversion_to_16_bits(tmp_path, dtype):
    model = tiny_model("qwen2")
    path = convert(tmp_path, model, FIELDS["qwen2"], dtype)
    saved = load_file(path / "model.safetensors")
    for name, weights in model.state_dict().items():
        if name != "lm_head.weight":
            torch.testing.assert_close(saved[name], weights.to(getattr(torch, dtype)))
    assert AutoModelForCausalLM.from_pretrained(path, torch_dtype="auto").dtype is getattr(
        torch, dtype
    )


@pytest.mark.parametrize("tied", [True, False])
def test_lm_head_in_the_file(tmp_path, tied):
    """Llama.cpp can quantize one matrix in two ways: then the finer one becomes the embeddings."""
    model = tiny_model("qwen2")
    coarse = model.model.embed_tokens.weight.detach().numpy().copy()
    fine = (coarse + 0.001).astype("float32") if tied else coarse[::-1].copy()
    path = convert(tmp_path, model, FIELDS["qwen2"], head=fine)
    converted = AutoModelForCausalLM.from_pretrained(path, torch_dtype=torch.float32)
    assert converted.config.tie_word_embeddings is tied
    torch.testing.assert_close(converted.lm_head.weight.detach(), torch.from_numpy(fine))
    embeddings = torch.from_numpy(fine if tied else coarse)
    torch.testing.assert_close(
        converted.model.embed_tokens.weight.detach(), embeddings, rtol=0, atol=1e-3
    )


def test_unexpected_bias(tmp_path):
    """A Llama with biases must not be converted without them."""
    fields = {**FIELDS["llama"]}
    model = tiny_model("qwen2")
    model.config.model_type = "llama"
    with pytest.raises(LLMNERError, match=r"unexpected tensor 'blk.0.attn_\w.bias'"):
        convert(tmp_path, model, fields)


def test_unsupported_gguf(tmp_path):
    fields = {
        "tokenizer.ggml.model": "bert",
        "tokenizer.ggml.tokens": [],
        "tokenizer.ggml.pre": "x",
    }
    fields["tokenizer.ggml.token_type"] = []
    with pytest.raises(LLMNERError, match="model is 'bert' and tokenizer.ggml.pre is 'x'"):
        gguf_tokenizers.build_tokenizer(fields)
    with pytest.raises(LLMNERError, match="architecture is 'mamba'.*llama, gemma3, qwen2"):
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


@pytest.mark.parametrize("size", ["0.5b", "1.5b"])
def test_qwen_encodes_as_the_original(size):
    # It is large, so it is tested where somebody has downloaded it.
    path = catalogue.path_of(f"qwen2.5-coder-{size}-instruct")
    if path is None:
        pytest.skip("it is not downloaded")
    tokenizer = AutoTokenizer.from_pretrained(path)
    for text, expected in QWEN_IDS.items():
        assert tokenizer(text)["input_ids"] == expected
        assert tokenizer.decode(expected) == unicodedata.normalize("NFC", text)
    special = (tokenizer.bos_token, tokenizer.eos_token, tokenizer.pad_token)
    assert special == (None, "<|im_end|>", "<|endoftext|>")
    chat = [{"role": "user", "content": "Hi"}]
    text = tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
    assert text.startswith("<|im_start|>system\nYou are Qwen")
    assert text.endswith("<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n")
    decoded = tokenizer.decode(tokenizer(text)["input_ids"], skip_special_tokens=True)
    assert "im_start" not in decoded


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
