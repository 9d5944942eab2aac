"""What a frozen LLM computes anyway: hidden states of chosen layers and attention rows.

Both come from the model's own forward pass, for whole texts in batches (`read_texts`) and step by
step while it generates (`StepReader`). The layers are tapped through a view: a second module tree over
the same parameters, whose decoder layers say what goes into them. The shared model itself is never
changed, and a view for finished text ends above the highest tapped layer.
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
    """What the LLM computed for one text.

    hidden (Tensor): float32, shape (tokens, layers, width), in the order the layers were asked for.
    attention (Optional[Tensor]): float32, shape (tokens, layers of the LLM, heads, window): the weight that
        each token gives to itself and the window - 1 tokens before it.
    """

    hidden: torch.Tensor
    attention: Optional[torch.Tensor] = None


@dataclass(frozen=True)
class FeatureSpec:
    """What to read.

    layers (Tuple[int, ...]): Indices as in transformers: 0 the embeddings, l the output of block l,
        the last one after the final norm.
    window (int): Keys per attention row; 0 reads no attention. Attention is read on all layers of
        the LLM.
    """

    layers: Tuple[int, ...]
    window: int = 0

    def end(self, llm: LoadedLLM) -> int:
        """RETURNS (int): How many blocks of the LLM have to be computed."""
        return llm.n_layers if self.window else max(self.layers)


def read_texts(
    llm: LoadedLLM,
    texts: Sequence[Sequence[int]],
    probed: FeatureSpec,
    max_batch_tokens: int = 2048,
    prefix: Sequence[int] = (),
) -> List[Features]:
    """Run the LLM over whole texts.

    texts (Sequence[Sequence[int]]): Token ids of each text, with the sink in front if wanted.
    prefix (Sequence[int]): Tokens in front of all texts. They go through the LLM once, and have no rows
        in what is returned. Not with attention.
    max_batch_tokens (int): Padded tokens of one forward pass. Texts are batched by length.
    RETURNS (List[Features]): In the order of the texts, one row per id.
    """
    _check_layers(llm, probed)
    view = reading_view(llm, probed.layers, probed.end(llm))
    out: List[Optional[Features]] = [None] * len(texts)
    for batch in batches_by_length([len(ids) for ids in texts], max_batch_tokens):
        inside = [texts[i] for i in batch]
        for i, features in zip(batch, _read_batch(llm, view, inside, probed, tuple(prefix))):
            out[i] = features
    return [f for f in out if f is not None]


def _read_batch(
    llm: LoadedLLM,
    view: nn.Module,
    texts: Sequence[Sequence[int]],
    probed: FeatureSpec,
    prefix: Tuple[int, ...],
) -> List[Features]:
    # Models can't read nothing: a batch of empty texts reads padding.
    longest = max(1, *(len(ids) for ids in texts))
    # Padding stands behind the text, where a causal model can't see it, so no mask is needed.
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
        cells = None if attention is None else attention[row, :n].clone()
        out.append(Features(hidden[row, :n].clone(), cells))
    return out


def _read_after_prefix(
    llm: LoadedLLM, view: nn.Module, prefix: Tuple[int, ...], ids: torch.Tensor
) -> None:
    """Send texts through a view, each behind the same prefix."""
    n, size = len(prefix), ids.shape[1]
    read = llm.prefixes.setdefault(view, {})
    if prefix not in read:
        cache = KVCache()
        place = torch.arange(n, device=ids.device)
        first = causal_pass(0, n, ids.device)
        first.cache, first.slots = cache, place
        run_decoder(view, torch.tensor([prefix], device=ids.device), place[None], first)
        read[prefix] = cache.copy(place)
    tree_pass = causal_pass(n, size, ids.device)
    tree_pass.prefix = read[prefix]
    place = torch.arange(n, n + size, device=ids.device)[None].expand(len(ids), -1)
    run_decoder(view, ids, place, tree_pass)


class StepReader:
    """Read the LLM while it writes: each token goes through it once, with a KV cache.

    llm (LoadedLLM): The shared LLM.
    probed (FeatureSpec): What to read besides the logits.
    """

    def __init__(self, llm: LoadedLLM, probed: FeatureSpec) -> None:
        _check_layers(llm, probed)
        self.llm = llm
        self.probed = probed
        self.model = generating_view(llm, probed.layers)
        # Without one, GPT-2 makes a tuple, which a pass does not extend.
        self.cache: Any = DynamicCache()
        self._recorder = Recorder(probed.window)

    @torch.no_grad()
    def feed(self, ids: Sequence[int]) -> Tuple[torch.Tensor, Features]:
        """Let the LLM read the next tokens: the prompt at first, then one a call.

        RETURNS (Tuple[Tensor, Features]): Logits of the last position, shape (vocabulary,), and the
            features of the tokens fed.
        """
        with self._recorder:
            inputs = torch.tensor([list(ids)], device=self.llm.device)
            out = self.model(
                input_ids=inputs, past_key_values=self.cache, use_cache=True, logits_to_keep=1
            )
        self.cache = out.past_key_values
        return out.logits[0, -1], _last_pass(self.llm, self.probed, self._recorder)

    @torch.no_grad()
    def feed_last(self, ids: Sequence[int]) -> Features:
        """Let the LLM read tokens that nothing follows, no further than its features need.

        RETURNS (Features): Of the tokens fed.
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
    """Tap the passes that this thread sends through a generating view inside the block.

    YIELDS (Callable[[], Optional[Features]]): Gives the features of the last forward pass (batch size 1);
        None if there was none since it was asked before.
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
    """RETURNS (Tuple[Tensor, Optional[Tensor]]): As in Features, of each text of a batch."""
    states = [recorder.hidden[layer] for layer in probed.layers]
    hidden = torch.cat(states, dim=2).view(*states[0].shape[:2], len(states), -1).float()
    if not probed.window:
        return hidden, None
    return hidden, torch.stack([recorder.rows[k] for k in range(llm.n_layers)], dim=2)


def _check_layers(llm: LoadedLLM, probed: FeatureSpec) -> None:
    for layer in probed.layers:
        if not 0 <= layer <= llm.n_layers:
            raise LLMNERError(
                Errors.E009.format(layer=layer, name=llm.spec.name, n_layers=llm.n_layers)
            )
