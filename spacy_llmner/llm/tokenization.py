"""Text to token ids and exact character offsets, for byte-level BPE, Llama-style and Chinese."""

import threading
from dataclasses import dataclass
from functools import cached_property
from typing import Any, List, Sequence, Tuple

import numpy as np
from tokenizers.pre_tokenizers import ByteLevel


@dataclass
class Encoding:
    """Tokens of a text.

    ids (List[int]): Token ids, nothing added.
    starts (ndarray): int64, shape (tokens,): first character of each token, leading spaces trimmed.
    ends (ndarray): int64, shape (tokens,): one past the last character. Several tokens that make up
        one character (Chinese, emoji) share its offsets; a token of white space keeps its own.
    """

    ids: List[int]
    starts: np.ndarray
    ends: np.ndarray

    def __len__(self) -> int:
        return len(self.ids)

    def last_tokens(self, ends: np.ndarray) -> np.ndarray:
        """Find, for words given by their ends, the last token that covers the last character.

        ends (ndarray): One past the last character of each word, ascending.
        RETURNS (ndarray): Token index of each word; -1 where no token stands before it (a
            tokenizer may drop characters).
        """
        return np.searchsorted(self.starts, ends, side="left") - 1

    def first_tokens(self, starts: np.ndarray) -> np.ndarray:
        """Find, for words given by their starts, the first token that covers the first character.

        RETURNS (ndarray): Token index of each word, at most the last token.
        """
        return np.searchsorted(self.ends, starts, side="right").clip(max=max(len(self) - 1, 0))


@dataclass
class StridedWindow:
    """A stretch of a text's tokens that goes through the LLM at once.

    start (int): First token read.
    keep (int): First token whose features are taken from this window: the ones before were read
        with more left context by the window before.
    end (int): One past the last token.
    """

    start: int
    keep: int
    end: int


class LLMTokenizer:
    """A fast tokenizer of transformers, made to tell the truth about characters.

    tokenizer (PreTrainedTokenizerFast): The LLM's own tokenizer.
    """

    def __init__(self, tokenizer: Any) -> None:
        self.hf = tokenizer
        # Fast tokenizers keep settings of a call in shared state and refuse a second thread.
        self._lock = threading.Lock()

    def __reduce__(self):
        return LLMTokenizer, (self.hf,)

    @property
    def bos(self) -> List[int]:
        """The id put in front of every text, as position 0: the BOS, or what serves as one."""
        for token in (self.hf.bos_token_id, self.hf.eos_token_id):
            if token is not None:
                return [token]
        return []

    @property
    def end(self) -> List[int]:
        """The id put behind a text whose last token needs a row after it."""
        return [] if self.hf.eos_token_id is None else [self.hf.eos_token_id]

    def encode(self, text: str) -> Encoding:
        """RETURNS (Encoding): Tokens of the text, without special ones; names of special tokens in
        the text are read as plain characters, never as control tokens."""
        missing = self._missing_bytes
        if missing and len((raw := text.encode()).translate(None, missing)) < len(raw):
            return self._encode_without(missing, text)
        return self._encode(text)

    def _encode_without(self, missing: bytes, text: str) -> Encoding:
        """Leave out the characters that have a byte without a token: the tokenizers library would leave
        out the byte only, and report the offsets of what follows too early."""
        lost = frozenset(missing)
        kept = [k for k, char in enumerate(text) if lost.isdisjoint(char.encode())]
        encoding = self._encode("".join(text[k] for k in kept))
        where = np.array([*kept, len(text)], dtype=np.int64)
        starts = where[encoding.starts]
        ends = np.where(
            encoding.ends > encoding.starts, where[np.maximum(encoding.ends, 1) - 1] + 1, starts
        )
        return Encoding(encoding.ids, starts, ends)

    def _encode(self, text: str) -> Encoding:
        if not text:
            return Encoding([], np.zeros(0, dtype=np.int64), np.zeros(0, dtype=np.int64))
        with self._lock:
            out = self.hf(
                text,
                add_special_tokens=False,
                return_offsets_mapping=True,
                split_special_tokens=True,
                truncation=False,
                verbose=False,
            )
        ids = out["input_ids"]
        offsets = out["offset_mapping"]
        if offsets_are_broken(offsets, text):
            offsets = offsets_from_pieces(self.hf, ids, text)
        starts, ends = trim_offsets(offsets, text)
        return Encoding(ids, starts, ends)

    def encode_inside(self, text: str) -> Encoding:
        """RETURNS (Encoding): Tokens of the text as they are behind other text. Tokenizers like Llama 2's
        put a space in front of what they encode, which must not be there."""
        if not self._adds_space:
            return self.encode(text)
        # A line break has a token of its own that goes together with nothing.
        n = len(self.encode("\n"))
        whole = self.encode("\n" + text)
        return Encoding(whole.ids[n:], whole.starts[n:] - 1, whole.ends[n:] - 1)

    def encode_control(self, text: str) -> List[int]:
        """RETURNS (List[int]): Tokens of a text of our own, in which names of special tokens are these."""
        with self._lock:
            return list(self.hf(text, add_special_tokens=False)["input_ids"]) if text else []

    @cached_property
    def _missing_bytes(self) -> bytes:
        """Bytes for which a byte-level vocabulary has no token, and no token for the unknown either."""
        backend = self.hf.backend_tokenizer
        unknown = getattr(backend.model, "unk_token", None)
        if unknown or "ByteLevel" not in str(backend.pre_tokenizer):
            return b""
        alphabet, vocab = set(ByteLevel.alphabet()), self.hf.get_vocab()
        # Bytes that cannot be printed are written as the letters from U+0100 on, in their order.
        hidden = [byte for byte in range(256) if chr(byte) not in alphabet]
        letters = {byte: chr(0x100 + k) for k, byte in enumerate(hidden)}
        return bytes(byte for byte in range(256) if letters.get(byte, chr(byte)) not in vocab)

    @cached_property
    def _adds_space(self) -> bool:
        token = self.hf.convert_ids_to_tokens(self.encode("a").ids[:1])
        return bool(token) and token[0].startswith("▁")


def strided_windows(n_tokens: int, size: int, overlap: int) -> List[StridedWindow]:
    """Cut a long text into overlapping windows.

    n_tokens (int): Tokens of the text.
    size (int): Tokens of a window at most.
    overlap (int): Tokens of left context that a window reads again.
    RETURNS (List[StridedWindow]): The `keep` to `end` stretches cover every token once.
    """
    out = [StridedWindow(0, 0, min(size, n_tokens))]
    while out[-1].end < n_tokens:
        keep = out[-1].end
        start = keep - overlap
        out.append(StridedWindow(start, keep, min(start + size, n_tokens)))
    return out


def trim_offsets(offsets: Sequence[Tuple[int, int]], text: str) -> Tuple[np.ndarray, np.ndarray]:
    """Take leading white space out of the tokens' offsets.

    Byte-level BPE and Llama-style tokenizers count the space in front of a word to its token.
    RETURNS (Tuple[ndarray, ndarray]): Starts and ends, both ascending.
    """
    starts = np.zeros(len(offsets), dtype=np.int64)
    ends = np.zeros(len(offsets), dtype=np.int64)
    reached = 0
    for i, (start, end) in enumerate(offsets):
        # Some tokenizers report (0, 0) for a piece that they added themselves.
        start, end = max(start, 0), max(end, start)
        if end < reached:
            start = end = reached
        first = start
        while first < end and text[first].isspace():
            first += 1
        starts[i] = start if first == end else first
        ends[i] = reached = end
    return np.maximum.accumulate(starts), ends


def offsets_are_broken(offsets: Sequence[Tuple[int, int]], text: str) -> bool:
    """Tell whether a tokenizer reports empty offsets, as those of Llama 3 do in many versions."""
    empty = sum(1 for start, end in offsets if start == end)
    return bool(text.strip()) and empty > len(offsets) // 2


def offsets_from_pieces(tokenizer: Any, ids: Sequence[int], text: str) -> List[Tuple[int, int]]:
    """Rebuild offsets from the text that longer and longer prefixes of the ids decode to.

    RETURNS (List[Tuple[int, int]]): Untrimmed offsets. Pieces of one character share its offsets.
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
    """Decode ids one by one into text whose pieces add up to the whole.

    tokenizer (PreTrainedTokenizerFast): Any fast tokenizer of transformers.
    skip_special (bool): Leave special tokens out of the text.
    """

    # Ids in front of the new one that are decoded with it, at least: some decoders strip the first space.
    CONTEXT = 4

    def __init__(self, tokenizer: Any, skip_special: bool = True) -> None:
        self.backend = tokenizer.backend_tokenizer
        self.skip_special = skip_special
        self.done: List[int] = []
        self.before = ""  # what `done` decodes to
        self.pending: List[int] = []
        self.complete = 0
        # How far the pending text is whole, and how many tokens have added nothing to that.
        self._whole, self._stuck = 0, 0

    def follow(self, ids: Sequence[int]) -> None:
        """Go on behind these tokens."""
        self.done = list(ids[-self.CONTEXT :])
        # It must not begin inside a character: half of one would spoil the decoding of the next.
        for first in range(len(self.done)):
            self.before = self._decode(self.done[first:])
            if not self.before.startswith("\ufffd"):
                self.done = self.done[first:]
                return
        self.before = self._decode(self.done)

    def push(self, token: int) -> str:
        """Add a token.

        RETURNS (str): The text that it completes; "" while a character is still in pieces.
            `complete` is the number of tokens that the text belongs to.
        """
        self.pending.append(token)
        ids = self.done + self.pending
        whole = self._decode(ids)
        piece = whole[len(self.before) :]
        n_whole = len(piece.rstrip("\ufffd"))
        self._stuck = 0 if n_whole > self._whole else self._stuck + 1
        self._whole = n_whole
        # Tokens may hold the end of one character and the beginning of the next, many in a row. But what
        # does not end in any of the four bytes that a character has at most is none.
        if piece.endswith("\ufffd") and self._stuck < 4:
            self.complete = 0
            return ""
        self.complete = len(self.pending)
        self.pending = []
        self._whole, self._stuck = 0, 0
        if len(ids) < 4 * self.CONTEXT:
            self.done, self.before = ids, whole
        else:
            self.follow(ids)
        return piece

    def _decode(self, ids: Sequence[int]) -> str:
        if not ids:
            return ""
        # As PreTrainedTokenizerFast.decode does without cleaning up, which would change the text.
        return self.backend.decode(ids, skip_special_tokens=self.skip_special)
