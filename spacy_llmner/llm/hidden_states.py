"""Hidden states of chosen layers and attention rows, from the forward passes of a frozen LLM.

Both come from the model's own forward pass, for whole texts in batches (`read_texts`), step by step while
it generates (`StepReader`), or for a text that arrives in pieces (`WindowReader`). Layers are recorded
through a view: a second module tree over the same parameters, whose decoder layers record their input. The
shared model itself is never changed. A view for finished text ends above the highest recorded layer.
"""

import inspect
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain
from typing import Callable, Iterator, List, Optional, Sequence, Tuple

import numpy as np
import torch
from torch import nn

from ..errors import Errors, LLMNERError
from ..models.versions import cache_argument
from ..util import batches_by_length, padded_positions
from .attention import Recorder
from .loading import LoadedLLM
from .transfer import to_device
from .tree_attention import KVCache, causal_pass, run_decoder
from .views import generating_view, reading_view


@dataclass
class Features:
    """The LLM's features of one text.

    hidden (Tensor): float32, shape (tokens, layers, width). Layers are in the order of the FeatureSpec.
    attention (Optional[Tensor]): float32, shape (tokens, layers of the LLM, heads, window): the attention
        weights of each token on itself and the window - 1 tokens before it.
    """

    hidden: torch.Tensor
    attention: Optional[torch.Tensor] = None


@dataclass(frozen=True)
class FeatureSpec:
    """Which features to read.

    layers (Tuple[int, ...]): Layer indices as in transformers: 0 is the embeddings, l the output of block
        l. The last layer is read after the final norm.
    window (int): Keys per attention row; 0 reads no attention. Attention is read on all layers of
        the LLM.
    """

    layers: Tuple[int, ...]
    window: int = 0

    def end(self, llm: LoadedLLM) -> int:
        """RETURNS (int): The number of blocks of the LLM that must be computed."""
        return llm.n_layers if self.window else max(self.layers)


def read_texts(
    llm: LoadedLLM,
    texts: Sequence[Sequence[int]],
    probed: FeatureSpec,
    max_batch_tokens: int = 2048,
    prefix: Sequence[int] = (),
    rows: Optional[Sequence[np.ndarray]] = None,
) -> List[Features]:
    """Run the LLM over whole texts.

    texts (Sequence[Sequence[int]]): Token ids of each text, usually starting with LLMTokenizer.bos.
    probed (FeatureSpec): The features to read.
    max_batch_tokens (int): Tokens of one forward pass, padding included. Texts are batched by length.
    prefix (Sequence[int]): Tokens to read before each text. They go through the LLM only once, and the
        result has no rows for them. Can't be combined with attention.
    rows (Optional[Sequence[ndarray]]): For each text, the indices of the tokens whose features are needed.
        The texts of a forward pass then share one tensor. None for all tokens, in tensors of their own.
    RETURNS (List[Features]): The features of each text, with one row per token id or index.
    """
    _check_layers(llm, probed)
    if prefix:
        llm.require("trees")
    view = reading_view(llm, probed.layers, probed.end(llm))
    out: List[Optional[Features]] = [None] * len(texts)
    for batch in batches_by_length([len(ids) for ids in texts], max_batch_tokens):
        batch_texts = [texts[i] for i in batch]
        batch_rows = None if rows is None else [rows[i] for i in batch]
        features = _read_batch(llm, view, batch_texts, probed, tuple(prefix), batch_rows)
        for i, of_text in zip(batch, features):
            out[i] = of_text
    return [f for f in out if f is not None]


def _read_batch(
    llm: LoadedLLM,
    view: nn.Module,
    texts: Sequence[Sequence[int]],
    probed: FeatureSpec,
    prefix: Tuple[int, ...],
    rows: Optional[Sequence[np.ndarray]],
) -> List[Features]:
    lengths = [len(ids) for ids in texts]
    # Models reject empty input, so a batch of empty texts gets one padding token.
    longest = max(1, *lengths)
    # Padding comes after the text, where a causal model can't see it, so no mask is needed.
    ids = np.zeros((len(texts), longest), dtype=np.int64)
    np.put(ids, padded_positions(lengths, longest), np.fromiter(chain(*texts), dtype=np.int64))
    inputs = to_device(ids, llm.device)
    with torch.no_grad(), Recorder(probed.window) as recorder:
        if prefix:
            _read_after_prefix(llm, view, prefix, inputs)
        else:
            view(input_ids=inputs, use_cache=False)
        if rows is None:
            hidden, attention = recorded(llm, probed, recorder)
        else:
            return _rows_of_texts(llm, probed, recorder, rows)
    out = []
    for row, n in enumerate(lengths):
        # Copies, since a slice would keep the whole batch in memory.
        text_attention = None if attention is None else attention[row, :n].clone()
        out.append(Features(hidden[row, :n].clone(), text_attention))
    return out


def _rows_of_texts(
    llm: LoadedLLM, probed: FeatureSpec, recorder: Recorder, rows: Sequence[np.ndarray]
) -> List[Features]:
    """RETURNS (List[Features]): For each text, the features of some of its tokens."""
    lengths = [len(of_text) for of_text in rows]
    longest = recorder.hidden[probed.layers[0]].shape[1]
    texts = np.repeat(np.arange(len(rows)) * longest, lengths)
    index = to_device(texts + np.concatenate(rows), llm.device)

    def selected(layers: Sequence[torch.Tensor]) -> Tuple[torch.Tensor, ...]:
        """RETURNS (Tuple[Tensor, ...]): float32, for each text shape (rows, layers, ...)."""
        out = torch.empty(
            (len(index), len(layers), *layers[0].shape[2:]), dtype=torch.float32, device=llm.device
        )
        for k, layer in enumerate(layers):
            # Much faster on a CPU than `layer[index]`. Layers can be on several devices.
            out[:, k] = layer.flatten(0, 1).index_select(0, index.to(layer.device))
        return out.split(lengths)

    hidden = selected([recorder.hidden[layer] for layer in probed.layers])
    if not probed.window:
        return [Features(of_text) for of_text in hidden]
    attention = selected([recorder.rows[k] for k in range(llm.n_layers)])
    return [Features(*of_text) for of_text in zip(hidden, attention)]


def _read_after_prefix(
    llm: LoadedLLM, view: nn.Module, prefix: Tuple[int, ...], ids: torch.Tensor
) -> None:
    """Send texts through a view, each after the same prefix."""
    n, size = len(prefix), ids.shape[1]
    caches = llm.prefixes.setdefault(view, {})
    if prefix not in caches:
        cache = KVCache()
        positions = torch.arange(n, device=ids.device)
        prefix_pass = causal_pass(0, n, ids.device)
        prefix_pass.cache, prefix_pass.slots = cache, positions
        run_decoder(view, torch.tensor([prefix], device=ids.device), positions[None], prefix_pass)
        caches[prefix] = cache.copy(positions)
    tree_pass = causal_pass(n, size, ids.device)
    tree_pass.prefix = caches[prefix]
    positions = torch.arange(n, n + size, device=ids.device)[None].expand(len(ids), -1)
    run_decoder(view, ids, positions, tree_pass)


class StepReader:
    """Reads features of the LLM while it generates. Each token goes through the LLM once, with a KV cache.

    llm (LoadedLLM): The shared LLM.
    probed (FeatureSpec): The features to read, in addition to the logits.
    """

    def __init__(self, llm: LoadedLLM, probed: FeatureSpec) -> None:
        _check_layers(llm, probed)
        llm.require("streams")
        self.llm = llm
        self.probed = probed
        self.model = generating_view(llm, probed.layers)
        self._cache = cache_argument(llm.model)
        self._recorder = Recorder(probed.window)
        # Older architectures always compute the logits of all positions.
        can_skip = "logits_to_keep" in inspect.signature(llm.model.forward).parameters
        self._last_logits = {"logits_to_keep": 1} if can_skip else {}

    @torch.no_grad()
    def feed(self, ids: Sequence[int]) -> Tuple[torch.Tensor, Features]:
        """Run the LLM on the next tokens: first the prompt, then one token per call.

        RETURNS (Tuple[Tensor, Features]): Logits of the last position, shape (vocabulary,), and the
            features of these tokens.
        """
        with self._recorder:
            inputs = torch.tensor([list(ids)], device=self.llm.device)
            out = self.model(input_ids=inputs, use_cache=True, **self._last_logits, **self._cache)
        logits = out.logits[0, -1].to(self.llm.device)
        return logits, _last_pass(self.llm, self.probed, self._recorder)

    @torch.no_grad()
    def feed_last(self, ids: Sequence[int]) -> Features:
        """Run the LLM on tokens after which it writes nothing. Blocks that the features don't need are
        skipped.

        RETURNS (Features): The features of these tokens.
        """
        view = reading_view(self.llm, self.probed.layers, self.probed.end(self.llm))
        with self._recorder:
            inputs = torch.tensor([list(ids)], device=self.llm.device)
            view(input_ids=inputs, use_cache=True, **self._cache)
        return _last_pass(self.llm, self.probed, self._recorder)


class WindowReader:
    """Reads the features of a text whose tokens arrive in pieces, in the windows of `strided_windows`.

    Each token goes through the LLM once, with a KV cache, and those of an overlap once more.

    llm (LoadedLLM): The shared LLM.
    probed (FeatureSpec): The features to read.
    before (Sequence[int]): Tokens before each window, such as the BOS token.
    size (int): Maximum number of tokens per window, without those before it.
    overlap (int): Number of tokens of the previous window that a window starts with.
    """

    def __init__(
        self, llm: LoadedLLM, probed: FeatureSpec, before: Sequence[int], size: int, overlap: int
    ) -> None:
        self.llm = llm
        self.probed = probed
        self.before = list(before)
        self.size = size
        self.overlap = overlap
        self._window: List[int] = []
        self._steps, self._unread = StepReader(llm, probed), self.before

    def read(self, ids: Sequence[int]) -> List[Features]:
        """Read the next tokens.

        RETURNS (List[Features]): Their features, one object for each forward pass.
        """
        out = []
        rest = list(ids)
        while rest:
            if len(self._window) == self.size:
                self._window = self._window[self.size - self.overlap :]
                self._steps = StepReader(self.llm, self.probed)
                self._unread = self.before + self._window
            n = self.size - len(self._window)
            out.append(self.read_end(rest[:n]))
            self._window = self._window + rest[:n]
            rest = rest[n:]
        return out

    def read_end(self, ids: Sequence[int]) -> Features:
        """Read tokens in the current window, even if it is full.

        RETURNS (Features): Their features.
        """
        n_context = len(self._unread)
        features = self._steps.feed_last([*self._unread, *ids])
        self._unread = []
        self.llm.check_finite(features.hidden)
        attention = features.attention
        return Features(
            features.hidden[n_context:], None if attention is None else attention[n_context:]
        )


@contextmanager
def tap_generation(
    llm: LoadedLLM, probed: FeatureSpec
) -> Iterator[Callable[[], Optional[Features]]]:
    """Record the forward passes that this thread runs on a generating view inside the `with` block.

    YIELDS (Callable[[], Optional[Features]]): Returns the features of the last forward pass (batch size 1),
        or None if there was no pass since the last call.
    """
    with Recorder(probed.window) as recorder:

        def read() -> Optional[Features]:
            if not recorder.hidden:
                return None
            features = _last_pass(llm, probed, recorder)
            recorder.hidden.clear()
            return features

        yield read


def _last_pass(llm: LoadedLLM, probed: FeatureSpec, recorder: Recorder) -> Features:
    hidden, attention = recorded(llm, probed, recorder)
    return Features(hidden[0], None if attention is None else attention[0])


def recorded(
    llm: LoadedLLM, probed: FeatureSpec, recorder: Recorder
) -> Tuple[torch.Tensor, Optional[torch.Tensor]]:
    """RETURNS (Tuple[Tensor, Optional[Tensor]]): The tensors of Features, with an additional batch axis."""
    states = [recorder.hidden[layer].to(llm.device) for layer in probed.layers]
    hidden = torch.cat(states, dim=2).view(*states[0].shape[:2], len(states), -1).float()
    if not probed.window:
        return hidden, None
    rows = [recorder.rows[k].to(llm.device) for k in range(llm.n_layers)]
    return hidden, torch.stack(rows, dim=2)


def _check_layers(llm: LoadedLLM, probed: FeatureSpec) -> None:
    for layer in probed.layers:
        if not 0 <= layer <= llm.n_layers:
            raise LLMNERError(
                Errors.E009.format(layer=layer, name=llm.spec.name, n_layers=llm.n_layers)
            )
    if probed.window:
        llm.require("attention")
