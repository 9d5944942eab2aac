import copy
import itertools
import re
import threading
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from transformers import AutoTokenizer

from spacy_llmner.llm.tokenization import (
    Encoding,
    LLMTokenizer,
    PieceDecoder,
    offsets_are_broken,
    strided_windows,
    trim_offsets,
)

KINDS = ("byte-level", "metaspace", "metaspace with a space in front")
FRAGMENTS = [
    *(" ", "  ", "\n", "\t", "\u00a0", "\u3000", "\u200b", "▁", "Ġ"),
    *("Ada", " Hale", "met", ".", ",", "3.5%", "Öl", "e\u0301", "<|im_end|>", "<unk>"),
    *("王", "小明", "北京", "龘", "🚀", "🎉", "👩\u200d💻", "مرحبا", "\u202e", "\x00"),
]
# Without characters that have no token in SmolLM2, or look like half a character.
CHARACTERS = st.characters(codec="utf8", max_codepoint=0x3FFFF, exclude_characters="\x04\ufffd")
TEXTS = st.one_of(st.lists(st.sampled_from(FRAGMENTS)).map("".join), st.text(CHARACTERS))
CHINESE = "王小明在北京大学学习。他住在龘城🎉🚀里。"


@pytest.fixture(scope="module", params=KINDS)
def any_tokenizer(request, tiny_tokenizers):
    return LLMTokenizer(tiny_tokenizers[request.param])


@pytest.fixture(scope="module")
def byte_level(tiny_tokenizers):
    return LLMTokenizer(tiny_tokenizers["byte-level"])


@pytest.fixture(scope="module")
def smollm2_reader(smollm2):
    return LLMTokenizer(AutoTokenizer.from_pretrained(smollm2))


class Fake:
    """A tokenizer of the tokenizers library that behaves like another one, except for what a subclass
    changes."""

    def __init__(self, backend):
        super().__setattr__("backend", backend)

    def __getattr__(self, name):
        return getattr(self.backend, name)

    def __setattr__(self, name, value):
        setattr(self.backend, name, value)


class WithoutOffsets(Fake):
    """It reports empty offsets, as those of Llama 3 do in many versions."""

    def encode_batch(self, texts, **settings):
        found = self.backend.encode_batch(texts, **settings)
        return [
            SimpleNamespace(ids=e.ids, offsets=[(start, start) for start, _ in e.offsets])
            for e in found
        ]


class OneAtATime(Fake):
    """It records how many threads use it at the same time."""

    def __init__(self, backend):
        super().__init__(backend)
        vars(self).update(inside=0, seen=set())

    def encode_batch(self, texts, **settings):
        self.seen.add(self.inside + 1)
        vars(self).update(inside=self.inside + 1)
        out = self.backend.encode_batch(texts, **settings)
        vars(self).update(inside=self.inside - 1)
        return out


def with_backend(kind, hf):
    """A tokenizer of transformers with a fake backend."""
    out = copy.copy(hf)
    out._tokenizer = kind(hf.backend_tokenizer)
    return out


def assert_true_to(text, encoding, keeps_all=True):
    starts, ends = encoding.starts.tolist(), encoding.ends.tolist()
    assert len(encoding) == len(encoding.ids) == len(starts) == len(ends)
    assert encoding.starts.dtype == encoding.ends.dtype == np.int64
    assert starts == sorted(starts)
    assert ends == sorted(ends)
    covered = set()
    for start, end in zip(starts, ends):
        assert 0 <= start <= end <= len(text)
        assert not text[start:end][:1].isspace() or text[start:end].isspace()
        covered.update(range(start, end))
    if keeps_all:
        assert {i for i, char in enumerate(text) if not char.isspace()} <= covered


def assert_words_found(text, encoding):
    words = [match.span() for match in re.finditer(r"\S+", text)]
    first = encoding.first_tokens(np.array([start for start, _ in words], dtype=np.int64))
    last = encoding.last_tokens(np.array([end for _, end in words], dtype=np.int64))
    for (start, end), i, j in zip(words, first, last):
        assert encoding.starts[i] <= start < encoding.ends[i]
        assert i == 0 or encoding.ends[i - 1] <= start
        assert encoding.starts[j] < end <= encoding.ends[j]
        assert j + 1 == len(encoding) or encoding.starts[j + 1] >= end


@given(text=TEXTS)
def test_offsets(any_tokenizer, text):
    encoding = any_tokenizer.encode(text)
    assert_true_to(text, encoding)
    assert_words_found(text, encoding)


@given(text=st.text(st.characters(codec="utf8")))
def test_offsets_where_characters_are_dropped(byte_level, text):
    encoding = byte_level.encode(text)
    assert_true_to(text, encoding, keeps_all=False)
    # The bytes that conftest.py leaves out begin the characters from U+40000 on, and are U+0004.
    kept = [char < "\U00040000" and char != "\x04" for char in text]
    assert byte_level.hf.decode(encoding.ids) == "".join(itertools.compress(text, kept))
    for k, char in enumerate(text):
        if kept[k] and not char.isspace():
            assert ((encoding.starts <= k) & (encoding.ends > k)).any()


def test_what_follows_a_dropped_character(byte_level):
    encoding = byte_level.encode('0\U00040000\x1b"')
    assert list(zip(encoding.starts, encoding.ends)) == [(0, 1), (2, 3), (3, 4)]


@pytest.mark.llm
@given(text=TEXTS)
def test_offsets_of_smollm2(smollm2_reader, text):
    text = re.sub("[\x04\x06\x13\x14\x16\x1d]", "", text)
    encoding = smollm2_reader.encode(text)
    assert_true_to(text, encoding)
    assert_words_found(text, encoding)


def test_words_begin_behind_their_space(any_tokenizer):
    text = "Ada Hale  met\nBo"
    encoding = any_tokenizer.encode(text)
    starts = encoding.starts.tolist()
    assert {0, 4, 10, 14} <= set(starts)
    assert 3 not in starts


@pytest.mark.parametrize("text", ["龘", "a龘b", " 龘龘 ", "🐢", "🐢🐢", CHINESE])
def test_pieces_of_a_character_share_its_offsets(any_tokenizer, text):
    encoding = any_tokenizer.encode(text)
    assert_true_to(text, encoding)
    at = max(text.find("龘"), text.find("🐢"))
    pieces = [i for i in range(len(encoding)) if encoding.ends[i] == at + 1]
    assert len(pieces) > 1
    assert {int(encoding.starts[i]) for i in pieces} == {at}
    assert encoding.last_tokens(np.array([at + 1]))[0] == pieces[-1]
    assert encoding.first_tokens(np.array([at]))[0] == pieces[0]


@pytest.mark.parametrize("text", ["", " ", "\n\n \t", "\u3000"])
def test_empty_and_blank_texts(any_tokenizer, text):
    encoding = any_tokenizer.encode(text)
    assert_true_to(text, encoding)
    assert bool(len(encoding)) == bool(text)
    none = np.zeros(0, dtype=np.int64)
    assert not len(encoding.first_tokens(none))
    assert not len(encoding.last_tokens(none))


def test_text_without_a_token(byte_level):
    encoding = byte_level.encode("\x04\x04")
    assert len(encoding) == 0
    assert encoding.last_tokens(np.array([1, 2])).tolist() == [-1, -1]
    assert encoding.first_tokens(np.array([0, 1])).tolist() == [0, 0]


def test_word_before_the_first_token(byte_level):
    encoding = byte_level.encode("\x04 Bo")
    assert encoding.last_tokens(np.array([1, 4])).tolist()[0] == -1
    assert encoding.ends[-1] == 4


@given(before=TEXTS, after=TEXTS)
def test_names_of_special_tokens_are_text(any_tokenizer, before, after):
    ids = any_tokenizer.encode(f"{before}<|im_end|>{after}").ids
    # An unknown character is not encoded to a control token.
    control = {any_tokenizer.hf.bos_token_id, any_tokenizer.hf.eos_token_id}
    assert not control & set(ids)


@pytest.mark.llm
@pytest.mark.parametrize("name", ["<|im_start|>", "<|im_end|>", "<|endoftext|>"])
def test_smollm2_reads_names_of_special_tokens_as_text(smollm2_reader, name):
    text = f"Bo{name}\nsystem: {name}"
    encoding = smollm2_reader.encode(text)
    assert not set(encoding.ids) & set(smollm2_reader.hf.all_special_ids)
    assert smollm2_reader.hf.decode(encoding.ids) == text
    assert_true_to(text, encoding)


def test_nothing_is_added_or_cut_off(tiny_tokenizers):
    hf = tiny_tokenizers["byte-level"]
    limit, hf.model_max_length = hf.model_max_length, 8
    text = "Ada Hale met Bo. " * 20
    assert hf.decode(LLMTokenizer(hf).encode(text).ids) == text
    hf.model_max_length = limit


@given(texts=st.lists(TEXTS, max_size=5))
@example(["", "  ", "\x04 Bo", "Ada\u3000Hale", "🐢"])
def test_texts_encoded_together_are_encoded_one_by_one(any_tokenizer, texts):
    for text, found in zip(texts, any_tokenizer.encode_batch(texts)):
        alone = any_tokenizer.encode(text)
        assert found.ids == alone.ids
        assert found.starts.tolist() == alone.starts.tolist()
        assert found.ends.tolist() == alone.ends.tolist()


def test_no_white_space_beyond_the_table():
    assert not any(chr(code).isspace() for code in range(0x3001, 0x110000))


@given(text=TEXTS)
def test_empty_offsets_are_rebuilt(any_tokenizer, text):
    honest = any_tokenizer.encode(text)
    rebuilt = LLMTokenizer(with_backend(WithoutOffsets, any_tokenizer.hf)).encode(text)
    assert rebuilt.ids == honest.ids
    if any_tokenizer.hf.decode(honest.ids) == text:
        assert_true_to(text, rebuilt)
        assert_words_found(text, rebuilt)


@pytest.mark.parametrize("text", ["Ada Hale met Bo in Bonn.", "Two  \n\nlines\n"])
def test_rebuilt_offsets_are_the_same(any_tokenizer, text):
    honest = any_tokenizer.encode(text)
    rebuilt = LLMTokenizer(with_backend(WithoutOffsets, any_tokenizer.hf)).encode(text)
    assert rebuilt.starts.tolist() == honest.starts.tolist()
    assert rebuilt.ends.tolist() == honest.ends.tolist()


def test_when_offsets_are_broken():
    assert offsets_are_broken([(0, 0), (1, 1), (4, 4)], "Ada Hale")
    assert not offsets_are_broken([(0, 0), (0, 3), (3, 8)], "Ada Hale")
    assert not offsets_are_broken([(0, 0), (0, 0)], "  ")
    assert not offsets_are_broken([], "\x04")


@pytest.mark.parametrize(
    ("offsets", "text", "trimmed"),
    [
        ([(0, 2), (2, 5)], "ab cd", [(0, 2), (3, 5)]),
        ([(0, 3), (3, 6)], "  a  b", [(2, 3), (5, 6)]),
        ([(0, 2), (2, 4)], "   a", [(0, 2), (3, 4)]),
        ([(0, 0), (0, 2), (2, 2)], "ab", [(0, 0), (0, 2), (2, 2)]),
        ([(0, 2), (0, 0), (2, 3)], "abc", [(0, 2), (2, 2), (2, 3)]),
        ([(0, 1), (0, 1), (0, 2)], "🐢a", [(0, 1), (0, 1), (0, 2)]),
        ([(2, 4), (0, 5)], "abcde", [(2, 4), (2, 5)]),
    ],
)
def test_trim(offsets, text, trimmed):
    starts, ends = trim_offsets(offsets, text)
    assert list(zip(starts.tolist(), ends.tolist())) == trimmed


@given(text=TEXTS)
@example("北京北京北京北京小明")  # tokens that end inside of characters, one after the other
def test_decoded_pieces_add_up(any_tokenizer, text):
    ids = any_tokenizer.encode(text).ids
    decoder = PieceDecoder(any_tokenizer.hf)
    pieces, counts = [], []
    for token in ids:
        pieces.append(decoder.push(token))
        counts.append(decoder.complete)
        assert not decoder.complete or not decoder.pending
    assert "".join(pieces) == any_tokenizer.hf.decode(ids)
    assert sum(counts) == len(ids)


def test_a_character_comes_when_it_is_complete(byte_level):
    ids = byte_level.encode("a🐢").ids
    decoder = PieceDecoder(byte_level.hf)
    pieces = [decoder.push(token) for token in ids]
    assert pieces == ["a", *[""] * (len(ids) - 2), "🐢"]
    assert decoder.complete == len(ids) - 1


@pytest.mark.parametrize("skip_special", [True, False])
def test_special_tokens_in_the_decoder(byte_level, skip_special):
    ids = [0, *byte_level.encode("Ada Hale").ids, 1]
    decoder = PieceDecoder(byte_level.hf, skip_special)
    text = "".join(decoder.push(token) for token in ids)
    assert text == ("Ada Hale" if skip_special else "<|im_start|>Ada Hale<|im_end|>")


def test_broken_bytes_do_not_wait_for_ever(byte_level):
    decoder = PieceDecoder(byte_level.hf)
    half = byte_level.encode("🐢").ids[-1]
    pieces = [decoder.push(half) for _ in range(20)]
    assert any("\ufffd" in piece for piece in pieces)


@pytest.mark.parametrize(
    ("bos_id", "eos_id", "bos", "end"),
    [(0, 1, [0], [1]), (None, 1, [1], [1]), (0, None, [0], []), (None, None, [], [])],
)
def test_bos_and_end(bos_id, eos_id, bos, end):
    tokenizer = LLMTokenizer(SimpleNamespace(bos_token_id=bos_id, eos_token_id=eos_id))
    assert tokenizer.bos == bos
    assert tokenizer.end == end


def test_threads(byte_level):
    texts = [f"Ada Hale met Bo {i} times. 🐢" * (i + 1) for i in range(16)]
    expected = [byte_level.encode(text).ids for text in texts]
    found: dict = {}
    shared = LLMTokenizer(with_backend(OneAtATime, byte_level.hf))
    barrier = threading.Barrier(8)

    def encode(k):
        barrier.wait(timeout=60)
        found[k] = [shared.encode(text).ids for text in texts]

    threads = [threading.Thread(target=encode, args=(k,)) for k in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == dict.fromkeys(range(8), expected)
    assert shared.hf.backend_tokenizer.seen == {1}  # a fast tokenizer may fail in a second thread


def test_lookup_between_tokens():
    encoding = Encoding([7, 8, 9], np.array([0, 3, 3]), np.array([2, 4, 6]))
    assert encoding.last_tokens(np.array([1, 2, 3, 4, 6])).tolist() == [0, 0, 0, 2, 2]
    assert encoding.first_tokens(np.array([0, 2, 3, 5, 9])).tolist() == [0, 1, 1, 2, 2]


@given(
    n_tokens=st.integers(0, 500),
    size=st.integers(1, 60),
    overlap=st.integers(0, 59),
)
def test_windows(n_tokens, size, overlap):
    overlap = min(overlap, size - 1)
    found = strided_windows(n_tokens, size, overlap)
    assert [i for w in found for i in range(w.keep, w.end)] == list(range(n_tokens))
    assert (found[0].start, found[0].keep) == (0, 0)
    for window in found:
        assert 0 <= window.start <= window.keep <= window.end <= n_tokens
        assert window.end - window.start <= size
    for window in found[1:]:
        assert window.keep - window.start == overlap
        assert window.keep < window.end
