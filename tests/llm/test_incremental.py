"""Tokens of a text that arrives in pieces: those of the whole text, however it is cut."""

from functools import cache

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Regex, Tokenizer, normalizers, pre_tokenizers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from spacy_llmner.llm.incremental import IncrementalEncoder
from spacy_llmner.llm.tokenization import LLMTokenizer
from tests.helpers import NASTY
from tests.llm.test_tokenization import FRAGMENTS, KINDS, any_tokenizer  # noqa: F401

MORE = [
    "\r\n",
    ".\n\n",
    "don't",
    "'s",
    "’",
    "，",
    "。",
    "”",
    "1234",
    "a_b",
    "https://x.org/a?b=1",
    "\x04",
]
# The patterns of Qwen2 (Llama 3 differs in the digits) and of GPT-4o.
SPLITTING = {
    "qwen2": r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+",
    "gpt-4o": r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+"
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)?|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+"
    r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+",
}
TEXTS = st.one_of(
    st.lists(st.sampled_from([*FRAGMENTS, *MORE])).map("".join),
    st.text(st.characters(codec="utf8", max_codepoint=0x3FFFF)),
)


def pieces_of(data, text):
    """RETURNS (List[str]): The text, cut anywhere."""
    cuts = sorted(data.draw(st.lists(st.integers(0, len(text)), max_size=12)))
    return [text[i:j] for i, j in zip([0, *cuts], [*cuts, len(text)])]


def encoded(tokenizer, pieces):
    """RETURNS (List[Tuple]): Id, start and end of each token."""
    encoder = IncrementalEncoder(tokenizer)
    parts = [*map(encoder.push, pieces), encoder.end()]
    return [token for part in parts for token in tokens(part)]


def tokens(encoding):
    return list(zip(encoding.ids, encoding.starts.tolist(), encoding.ends.tolist()))


@given(data=st.data(), text=TEXTS)
def test_tokens_of_the_whole_text(any_tokenizer, data, text):  # noqa: F811
    assert encoded(any_tokenizer, pieces_of(data, text)) == tokens(any_tokenizer.encode(text))


@pytest.mark.parametrize("text", NASTY)
def test_character_by_character(any_tokenizer, text):  # noqa: F811
    assert encoded(any_tokenizer, text) == tokens(any_tokenizer.encode(text))


@pytest.mark.parametrize("name", SPLITTING)
@given(data=st.data(), text=TEXTS)
def test_how_tokenizers_split_words(tiny_tokenizers, name, data, text):
    """Those that join line breaks to punctuation, or punctuation to the letters after it."""
    tokenizer = tiny_tokenizers["byte-level"]
    backend = Tokenizer.from_str(tokenizer.backend_tokenizer.to_str())
    backend.normalizer = normalizers.NFC()
    split = pre_tokenizers.Split(Regex(SPLITTING[name]), "isolated")
    whole = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.pre_tokenizer = pre_tokenizers.Sequence([split, whole])
    llm_tokenizer = LLMTokenizer(PreTrainedTokenizerFast(tokenizer_object=backend))
    assert encoded(llm_tokenizer, pieces_of(data, text)) == tokens(llm_tokenizer.encode(text))


@pytest.mark.llm
@given(text=TEXTS)
def test_smollm2(smollm2, text):
    tokenizer = loaded(smollm2)
    assert encoded(tokenizer, [text]) == tokens(tokenizer.encode(text))


@cache
def loaded(folder):
    return LLMTokenizer(AutoTokenizer.from_pretrained(folder))


def test_words_are_encoded_when_the_next_one_begins(any_tokenizer):  # noqa: F811
    encoder = IncrementalEncoder(any_tokenizer)
    assert [
        len(encoder.push(piece)) > 0 for piece in ("Ad", "a", " ", "Ha", "le.", "\n", "So ", "he")
    ] == [*(False, False, True, False, False, False, True, False)]
    assert encoder.encoded == len("Ada Hale.\nSo")


def test_chinese_is_encoded_clause_by_clause(any_tokenizer):  # noqa: F811
    encoder = IncrementalEncoder(any_tokenizer)
    encoder.push("王小明在北京。他")
    assert encoder.encoded == len("王小明在北京")
