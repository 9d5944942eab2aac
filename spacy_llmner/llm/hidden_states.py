"""Hidden states of chosen layers and attention rows, from the forward passes of a frozen LLM.

Both come from the model's own forward pass, for whole texts in batches (`read_texts`) or step by step
while it generates (`StepReader`). Layers are recorded through a view: a second module tree over the same
parameters, whose decoder layers record their input. The shared model itself is never changed. A view for
finished text ends above the highest recorded layer.
"""

from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Callable, Iterator, List, Optional, Sequence, Tuple

import torch
from torch import nn
from transformers import DynamicCache

from ..errors import Errors, LLMNERError
from ..util import batches_by_length
from .attention import Recorder
from .loading import LoadedLLM
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
) -> List[Features]:
    """Run the LLM over whole texts.

    texts (Sequence[Sequence[int]]): Token ids of each text, usually starting with LLMTokenizer.bos.
    probed (FeatureSpec): The features to read.
    max_batch_tokens (int): Tokens of one forward pass, padding included. Texts are batched by length.
    prefix (Sequence[int]): Tokens to read before each text. They go through the LLM only once, and the
        result has no rows for them. Can't be combined with attention.
    RETURNS (List[Features]): The features of each text, with one row per token id.
    """
    _check_layers(llm, probed)
    view = reading_view(llm, probed.layers, probed.end(llm))
    out: List[Optional[Features]] = [None] * len(texts)
    for batch in batches_by_length([len(ids) for ids in texts], max_batch_tokens):
        batch_texts = [texts[i] for i in batch]
        for i, features in zip(batch, _read_batch(llm, view, batch_texts, probed, tuple(prefix))):
            out[i] = features
    return [f for f in out if f is not None]


def _read_batch(
    llm: LoadedLLM,
    view: nn.Module,
    texts: Sequence[Sequence[int]],
    probed: FeatureSpec,
    prefix: Tuple[int, ...],
) -> List[Features]:
    # Models reject empty input, so a batch of empty texts gets one padding token.
    longest = max(1, *(len(ids) for ids in texts))
    # Padding comes after the text, where a causal model can't see it, so no mask is needed.
    ids = torch.zeros((len(texts), longest), dtype=torch.long)
    for row, text in enumerate(texts):
        ids[row, : len(text)] = torch.as_tensor(text)
    with torch.no_grad(), Recorder(probed.window) as recorder:
        if prefix:
            _read_after_prefix(llm, view, prefix, ids.to(llm.device))
        else:
            view(input_ids=ids.to(llm.device), use_cache=False)
        hidden, attention = _recorded(llm, probed, recorder)
    out = []
    for row, text in enumerate(texts):
        n = len(text)
        # Copies, since a slice would keep the whole batch in memory.
        text_attention = None if attention is None else attention[row, :n].clone()
        out.append(Features(hidden[row, :n].clone(), text_attention))
    return out


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
        self.llm = llm
        self.probed = probed
        self.model = generating_view(llm, probed.layers)
        # Without a cache object, GPT-2 returns a tuple, which later passes don't extend.
        self.cache: Any = DynamicCache()
        self._recorder = Recorder(probed.window)

    @torch.no_grad()
    def feed(self, ids: Sequence[int]) -> Tuple[torch.Tensor, Features]:
        """Run the LLM on the next tokens: first the prompt, then one token per call.

        RETURNS (Tuple[Tensor, Features]): Logits of the last position, shape (vocabulary,), and the
            features of these tokens.
        """
        with self._recorder:
            inputs = torch.tensor([list(ids)], device=self.llm.device)
            out = self.model(
                input_ids=inputs, past_key_values=self.cache, use_cache=True, logits_to_keep=1
            )
        self.cache = out.past_key_values
        logits = out.logits[0, -1].to(self.llm.device)
        return logits, _last_pass(self.llm, self.probed, self._recorder)

    @torch.no_grad()
    def feed_last(self, ids: Sequence[int]) -> Features:
        """Run the LLM on the last tokens of a text. Blocks that the features don't need are skipped.

        RETURNS (Features): The features of these tokens.
        """
        view = reading_view(self.llm, self.probed.layers, self.probed.end(self.llm))
        with self._recorder:
            inputs = torch.tensor([list(ids)], device=self.llm.device)
            view(input_ids=inputs, past_key_values=self.cache, use_cache=True)
        return _last_pass(self.llm, self.probed, self._recorder)


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
    hidden, attention = _recorded(llm, probed, recorder)
    return Features(hidden[0], None if attention is None else attention[0])


def _recorded(
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
