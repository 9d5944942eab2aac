"""Sentence and span vectors from the shared LLM, where no second model is wanted."""

import shlex
from typing import Any, Dict, Iterator, List, Optional, Sequence, Tuple, Union
from weakref import WeakKeyDictionary

import numpy as np
import torch
from tqdm import tqdm

from ..llm.hidden_states import FeatureSpec, read_texts
from ..llm.loading import LoadedLLM
from ..llm.registry import LLM, as_llm
from ..llm.tokenization import Encoding
from .pooling import Chars, fill_spans, span_mean, unit

# Texts read at once: their hidden states are in memory together.
CHUNK = 64
# Longest text in tokens. What is behind says little about the whole.
WINDOW = 512
# Which layer, as a share of the LLM's depth (docs/decisions.md).
DEPTH = 5 / 6
# All vectors of a decoder LLM point nearly the same way, so that any two texts have a cosine near 1. What
# these made-up texts have in common is taken out: the mean of their token vectors, and the deviation
# of each dimension, a few of which are huge.
COMMON = (
    "The council of Northby voted on Tuesday to repair the old harbour wall before winter.",
    "She opened the window, looked at the rain, and decided to stay at home.",
    "Shares of Larkfield Foods fell by 4 percent after the report.",
    "The patients received 20 mg of the drug twice a day for six weeks.",
    "In 1974 the band recorded its second album in a barn near Velmont.",
    "lol can't believe it's monday already, anyone else tired???",
    "Stir in the flour, add two eggs and bake for forty minutes.",
    "Professor Ilse Maran teaches algebra at the University of Corvale.",
    "Der Zug nach Altenried fährt heute wegen Bauarbeiten eine Stunde später.",
    "La petite ville au bord du fleuve attend le retour des touristes.",
    "公司昨天宣布将在南方开设一家新工厂。",
    "他说明天下午三点在图书馆门口等我。",
    "To install the package, run the command below and restart the server.",
    "The striker scored twice in the second half and Eastmere won 3-1.",
    "Binding of the protein to the receptor was reduced in mutant cells.",
    "Price: 12.50, size M, colour blue, free delivery",
)
# Mean and deviation of their token vectors, by LLM and layer.
_STATISTICS: WeakKeyDictionary[LoadedLLM, Dict[int, Tuple[torch.Tensor, torch.Tensor]]] = (
    WeakKeyDictionary()
)


class LLMEncoder:
    """Encodes texts by the mean of the LLM's hidden states in one layer. Building, copying and
    pickling it loads nothing.

    llm (LLM): The shared LLM.
    layer (Optional[int]): 0 the embeddings, l the output of block l. None for five sixths of the way up.
    """

    def __init__(self, llm: LLM, layer: Optional[int] = None) -> None:
        self.llm = llm
        self.layer = layer
        self.batch_tokens = 2048

    @property
    def name(self) -> str:
        """What the user calls the LLM, and the layer."""
        return self.llm.spec.name + ("" if self.layer is None else f" (layer {self.layer})")

    @property
    def options(self) -> str:
        """Of `spacy llmner index`."""
        layer = "" if self.layer is None else f" --layer {self.layer}"
        return f"--llm {shlex.quote(self.llm.spec.name)}{layer}"

    def encode(self, texts: Sequence[str], *, progress: bool = False) -> np.ndarray:
        """Encode whole texts. Those longer than 512 tokens are cut.

        progress (bool): Show a progress bar, if standard error is a terminal.
        RETURNS (ndarray): float32, shape (texts, width), rows of length 1; zeros for an empty text.
        """
        out = np.zeros((len(texts), self.width), dtype=np.float32)
        with tqdm(total=len(texts), unit="text", disable=None if progress else True) as bar:
            for number, _, tokens in self._read(texts):
                if len(tokens):
                    out[number] = unit(tokens.mean(0).numpy())
                bar.update()
        return out

    def encode_spans(
        self, texts: Sequence[str], spans: Sequence[Sequence[Chars]]
    ) -> List[np.ndarray]:
        """Encode spans in their texts: the mean of the vectors of the tokens that they touch. A span
        beyond the window is encoded as a text of its own.

        spans (Sequence[Sequence[Tuple[int, int]]]): Per text, first character and one past the last.
        RETURNS (List[ndarray]): Per text float32, shape (spans, width), rows of length 1.
        """
        found: List[List[Any]] = [[None] * len(inside) for inside in spans]
        wanted = [i for i, inside in enumerate(spans) if inside]
        for number, encoding, tokens in self._read([texts[i] for i in wanted]):
            i, n = wanted[number], len(tokens)
            starts, ends = encoding.starts[:n], encoding.ends[:n]
            found[i] = [span_mean(tokens, starts, ends, span) for span in spans[i]]
        return fill_spans(found, texts, spans, self)

    @property
    def fingerprint(self) -> str:
        """Of the LLM's weights and the layer; loads the LLM."""
        llm = self.llm.load()
        return f"{llm.fingerprint}-{self._layer_of(llm)}"

    @property
    def width(self) -> int:
        """Of a vector; loads the LLM."""
        return self.llm.load().width

    def unload(self) -> None:
        """Free the LLM's weights, for all who share them; they are loaded again at the next use."""
        self.llm.unload()

    def _read(self, texts: Sequence[str]) -> Iterator[Tuple[int, Encoding, torch.Tensor]]:
        """YIELDS (Tuple[int, Encoding, Tensor]): Number of a text, its tokens, and the vectors of those
        that are inside the window, without what all texts have in common."""
        llm = self.llm.load()
        mean, deviation = self._common(llm)
        for number, encoding, tokens in self._read_raw(llm, texts):
            yield number, encoding, (tokens - mean) / deviation

    def _read_raw(
        self, llm: LoadedLLM, texts: Sequence[str]
    ) -> Iterator[Tuple[int, Encoding, torch.Tensor]]:
        bos = llm.tokenizer.bos
        probed = FeatureSpec(layers=(self._layer_of(llm),))
        longest = min(WINDOW, llm.max_length) - len(bos)
        for first in range(0, len(texts), CHUNK):
            chunk = [
                llm.tokenizer.encode(t if t.strip() else "") for t in texts[first : first + CHUNK]
            ]
            ids = [[*bos, *encoding.ids[:longest]] for encoding in chunk]
            features = read_texts(llm, ids, probed, self.batch_tokens)
            for number, (encoding, read) in enumerate(zip(chunk, features), first):
                # The first token's state is far from all others in every LLM.
                yield number, encoding, read.hidden[len(bos) :, 0].cpu()

    def _common(self, llm: LoadedLLM) -> Tuple[torch.Tensor, torch.Tensor]:
        by_layer = _STATISTICS.setdefault(llm, {})
        layer = self._layer_of(llm)
        if layer not in by_layer:
            rows = torch.cat([tokens for _, _, tokens in self._read_raw(llm, COMMON)])
            by_layer[layer] = rows.mean(0), rows.std(0).clamp_min(1e-6)
        return by_layer[layer]

    def _layer_of(self, llm: LoadedLLM) -> int:
        return round(DEPTH * llm.n_layers) if self.layer is None else self.layer

    def __reduce__(self):
        return LLMEncoder, (self.llm, self.layer)

    def __repr__(self) -> str:
        return f"LLMEncoder({self.llm!r}, layer={self.layer})"


def make_llm_encoder(llm: Union[str, LLM], layer: Optional[int] = None) -> LLMEncoder:
    """Registered as `spacy_llmner.LLMEncoder.v1` in `@misc`.

    llm (Union[str, LLM]): The shared LLM, or its name.
    layer (Optional[int]): 0 the embeddings, l the output of block l. None for five sixths of the way up.
    RETURNS (LLMEncoder): A handle; nothing is loaded.
    """
    return LLMEncoder(as_llm(llm), layer)
