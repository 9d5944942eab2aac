import re
from dataclasses import replace

import numpy as np
import pytest
import spacy
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoTokenizer

from spacy_llmner.decoding.substrings import substring_constraint
from spacy_llmner.llm.tokenization import LLMTokenizer
from spacy_llmner.llm.word_tokens import spelling, word_tokens

KINDS = ("byte-level", "metaspace", "metaspace with a space in front")
FRAGMENTS = [
    *(
        " ",
        "  ",
        "\n",
        "\t",
        "\u00a0",
        "\u3000",
        "\u200b",
        "Ada",
        " Hale",
        "met",
        "don't",
        ".",
        ",",
    ),
    *("3.5%", "Lund&Sons", "(Bonn)", "e\u0301", '"', "'s", "[", "]", "<unk>", "https://a.b/c"),
    *("王", "小明", "北京", "龘", "🚀", "👩\u200d💻", "مرحبا", "بالعالم", "\u202e", "\x04", "\x00"),
]
CHARACTERS = st.characters(codec="utf8")
TEXTS = st.one_of(st.lists(st.sampled_from(FRAGMENTS)).map("".join), st.text(CHARACTERS))
NLP = {lang: spacy.blank(lang) for lang in ("en", "xx")}


def by_spacy(text, lang="en"):
    return [(t.idx, t.idx + len(t)) for t in NLP[lang](text) if not t.is_space]


def by_character(text):
    return [(k, k + 1) for k, character in enumerate(text) if not character.isspace()]


SPLITS = st.sampled_from([by_spacy, lambda text: by_spacy(text, "xx"), by_character])


@pytest.fixture(scope="module", params=KINDS)
def tokenizer(request, tiny_tokenizers):
    return LLMTokenizer(tiny_tokenizers[request.param])


@pytest.fixture(scope="module")
def byte_level(tiny_tokenizers):
    return LLMTokenizer(tiny_tokenizers["byte-level"])


def decode(tokenizer, ids):
    # Some decoders strip the first space, others don't.
    return tokenizer.hf.decode(ids, clean_up_tokenization_spaces=False)


def keeps(tokenizer, text):
    """Whether the tokenizer has tokens for all of a text's characters, each for itself too."""
    return all(decode(tokenizer, tokenizer.encode(c).ids) == c for c in text if not c.isspace())


def assert_words(tokenizer, text, bounds, words):
    assert len(words) == len(words.first) == len(words.last) == len(bounds)
    assert words.bounds.tolist() == [list(pair) for pair in bounds]
    assert all(array.dtype == np.int64 for array in (words.ids, words.first, words.last))
    # The tokens of a word are consecutive, and words follow one another.
    assert (words.last >= words.first - 1).all()
    assert (words.first[1:] > words.last[:-1]).all()
    assert len(words.ids) == 0 or words.last.max(initial=0) < len(words.ids)
    if keeps(tokenizer, text):
        for (start, end), first, last in zip(bounds, words.first, words.last):
            assert decode(tokenizer, words.ids[first : last + 1]).strip() == text[start:end]


@given(text=TEXTS, split=SPLITS)
def test_tokens_of_a_word_decode_to_it(tokenizer, text, split):
    bounds = split(text)
    assert_words(tokenizer, text, bounds, word_tokens(tokenizer, text, bounds))


@given(text=TEXTS, split=SPLITS)
def test_all_tokens_decode_to_the_text(tokenizer, text, split):
    if keeps(tokenizer, text) and decode(tokenizer, tokenizer.encode(text).ids) == text:
        words = word_tokens(tokenizer, text, split(text))
        assert decode(tokenizer, words.ids) == text


@given(text=TEXTS, split=SPLITS)
def test_the_encoding_of_the_text_where_words_are_apart(tokenizer, text, split):
    bounds = split(text)
    encoding = tokenizer.encode(text)
    crossing = any(
        sum(start < e and s < end for s, e in bounds) > 1
        for start, end in zip(encoding.starts, encoding.ends)
    )
    if not crossing:
        assert word_tokens(tokenizer, text, bounds).ids.tolist() == encoding.ids


@given(text=TEXTS, split=SPLITS, data=st.data())
def test_part(tokenizer, text, split, data):
    bounds = split(text)
    words = word_tokens(tokenizer, text, bounds)
    cut = st.integers(0, len(bounds))
    start, end = sorted((data.draw(cut), data.draw(cut)))
    part = words.part(start, end)
    if start < end:
        assert_words(tokenizer, text, bounds[start:end], part)
    for k in range(start, end):
        whole = words.ids[words.first[k] : words.last[k] + 1]
        mine = part.ids[part.first[k - start] : part.last[k - start] + 1]
        assert mine.tolist() == whole.tolist()
    # Adjacent parts contain every token once.
    if 0 < start < len(bounds):
        both = [*words.part(0, start).ids, *words.part(start, len(bounds)).ids]
        assert both == words.ids.tolist()


def test_parts_of_parts(tokenizer):
    text = "Ada Hale met  Bo Lund, in Bonn."
    words = word_tokens(tokenizer, text, by_spacy(text))
    part, again = words.part(1, 6), words.part(1, 6).part(2, 5)
    direct = words.part(3, 6)
    assert part.bounds.tolist()[0] == [4, 8]
    assert again.bounds.tolist() == direct.bounds.tolist()
    assert again.ids.tolist() == direct.ids.tolist()
    assert again.first.tolist() == direct.first.tolist()
    assert len(words.part(2, 2)) == 0
    whole = words.part(0, len(words))
    assert whole.ids.tolist() == words.ids.tolist()


def test_glued_words_are_separated(byte_level):
    text = "Ada they spoke"
    bounds = [(0, 3), (4, 6), (6, 8), (9, 14)]
    whole = byte_level.encode(text).ids
    assert decode(byte_level, whole[2:3]) == " they"  # "th" and "ey" share a token
    words = word_tokens(byte_level, text, bounds)
    pieces = [words.ids[a : b + 1].tolist() for a, b in zip(words.first, words.last)]
    assert [decode(byte_level, ids) for ids in pieces] == ["Ada", " th", "ey", " spoke"]
    # Words that don't touch the glued ones keep their tokens.
    assert [*pieces[0], *pieces[3]] == [*whole[:2], *whole[3:]]


def test_white_space_with_tokens_of_its_own_is_no_word(byte_level):
    text = "  Ada \n\n Hale\n"
    words = word_tokens(byte_level, text, by_spacy(text))
    pieces = [words.ids[a : b + 1] for a, b in zip(words.first, words.last)]
    assert [decode(byte_level, ids).strip(" ") for ids in pieces] == ["Ada", "Hale"]
    assert decode(byte_level, words.ids) == text
    assert words.last[-1] < len(words.ids) - 1


def test_words_that_the_tokenizer_drops(byte_level):
    text = "\x04 Ada \x04\x04 Hale \x04"
    words = word_tokens(byte_level, text, by_spacy(text))
    assert (words.last < words.first).tolist() == [True, False, True, False, True]
    assert decode(byte_level, words.ids).split() == ["Ada", "Hale"]


def test_no_words(tokenizer):
    for text in ("", " \n ", "Ada"):
        words = word_tokens(tokenizer, text, [])
        assert len(words) == 0
        assert words.bounds.shape == (0, 2)
        assert words.ids.tolist() == tokenizer.encode(text).ids
        assert len(substring_constraint(words, 1).first) == 0


def test_spelling(tokenizer):
    for word in ("Ada", "Lund", "王小明", "🚀", "3.5%"):
        ids = spelling(tokenizer, word)
        assert decode(tokenizer, ids) == word
        # There is no space before the word, wherever it occurs.
        written = [*tokenizer.encode("x\n").ids, *ids]
        assert decode(tokenizer, written) == f"x\n{word}"


def test_text_is_not_needed_for_bounds_of_another_text(byte_level):
    """Offsets may be those of a longer text that the words were cut from."""
    text = "Ada Hale"
    words = word_tokens(byte_level, text, by_spacy(text))
    moved = replace(words, bounds=words.bounds + 100)
    rule = substring_constraint(moved, 1)
    state = rule.start
    for token in [*words.ids[words.first[1] :].tolist(), 1]:
        state = rule.advance(state, token)
    assert rule.spans(state) == [(104, 108)]


@pytest.mark.llm
@given(text=TEXTS, split=SPLITS)
def test_words_of_smollm2(smollm2_reader, text, split):
    bounds = split(text)
    assert_words(smollm2_reader, text, bounds, word_tokens(smollm2_reader, text, bounds))


@pytest.fixture(scope="module")
def smollm2_reader(smollm2):
    return LLMTokenizer(AutoTokenizer.from_pretrained(smollm2))


def test_words_by_regular_expression(byte_level):
    """Texts can be split into words in any way, not only as spaCy does."""
    text = "Ada-Hale_met Bo.Lund"
    bounds = [match.span() for match in re.finditer(r"[A-Za-z]+|[^A-Za-z\s]", text)]
    assert_words(byte_level, text, bounds, word_tokens(byte_level, text, bounds))
