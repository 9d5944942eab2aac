"""Features of a Doc's words, gathered from what the LLM computes for its tokens."""

from dataclasses import dataclass
from typing import Any, Dict, List, Optional, Sequence, Tuple, Union

import numpy as np
import torch
from spacy.attrs import IDX, LENGTH
from spacy.tokens import Doc

from ...llm.hidden_states import Features, FeatureSpec, read_texts
from ...llm.loading import LoadedLLM
from ...llm.tokenization import EncodedTexts, Encoding, strided_windows
from ...util import split

ATTENTION_KINDS = ("current", "next", "both", "adjacency")
# Keys in the second softmax of the adjacency variant, as in the code of EMBER's authors.
ADJACENT_KEYS = 6


@dataclass
class WordFeatures:
    """What the LLM computed for the words of one Doc.

    hidden (Tensor): Shape (words, layers, width). The state of a word is that of the last token that covers
        the word's last character, since earlier tokens have not seen the whole word.
    attention (Optional[Tensor]): Shape (words, max_words, kinds, layers * heads). Cell [e, k] describes the
        span from word e - k to word e. It contains the attention weights that the last token of the span
        ("current"), or the token after it ("next"), gives to the first token of the span. "both" has the
        two kinds in this order. For "adjacency", max_words is 1, and the cell contains the weights that the
        first token of word e gives to the token before it, after a second softmax over ADJACENT_KEYS keys.
    """

    hidden: torch.Tensor
    attention: Optional[torch.Tensor] = None

    def __len__(self) -> int:
        return len(self.hidden)


@dataclass(frozen=True)
class WordReader:
    """Settings for reading words from the LLM.

    layers (Tuple[int, ...]): Layers whose hidden states are used.
    attention (Optional[str]): One of ATTENTION_KINDS; None reads no attention weights.
    max_words (int): Longest span, in words, for which attention weights are stored.
    key_window (int): Longest span, in tokens, for which attention weights are stored.
    max_length (int): Maximum number of tokens per sequence; longer texts are read in windows.
    overlap (int): Tokens of left context that a window repeats.
    max_batch_tokens (int): Token budget of a forward pass.
    prefix (str): Text that the LLM reads before every text. Can't be combined with attention.
    read_twice (bool): Read each window twice in a row and use the states of the second copy, for which the
        LLM has seen the whole window. Can't be combined with attention.
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
        """RETURNS (FeatureSpec): The layers and the attention window to read."""
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

        RETURNS (List[WordFeatures]): One for each Doc, float32, on the LLM's device. The Docs of a forward
            pass share one tensor.
        """
        tokens = llm.tokenizer.encode_batch([doc.text for doc in docs])
        end = llm.tokenizer.end if self.attention else []
        separator = llm.tokenizer.encode("\n").ids if self.read_twice else []
        before = self.before(llm)
        prefix, start = (before, []) if self.prefix else ([], before)
        size, overlap = self.window(llm, len(before))
        needed = self._needed_tokens(docs, tokens, len(end))
        parts, texts, rows = [], [], []
        for i, (ids_of_text, of_text) in enumerate(zip(tokens.ids(), needed)):
            n_tokens = len(ids_of_text)
            for window in strided_windows(n_tokens, size, overlap):
                ids = ids_of_text[window.start : window.end]
                before = start + ids + separator if self.read_twice else start
                after = end if window.end == n_tokens else []
                # A text can have no tokens, because some tokenizers drop characters.
                if ids:
                    parts.append(i)
                    texts.append(before + ids + after)
                    # The first window has all rows before its end, and the last window all after its start.
                    first = np.searchsorted(of_text, window.keep) if window.keep else 0
                    last = None if window.end == n_tokens else np.searchsorted(of_text, window.end)
                    rows.append(of_text[first:last] + (len(before) - window.start))
        read = read_texts(llm, texts, self.probed, self.max_batch_tokens, prefix, rows)
        pieces: List[List[Features]] = [[] for _ in docs]
        for i, features in zip(parts, read):
            pieces[i].append(features)
        found = [_concatenate(*of_doc, llm, self) for of_doc in zip(pieces, needed)]
        if self.attention:
            return [
                self.gather(*word_bounds(doc), encoding, features)
                for doc, encoding, features in zip(docs, tokens, found)
            ]
        return [WordFeatures(features.hidden) for features in found]

    def before(self, llm: LoadedLLM) -> List[int]:
        """RETURNS (List[int]): The tokens before each window: the BOS token and the prefix."""
        return llm.tokenizer.bos + (llm.tokenizer.encode(self.prefix).ids if self.prefix else [])

    def window(self, llm: LoadedLLM, n_before: int) -> Tuple[int, int]:
        """n_before (int): Number of tokens before each window.
        RETURNS (Tuple[int, int]): Size and overlap of the windows, as in `strided_windows`.
        """
        size = min(self.max_length, llm.max_length) - n_before
        size -= len(llm.tokenizer.end) if self.attention else 0
        if self.read_twice:
            size = (size - len(llm.tokenizer.encode("\n"))) // 2  # two copies and a line break
        size = max(size, 2)
        return size, min(self.overlap, size // 2)

    def _needed_tokens(
        self, docs: Sequence[Doc], tokens: EncodedTexts, n_after: int
    ) -> List[np.ndarray]:
        """RETURNS (List[ndarray]): For each Doc, the indices of the tokens whose features are needed. With
        attention, these are all tokens, and those after the text.
        """
        if self.attention:
            return [np.arange(n + n_after) for n in np.diff(tokens.first_tokens).tolist()]
        n_words = [len(doc) for doc in docs]
        starts, lengths = token_attributes(docs, [IDX, LENGTH]).view(np.int64).T
        return split(tokens.last_tokens(starts + lengths, n_words), n_words)

    def gather(
        self, starts: np.ndarray, ends: np.ndarray, encoding: Encoding, tokens: Features
    ) -> WordFeatures:
        """Select the words' rows from the tokens' rows.

        starts (ndarray): First character of each word, ascending.
        ends (ndarray): One past the last character of each word.
        encoding (Encoding): The tokens.
        tokens (Features): One row per token of the encoding; with attention, also a row for the token after
            the last one.
        RETURNS (WordFeatures): One row per word; zeros if the encoding has no tokens.
        """
        device = tokens.hidden.device
        n_words = len(starts)
        if not len(encoding):
            hidden = torch.zeros((n_words, *tokens.hidden.shape[1:]), device=device)
            if tokens.attention is None:
                return WordFeatures(hidden)
            shape = self._cell_shape(tokens.attention.shape[1] * tokens.attention.shape[2])
            return WordFeatures(hidden, torch.zeros((n_words, *shape), device=device))
        last = encoding.last_tokens(ends).clip(min=0)
        hidden = tokens.hidden[torch.as_tensor(last, device=device)]
        if tokens.attention is None:
            return WordFeatures(hidden)
        first = encoding.first_tokens(starts)
        return WordFeatures(
            hidden, self._attention_cells(tokens.attention.flatten(1, 2), first, last)
        )

    def _cell_shape(self, n_heads: int) -> Tuple[int, int, int]:
        if self.attention == "adjacency":
            return (1, 1, n_heads)
        return (self.max_words, 2 if self.attention == "both" else 1, n_heads)

    def _attention_cells(
        self, rows: torch.Tensor, first: np.ndarray, last: np.ndarray
    ) -> torch.Tensor:
        """rows (Tensor): Shape (tokens, layers * heads, key window).
        RETURNS (Tensor): Shape (words, max_words, kinds, layers * heads).
        """
        if self.attention == "adjacency":
            nearby = rows[torch.as_tensor(first, device=rows.device)][:, :, :ADJACENT_KEYS]
            return torch.softmax(nearby, dim=-1)[:, :, 1][:, None, None]
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
    """RETURNS (Tuple[ndarray, ndarray]): First character of each token of the Doc, and one past its last
    character.
    """
    starts, lengths = token_attributes([doc], [IDX, LENGTH]).view(np.int64).T
    return starts, starts + lengths


def token_attributes(docs: Sequence[Doc], attributes: List[Union[int, str]]) -> np.ndarray:
    """RETURNS (ndarray): uint64, shape (words, attributes): attributes of the tokens of all Docs."""
    arrays = [doc.to_array(attributes).reshape(len(doc), -1) for doc in docs if len(doc)]
    return np.concatenate([np.zeros((0, len(attributes)), dtype=np.uint64), *arrays])


def _concatenate(
    parts: List[Features], needed: np.ndarray, llm: LoadedLLM, reader: WordReader
) -> Features:
    """RETURNS (Features): The features of the parts of a text. Zeros if it has no tokens."""
    if len(parts) == 1:
        return parts[0]
    if not parts:
        hidden = torch.zeros((len(needed), len(reader.layers), llm.width), device=llm.device)
        if not reader.attention:
            return Features(hidden)
        shape = (len(needed), llm.n_layers, llm.n_heads, reader.key_window)
        return Features(hidden, torch.zeros(shape, device=llm.device))
    attention = None
    if parts[0].attention is not None:
        attention = torch.cat([p.attention for p in parts if p.attention is not None])
    return Features(torch.cat([p.hidden for p in parts]), attention)
