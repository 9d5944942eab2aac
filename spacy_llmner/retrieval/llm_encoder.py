"""Embed sentences and spans with the shared LLM, so that no second model is needed."""

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
from ..util import CharSpan
from .pooling import fill_spans, span_mean, unit

# Number of texts whose hidden states are in memory at the same time.
CHUNK = 64
# Maximum number of tokens of a text that are read. The rest would hardly change the vector of the text.
WINDOW = 512
# The default layer, as a fraction of the LLM's depth (docs/decisions.md).
DEPTH = 5 / 6
# All vectors of a decoder LLM point in nearly the same direction, so any two texts have a cosine near 1. In
# addition, a few dimensions have a very large standard deviation. Therefore vectors are standardized with
# the mean and the standard deviation of the token vectors of these made-up texts.
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
# Mean and standard deviation of the token vectors of these texts, by LLM and layer. Shape (width,) each.
_STATISTICS: WeakKeyDictionary[LoadedLLM, Dict[int, Tuple[torch.Tensor, torch.Tensor]]] = (
    WeakKeyDictionary()
)


class LLMEncoder:
    """Embeds texts as the mean of the LLM's hidden states in one layer. Creating, copying or pickling it
    loads nothing.

    llm (LLM): A handle on the shared LLM.
    layer (Optional[int]): The layer: 0 for the embeddings, l for the output of block l. None for the layer
        at five sixths of the LLM's depth.
    """

    def __init__(self, llm: LLM, layer: Optional[int] = None) -> None:
        self.llm = llm
        self.layer = layer
        self.batch_tokens = 2048

    @property
    def name(self) -> str:
        """RETURNS (str): The name of the LLM, and the layer if one was given."""
        return self.llm.spec.name + ("" if self.layer is None else f" (layer {self.layer})")

    @property
    def options(self) -> str:
        """RETURNS (str): The options of `spacy llmner index` that create an index with this encoder."""
        layer = "" if self.layer is None else f" --layer {self.layer}"
        return f"--llm {shlex.quote(self.llm.spec.name)}{layer}"

    def encode(self, texts: Sequence[str], *, progress: bool = False) -> np.ndarray:
        """Embed texts. Texts longer than 512 tokens are truncated.

        texts (Sequence[str]): The texts.
        progress (bool): Show a progress bar if standard error is a terminal.
        RETURNS (ndarray): Vectors of length 1, or zeros for an empty text. float32, shape (texts, width).
        """
        out = np.zeros((len(texts), self.width), dtype=np.float32)
        with tqdm(total=len(texts), unit="text", disable=None if progress else True) as bar:
            for number, _, tokens in self._read(texts):
                if len(tokens):
                    out[number] = unit(tokens.mean(0).numpy())
                bar.update()
        return out

    def encode_spans(
        self, texts: Sequence[str], spans: Sequence[Sequence[CharSpan]]
    ) -> List[np.ndarray]:
        """Embed spans in the context of their texts. The vector of a span is the mean of the vectors of its
        tokens, including tokens that are only partly inside. A span beyond the first 512 tokens is embedded
        like a text of its own.

        texts (Sequence[str]): The texts.
        spans (Sequence[Sequence[Tuple[int, int]]]): For each text, the spans: the first character, and one
            past the last.
        RETURNS (List[ndarray]): For each text, vectors of length 1. float32, shape (spans, width).
        """
        found: List[List[Any]] = [[None] * len(of_text) for of_text in spans]
        with_spans = [i for i, of_text in enumerate(spans) if of_text]
        for number, encoding, tokens in self._read([texts[i] for i in with_spans]):
            i, n = with_spans[number], len(tokens)
            starts, ends = encoding.starts[:n], encoding.ends[:n]
            found[i] = [span_mean(tokens, starts, ends, span) for span in spans[i]]
        return fill_spans(found, texts, spans, self)

    @property
    def fingerprint(self) -> str:
        """RETURNS (str): The fingerprint of the LLM's weights, and the layer. Loads the LLM."""
        llm = self.llm.load()
        return f"{llm.fingerprint}-{self._layer_of(llm)}"

    @property
    def former_fingerprint(self) -> str:
        """RETURNS (str): The fingerprint that version 0.1.0 saved for the same weights."""
        llm = self.llm.load()
        return f"{llm.sampled_fingerprint}-{self._layer_of(llm)}"

    @property
    def width(self) -> int:
        """RETURNS (int): The length of a vector. Loads the LLM."""
        return self.llm.load().width

    def unload(self) -> None:
        """Free the LLM's shared weights. The next use of any handle loads them again."""
        self.llm.unload()

    def _read(self, texts: Sequence[str]) -> Iterator[Tuple[int, Encoding, torch.Tensor]]:
        """YIELDS (Tuple[int, Encoding, Tensor]): For each text, its index, its tokens, and the standardized
        vectors of the tokens that are inside the window. Shape (tokens, width)."""
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
                # The BOS token is left out: in every LLM, the state of the first token is very different
                # from all others.
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
    """Create an encoder that uses the shared LLM. Registered as `spacy_llmner.LLMEncoder.v1` in `@misc`.

    llm (Union[str, LLM]): The shared LLM: its name, or a handle on it (`@misc = "spacy_llmner.LLM.v1"`).
    layer (Optional[int]): The layer: 0 for the embeddings, l for the output of block l. None (default) for
        the layer at five sixths of the LLM's depth.
    RETURNS (LLMEncoder): A handle. The LLM is loaded at first use.
    """
    return LLMEncoder(as_llm(llm), layer)
