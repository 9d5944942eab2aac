"""From the LLM's tokens to a Doc's words: what the probes see of each word."""

from dataclasses import dataclass
from typing import Any, Dict, List, Optional, Sequence, Tuple

import numpy as np
import torch
from spacy.tokens import Doc

from ...llm.hidden_states import Features, FeatureSpec, read_texts
from ...llm.loading import LoadedLLM
from ...llm.tokenization import Encoding, strided_windows

ATTENTION_KINDS = ("current", "next", "both", "adjacency")
# Keys in the second softmax of the adjacency variant (methods.md 1a.3).
ADJACENT_KEYS = 6


@dataclass
class WordFeatures:
    """What the LLM computed at the words of one Doc.

    hidden (Tensor): Shape (words, layers, width): the last token that covers a word's last
        character, since only that one has seen the whole word.
    attention (Optional[Tensor]): Shape (words, max_words, kinds, layers * heads). Cell [e, k] is about
        the span from word e - k to word e: the attention that its last token ("current"), or the
        token after it ("next"), gives to its first token; both in this order for "both". For
        "adjacency" max_words is 1, and the cell says how word e looks at the token before it.
    """

    hidden: torch.Tensor
    attention: Optional[torch.Tensor] = None

    def __len__(self) -> int:
        return len(self.hidden)


@dataclass(frozen=True)
class WordReader:
    """How words are read from the LLM.

    layers (Tuple[int, ...]): Layers whose hidden states are used.
    attention (Optional[str]): One of ATTENTION_KINDS; None reads no attention.
    max_words (int): Longest span in words that attention is kept for.
    key_window (int): Longest span in tokens, likewise.
    max_length (int): Tokens that go through the LLM at once; longer texts are read in windows.
    overlap (int): Tokens of left context that a window repeats.
    max_batch_tokens (int): Budget of one forward pass.
    prefix (str): Read in front of every text. Not with attention.
    read_twice (bool): Read each window two times in a row and take the second copy, in which the LLM
        has seen what follows. Not with attention.
    """

    layers: Tuple[int, ...]
    attention: Optional[str] = None
    max_words: int = 8
    key_window: int = 20
    max_length: int = 1024
    overlap: int = 256
    max_batch_tokens: int = 2048
    read_twice: bool = False
    prefix: str = ""

    @property
    def probed(self) -> FeatureSpec:
        return FeatureSpec(self.layers, self.key_window if self.attention else 0)

    def key(self) -> Dict[str, Any]:
        """RETURNS (Dict[str, Any]): All settings that change the features."""
        size = [self.max_words, self.key_window] if self.attention else []
        return {
            "layers": list(self.layers),
            "attention": self.attention,
            "size": size,
            "windows": [self.max_length, self.overlap],
            "read_twice": self.read_twice,
            "prefix": self.prefix,
        }

    def read(self, llm: LoadedLLM, docs: Sequence[Doc]) -> List[WordFeatures]:
        """Read the words of some Docs.

        RETURNS (List[WordFeatures]): One for each Doc, float32, on the LLM's device.
        """
        encodings = [llm.tokenizer.encode(doc.text) for doc in docs]
        bos, end = llm.tokenizer.bos, llm.tokenizer.end if self.attention else []
        between = llm.tokenizer.encode("\n").ids if self.read_twice else []
        prefix = bos + llm.tokenizer.encode(self.prefix).ids if self.prefix else []
        front = [] if prefix else bos
        size = min(self.max_length, llm.max_length)
        size -= len(front) + len(prefix) + len(end) + len(between)
        size = max(size // 2 if self.read_twice else size, 2)
        overlap = min(self.overlap, size // 2)
        parts, texts = [], []
        for i, encoding in enumerate(encodings):
            for window in strided_windows(len(encoding), size, overlap):
                ids = encoding.ids[window.start : window.end]
                before = front + ids + between if self.read_twice else front
                last = end if window.end == len(encoding) else []
                # A text may have no token: some tokenizers drop characters.
                if ids:
                    parts.append((i, len(before) + window.keep - window.start))
                    texts.append(before + ids + last)
        read = read_texts(llm, texts, self.probed, self.max_batch_tokens, prefix)
        pieces: List[List[Features]] = [[] for _ in docs]
        for (i, first), features in zip(parts, read):
            pieces[i].append(_part(features, first))
        return [
            self.gather(*word_bounds(doc), encoding, _joined(parts_of, llm, self))
            for doc, encoding, parts_of in zip(docs, encodings, pieces)
        ]

    def gather(
        self, starts: np.ndarray, ends: np.ndarray, encoding: Encoding, tokens: Features
    ) -> WordFeatures:
        """Gather the words' rows from the tokens' rows.

        starts (ndarray): First character of each word, ascending.
        ends (ndarray): One past the last character of each word.
        tokens (Features): One row for each token of the encoding, and one for the token behind if
            attention is read.
        RETURNS (WordFeatures): Zeros where a tokenizer keeps nothing of the text.
        """
        device = tokens.hidden.device
        n_words = len(starts)
        if not len(encoding):
            hidden = torch.zeros((n_words, *tokens.hidden.shape[1:]), device=device)
            if tokens.attention is None:
                return WordFeatures(hidden)
            shape = self._shape(tokens.attention.shape[1] * tokens.attention.shape[2])
            return WordFeatures(hidden, torch.zeros((n_words, *shape), device=device))
        last = encoding.last_tokens(ends).clip(min=0)
        hidden = tokens.hidden[torch.as_tensor(last, device=device)]
        if tokens.attention is None:
            return WordFeatures(hidden)
        first = encoding.first_tokens(starts)
        return WordFeatures(hidden, self._cells(tokens.attention.flatten(1, 2), first, last))

    def _shape(self, n_heads: int) -> Tuple[int, int, int]:
        if self.attention == "adjacency":
            return (1, 1, n_heads)
        return (self.max_words, 2 if self.attention == "both" else 1, n_heads)

    def _cells(self, rows: torch.Tensor, first: np.ndarray, last: np.ndarray) -> torch.Tensor:
        """rows (Tensor): Shape (tokens, layers * heads, window)."""
        if self.attention == "adjacency":
            near = rows[torch.as_tensor(first, device=rows.device)][:, :, :ADJACENT_KEYS]
            return torch.softmax(near, dim=-1)[:, :, 1][:, None, None]
        kinds = {"current": [0], "next": [1], "both": [0, 1]}[str(self.attention)]
        n = len(first)
        e = np.arange(n)[:, None]
        s = e - np.arange(self.max_words)[None]
        out = []
        for shift in kinds:
            query = (last + shift).clip(max=len(rows) - 1)[:, None]
            back = query - first[s.clip(min=0)]
            inside = (s >= 0) & (back >= 0) & (back < rows.shape[2])
            q = torch.as_tensor(np.broadcast_to(query, back.shape).copy(), device=rows.device)
            b = torch.as_tensor(np.where(inside, back, 0), device=rows.device)
            cells = rows[q, :, b]
            mask = torch.as_tensor(inside, device=rows.device)
            out.append(cells * mask[..., None])
        return torch.stack(out, dim=2)


def word_bounds(doc: Doc) -> Tuple[np.ndarray, np.ndarray]:
    """RETURNS (Tuple[ndarray, ndarray]): First character of each token of the Doc, and one past its
    last one."""
    starts = doc.to_array("IDX").astype(np.int64) if len(doc) else np.zeros(0, dtype=np.int64)
    ends = starts + np.array([len(t) for t in doc], dtype=np.int64)
    return starts, ends


def _part(features: Features, start: int) -> Features:
    attention = None if features.attention is None else features.attention[start:]
    return Features(features.hidden[start:], attention)


def _joined(parts: List[Features], llm: LoadedLLM, reader: WordReader) -> Features:
    if len(parts) == 1:
        return parts[0]
    if not parts:
        hidden = torch.zeros((0, len(reader.layers), llm.width), device=llm.device)
        if not reader.attention:
            return Features(hidden)
        shape = (0, llm.n_layers, llm.n_heads, reader.key_window)
        return Features(hidden, torch.zeros(shape, device=llm.device))
    attention = None
    if parts[0].attention is not None:
        attention = torch.cat([p.attention for p in parts if p.attention is not None])
    return Features(torch.cat([p.hidden for p in parts]), attention)
