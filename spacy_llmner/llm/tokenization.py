"""Encode text to token ids with exact character offsets, for byte-level BPE and Llama-style tokenizers
and for Chinese text."""

import threading
from dataclasses import dataclass
from functools import cache, cached_property
from itertools import chain
from typing import Any, Iterable, Iterator, List, Sequence, Tuple

import numpy as np
from tokenizers.pre_tokenizers import ByteLevel


@dataclass
class Encoding:
    """The tokens of a text.

    ids (List[int]): Token ids, without special tokens.
    starts (ndarray): int64, shape (tokens,): the first character of each token, after leading white space.
    ends (ndarray): int64, shape (tokens,): one past the last character of each token. If several tokens
        make up one character (Chinese, emoji), all have its offsets. A token of white space has its own
        offsets.
    """

    ids: List[int]
    starts: np.ndarray
    ends: np.ndarray

    def __len__(self) -> int:
        return len(self.ids)

    def last_tokens(self, ends: np.ndarray) -> np.ndarray:
        """Find the last token that covers the last character of each word.

        ends (ndarray): One past the last character of each word, ascending.
        RETURNS (ndarray): int64, shape (words,): token indices; -1 for a word without any token up to its
            end (a tokenizer can drop characters).
        """
        return np.searchsorted(self.starts, ends, side="left") - 1

    def first_tokens(self, starts: np.ndarray) -> np.ndarray:
        """Find the first token that covers the first character of each word.

        starts (ndarray): First character of each word, ascending.
        RETURNS (ndarray): int64, shape (words,): token indices, at most that of the last token.
        """
        return np.searchsorted(self.ends, starts, side="right").clip(max=max(len(self) - 1, 0))


@dataclass
class EncodedTexts:
    """The tokens of several texts, stored as those of one text, since numpy is slow for single texts.

    joined (Encoding): The tokens of all texts. Their offsets are those in the joined texts.
    first_tokens (ndarray): int64, shape (texts + 1,): index of each text's first token. The last entry is
        the number of tokens.
    first_chars (ndarray): int64, shape (texts + 1,): the same for characters.
    """

    joined: Encoding
    first_tokens: np.ndarray
    first_chars: np.ndarray

    def __len__(self) -> int:
        return len(self.first_tokens) - 1

    def __iter__(self) -> Iterator[Encoding]:
        """YIELDS (Encoding): The tokens of each text."""
        tokens = self.first_tokens.tolist()
        for ids, first, shift in zip(self.ids(), tokens, self.first_chars.tolist()):
            of_text = slice(first, first + len(ids))
            starts, ends = self.joined.starts[of_text], self.joined.ends[of_text]
            yield Encoding(ids, starts - shift, ends - shift)

    def ids(self) -> List[List[int]]:
        """RETURNS (List[List[int]]): The token ids of each text."""
        tokens = self.first_tokens.tolist()
        return [self.joined.ids[first:last] for first, last in zip(tokens, tokens[1:])]

    def last_tokens(self, ends: np.ndarray, n_words: Sequence[int]) -> np.ndarray:
        """Find the last token that covers the last character of each word.

        ends (ndarray): One past the last character of each word, for the words of all texts.
        n_words (Sequence[int]): Number of words of each text.
        RETURNS (ndarray): int64, shape (words,): token indices in the word's text. 0 for a word without any
            token up to its end.
        """
        shifts = np.repeat(self.first_chars[:-1], n_words)
        first = np.repeat(self.first_tokens[:-1], n_words)
        return np.maximum(self.joined.last_tokens(ends + shifts) - first, 0)


@dataclass
class StridedWindow:
    """A window of a text's tokens that goes through the LLM as one input.

    start (int): First token of the window.
    keep (int): First token whose features are taken from this window. The previous window has the features
        of earlier tokens, with more left context.
    end (int): One past the last token.
    """

    start: int
    keep: int
    end: int


class LLMTokenizer:
    """A wrapper around a fast tokenizer of transformers that corrects its character offsets.

    tokenizer (PreTrainedTokenizerFast): The LLM's own tokenizer.
    """

    def __init__(self, tokenizer: Any) -> None:
        self.hf = tokenizer
        # Fast tokenizers store a call's settings in shared state and reject a second thread.
        self._lock = threading.Lock()

    def __reduce__(self):
        return LLMTokenizer, (self.hf,)

    @property
    def bos(self) -> List[int]:
        """RETURNS (List[int]): The ids before every text: the BOS token, the EOS token if there is no BOS
        token, or nothing."""
        for token in (self.hf.bos_token_id, self.hf.eos_token_id):
            if token is not None:
                return [token]
        return []

    @property
    def end(self) -> List[int]:
        """RETURNS (List[int]): The ids after a text, if features of a token after the last one are needed:
        the EOS token, or nothing."""
        return [] if self.hf.eos_token_id is None else [self.hf.eos_token_id]

    def encode(self, text: str) -> Encoding:
        """Encode a text without special tokens.

        RETURNS (Encoding): The tokens. Names of special tokens in the text are encoded as plain
            characters, never as control tokens.
        """
        return next(iter(self.encode_batch([text])))

    def encode_batch(self, texts: Sequence[str]) -> EncodedTexts:
        """Encode many texts in one call of the tokenizer. See `encode`.

        RETURNS (EncodedTexts): The tokens of each text.
        """
        missing = self._missing_bytes
        if not missing or not _has_any(missing, "".join(texts)):
            return self._encode(texts)
        found = [self._encode_without(missing, text) for text in texts]
        first_tokens = _cumulated([len(encoding) for encoding in found])
        first_chars = _cumulated([len(text) for text in texts])
        shifts = np.repeat(first_chars[:-1], np.diff(first_tokens))
        joined = Encoding(
            [token for encoding in found for token in encoding.ids],
            np.concatenate([encoding.starts for encoding in found]) + shifts,
            np.concatenate([encoding.ends for encoding in found]) + shifts,
        )
        return EncodedTexts(joined, first_tokens, first_chars)

    def _encode_without(self, missing: bytes, text: str) -> Encoding:
        """Encode a text without the characters that contain a byte for which there is no token. The
        tokenizers library would leave out only this byte, and all later offsets would be too small."""
        if not _has_any(missing, text):
            return next(iter(self._encode([text])))
        missing_set = frozenset(missing)
        kept = [k for k, char in enumerate(text) if missing_set.isdisjoint(char.encode())]
        encoding = next(iter(self._encode(["".join(text[k] for k in kept)])))
        original = np.array([*kept, len(text)], dtype=np.int64)
        starts = original[encoding.starts]
        ends = np.where(
            encoding.ends > encoding.starts,
            original[np.maximum(encoding.ends, 1) - 1] + 1,
            starts,
        )
        return Encoding(encoding.ids, starts, ends)

    def _encode(self, texts: Sequence[str]) -> EncodedTexts:
        # The same as a call of the transformers tokenizer, without its checks and copies.
        backend = self.hf.backend_tokenizer
        with self._lock:
            backend.no_truncation()
            backend.no_padding()
            backend.encode_special_tokens = True
            found = backend.encode_batch(texts, add_special_tokens=False)
        all_ids = [encoding.ids for encoding in found]
        first_tokens = _cumulated([len(ids) for ids in all_ids])
        first_chars = _cumulated([len(text) for text in texts])
        reported = [encoding.offsets for encoding in found]
        offsets = _offsets(chain.from_iterable(reported))
        if (offsets[::2] == offsets[1::2]).any():
            rebuilt = [
                offsets_from_pieces(self.hf, ids, text)
                if offsets_are_broken(pairs, text)
                else pairs
                for ids, pairs, text in zip(all_ids, reported, texts)
            ]
            offsets = _offsets(chain.from_iterable(rebuilt))
        shifts = np.repeat(first_chars[:-1], np.diff(first_tokens))
        starts, ends = _trim(offsets, shifts, "".join(texts))
        joined = Encoding(list(chain.from_iterable(all_ids)), starts, ends)
        return EncodedTexts(joined, first_tokens, first_chars)

    def encode_inside(self, text: str) -> Encoding:
        """Encode a text as a continuation of other text. Tokenizers like Llama 2's add a space before a
        text, which is left out here.

        RETURNS (Encoding): The tokens, with offsets in `text`.
        """
        if not self._adds_space:
            return self.encode(text)
        # A line break has its own token, which never merges with what follows.
        n = len(self.encode("\n"))
        whole = self.encode("\n" + text)
        return Encoding(whole.ids[n:], whole.starts[n:] - 1, whole.ends[n:] - 1)

    def drops(self, char: str) -> bool:
        """RETURNS (bool): Whether the tokenizer leaves out a character."""
        return bool(self._missing_bytes) and _has_any(self._missing_bytes, char)

    def encode_control(self, text: str) -> List[int]:
        """Encode a text of this package or of a chat template. Names of special tokens in it are encoded as
        special tokens.

        RETURNS (List[int]): Token ids.
        """
        with self._lock:
            return list(self.hf(text, add_special_tokens=False)["input_ids"]) if text else []

    @cached_property
    def _missing_bytes(self) -> bytes:
        """RETURNS (bytes): The bytes that have no token. Empty unless the vocabulary is byte-level and has
        no unknown token."""
        backend = self.hf.backend_tokenizer
        unknown = getattr(backend.model, "unk_token", None)
        if unknown or "ByteLevel" not in str(backend.pre_tokenizer):
            return b""
        alphabet, vocab = set(ByteLevel.alphabet()), self.hf.get_vocab()
        # Unprintable bytes are written as the letters from U+0100 on, in order.
        unprintable = [byte for byte in range(256) if chr(byte) not in alphabet]
        letters = {byte: chr(0x100 + k) for k, byte in enumerate(unprintable)}
        return bytes(byte for byte in range(256) if letters.get(byte, chr(byte)) not in vocab)

    @cached_property
    def _adds_space(self) -> bool:
        token = self.hf.convert_ids_to_tokens(self.encode("a").ids[:1])
        return bool(token) and token[0].startswith("▁")


def strided_windows(n_tokens: int, size: int, overlap: int) -> List[StridedWindow]:
    """Cut a long text into overlapping windows.

    n_tokens (int): Number of tokens of the text.
    size (int): Maximum number of tokens per window.
    overlap (int): Number of tokens of the previous window that a window starts with, as left context.
    RETURNS (List[StridedWindow]): The windows. Their ranges from `keep` to `end` cover every token once.
    """
    out = [StridedWindow(0, 0, min(size, n_tokens))]
    while out[-1].end < n_tokens:
        keep = out[-1].end
        start = keep - overlap
        out.append(StridedWindow(start, keep, min(start + size, n_tokens)))
    return out


def trim_offsets(offsets: Sequence[Tuple[int, int]], text: str) -> Tuple[np.ndarray, np.ndarray]:
    """Exclude leading white space from the tokens' offsets.

    Byte-level BPE and Llama-style tokenizers include the space before a word in its token.

    offsets (Sequence[Tuple[int, int]]): Offsets from the tokenizer.
    text (str): The text that they refer to.
    RETURNS (Tuple[ndarray, ndarray]): Starts and ends, int64, shape (tokens,), both ascending.
    """
    return _trim(_offsets(offsets), np.zeros(len(offsets), dtype=np.int64), text)


def _cumulated(lengths: Sequence[int]) -> np.ndarray:
    """RETURNS (ndarray): int64, shape (lengths + 1,): the sum of the lengths before each, and of all."""
    return np.cumsum([0, *lengths], dtype=np.int64)


def _offsets(offsets: Iterable[Tuple[int, int]]) -> np.ndarray:
    """RETURNS (ndarray): int64, shape (2 * tokens,): the start and the end of each token."""
    return np.fromiter(chain.from_iterable(offsets), dtype=np.int64)


def _trim(offsets: np.ndarray, shifts: np.ndarray, text: str) -> Tuple[np.ndarray, np.ndarray]:
    """Trim the offsets of tokens of several texts.

    offsets (ndarray): From `_offsets`.
    shifts (ndarray): int64, shape (tokens,): where the text of each token begins in `text`.
    text (str): All texts, joined.
    RETURNS (Tuple[ndarray, ndarray]): See `trim_offsets`. Offsets are those in the joined text.
    """
    # Some tokenizers report (0, 0) for a piece that they have added themselves.
    starts = np.maximum(offsets[::2], 0) + shifts
    ends = np.maximum(offsets[1::2] + shifts, starts)
    reached = np.maximum.accumulate(ends)
    starts = np.where(ends < reached, reached, starts)
    following = _next_visible(text)[starts]
    return np.maximum.accumulate(np.where(following < reached, following, starts)), reached


def _next_visible(text: str) -> np.ndarray:
    """RETURNS (ndarray): int64, shape (characters + 1,): for each character, the index of the first
    character from there on that is not white space; the length of the text if there is none."""
    codes = np.frombuffer(text.encode("utf-32-le"), dtype=np.uint32)
    white = _white_space()
    is_white = white[np.minimum(codes, len(white) - 1)]
    visible = np.append(np.where(is_white, len(text), np.arange(len(text))), len(text))
    return np.minimum.accumulate(visible[::-1])[::-1]


@cache
def _white_space() -> np.ndarray:
    """RETURNS (ndarray): bool: whether each character is white space. The last entry stands for all
    further characters."""
    return np.array([*(chr(code).isspace() for code in range(0x3001)), False])


def _has_any(some: bytes, text: str) -> bool:
    """RETURNS (bool): Whether the encoded text contains any of some bytes."""
    raw = text.encode()
    return len(raw.translate(None, some)) < len(raw)


def offsets_are_broken(offsets: Sequence[Tuple[int, int]], text: str) -> bool:
    """RETURNS (bool): Whether a tokenizer reports empty offsets, as Llama 3's does in many versions."""
    empty = sum([start == end for start, end in offsets])
    return empty > len(offsets) // 2 and bool(text.strip())


def offsets_from_pieces(tokenizer: Any, ids: Sequence[int], text: str) -> List[Tuple[int, int]]:
    """Reconstruct offsets by decoding longer and longer prefixes of the ids.

    RETURNS (List[Tuple[int, int]]): Offsets, including leading white space. Tokens that make up one
        character all have its offsets.
    """
    decoder = PieceDecoder(tokenizer)
    offsets: List[Tuple[int, int]] = []
    reached = 0
    for token in ids:
        piece = decoder.push(token)
        offsets.extend([(reached, reached + len(piece))] * decoder.complete)
        reached += len(piece)
    rest = len(ids) - len(offsets)
    offsets.extend([(reached, len(text))] * rest)
    return [(min(s, len(text)), min(e, len(text))) for s, e in offsets]


class PieceDecoder:
    """Decodes ids one by one into pieces of text that add up to the whole text.

    tokenizer (PreTrainedTokenizerFast): Any fast tokenizer of transformers.
    skip_special (bool): Leave special tokens out of the text.
    complete (int): The number of tokens that the last piece belongs to; 0 if a character is incomplete.
    """

    # Minimum number of previous ids that a new id is decoded with: some decoders strip the first space.
    CONTEXT = 4

    def __init__(self, tokenizer: Any, skip_special: bool = True) -> None:
        self.backend = tokenizer.backend_tokenizer
        self.skip_special = skip_special
        self.context: List[int] = []
        self.context_text = ""
        self.pending: List[int] = []
        self.complete = 0
        # Complete characters in the pending text, and how many of the last tokens in a row added none.
        self._n_whole, self._n_stalled = 0, 0

    def follow(self, ids: Sequence[int]) -> None:
        """Continue after these tokens."""
        self.context = list(ids[-self.CONTEXT :])
        # The context must not start inside a character: half a character would corrupt the next one.
        for first in range(len(self.context)):
            self.context_text = self._decode(self.context[first:])
            if not self.context_text.startswith("\ufffd"):
                self.context = self.context[first:]
                return
        self.context_text = self._decode(self.context)

    def push(self, token: int) -> str:
        """Add a token.

        RETURNS (str): The text that the token completes; "" while a character is incomplete. `complete` is
            the number of tokens that the text belongs to.
        """
        self.pending.append(token)
        ids = self.context + self.pending
        text = self._decode(ids)
        piece = text[len(self.context_text) :]
        n_whole = len(piece.rstrip("\ufffd"))
        self._n_stalled = 0 if n_whole > self._n_whole else self._n_stalled + 1
        self._n_whole = n_whole
        # Many tokens in a row can contain the end of one character and the start of the next. But a
        # character has at most four bytes: if four tokens complete none, the bytes are not a character.
        if piece.endswith("\ufffd") and self._n_stalled < 4:
            self.complete = 0
            return ""
        self.complete = len(self.pending)
        self.pending = []
        self._n_whole, self._n_stalled = 0, 0
        if len(ids) < 4 * self.CONTEXT:
            self.context, self.context_text = ids, text
        else:
            self.follow(ids)
        return piece

    def _decode(self, ids: Sequence[int]) -> str:
        if not ids:
            return ""
        # Like PreTrainedTokenizerFast.decode, but without its clean-up, which would change the text.
        return self.backend.decode(ids, skip_special_tokens=self.skip_special)
