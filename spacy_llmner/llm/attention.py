"""SDPA attention that can also tell the weights of a few keys, without ever building the full map.

Every shared LLM is loaded with this attention. It is transformers' own SDPA, and where a recorder
is active in the calling thread, it adds the attention rows of the query tokens, restricted to a
window of keys, from the same queries and keys. So nothing is switched on the model, no hook is
left behind, and two threads don't see each other's recorder.
"""

from contextvars import ContextVar
from typing import Any, Dict, Optional, Tuple

import torch
from transformers.integrations.sdpa_attention import repeat_kv, sdpa_attention_forward
from transformers.masking_utils import AttentionMaskInterface, sdpa_mask
from transformers.modeling_utils import AttentionInterface

from .tree_attention import current_pass

ATTENTION = "llmner_sdpa"
# Queries are taken in slices, so that memory grows with the length of the text, not its square.
SLICE = 128


class Recorder:
    """Records what the forward passes say that this thread makes while it is entered.

    window (int): Number of keys kept per query: the query itself and the window - 1 before it. 0 records
        no attention.
    rows (Dict[int, Tensor]): By layer: attention probabilities, float32, shape (batch, queries,
        heads, window). Cell [..., w] is the weight of the key w places before the query; cells
        before the start of the text are 0.
    hidden (Dict[int, Tensor]): By layer: hidden states, where a view has taps (features.py).
    """

    def __init__(self, window: int = 0) -> None:
        self.window = window
        self.rows: Dict[int, torch.Tensor] = {}
        self.hidden: Dict[int, torch.Tensor] = {}

    def __enter__(self) -> "Recorder":
        self._outer = _RECORDER.set(self)
        return self

    def __exit__(self, *error: Any) -> None:
        _RECORDER.reset(self._outer)


_RECORDER: ContextVar[Optional[Recorder]] = ContextVar("recorder", default=None)


def current_recorder() -> Optional[Recorder]:
    """RETURNS (Optional[Recorder]): The one that this thread is in."""
    return _RECORDER.get()


def attention_forward(
    module: Any,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: Optional[torch.Tensor],
    dropout: float = 0.0,
    scaling: Optional[float] = None,
    **kwargs,
) -> Tuple[torch.Tensor, None]:
    """transformers' attention interface: SDPA, and rows for the active recorder; inside a tree pass,
    attention along its trees."""
    tree_pass = current_pass()
    if tree_pass is not None:
        window = kwargs.get("sliding_window")
        return tree_pass.attend(module.layer_idx, query, key, value, scaling, window), None
    recorder = _RECORDER.get()
    if recorder is not None and recorder.window:
        recorder.rows[module.layer_idx] = attention_rows(
            query, key, attention_mask, scaling, recorder.window
        )
    return sdpa_attention_forward(
        module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, **kwargs
    )


def attention_rows(
    query: torch.Tensor,
    key: torch.Tensor,
    mask: Optional[torch.Tensor],
    scaling: Optional[float],
    window: int,
) -> torch.Tensor:
    """Attention probabilities of the last `window` keys of each query.

    query (Tensor): Shape (batch, heads, queries, head width).
    key (Tensor): Shape (batch, key heads, keys, head width); the queries are the last keys.
    mask (Optional[Tensor]): Additive or boolean, broadcast to (batch, heads, queries, keys);
        None is plain causal attention.
    RETURNS (Tensor): float32, shape (batch, queries, heads, window); see Recorder.
    """
    n_batch, n_heads, n_queries, width = query.shape
    key = repeat_kv(key, n_heads // key.shape[1])
    n_keys = key.shape[2]
    scale = width**-0.5 if scaling is None else scaling
    past = n_keys - n_queries
    out = query.new_zeros((n_batch, n_heads, n_queries, window), dtype=torch.float32)
    back = torch.arange(window, device=query.device)
    for start in range(0, n_queries, SLICE):
        end = min(start + SLICE, n_queries)
        # A causal query sees no key behind it: the slice needs only the keys up to its end.
        seen = past + end
        # Scaled before the product, which float16 might not hold.
        scaled = query[:, :, start:end] * scale
        weights = torch.matmul(scaled, key[:, :, :seen].transpose(2, 3)).float()
        position = torch.arange(past + start, seen, device=query.device)[:, None]
        if mask is None:
            hidden = torch.arange(seen, device=query.device)[None] > position
            weights.masked_fill_(hidden, float("-inf"))
        else:
            part = mask[:, :, start:end, :seen]
            if part.dtype == torch.bool:
                weights.masked_fill_(~part, float("-inf"))
            else:
                weights += part
        total = torch.logsumexp(weights, dim=-1, keepdim=True)
        keys = position - back[None]
        index = keys.clamp(min=0).expand(n_batch, n_heads, end - start, window)
        cells = torch.exp(torch.gather(weights, 3, index) - total)
        out[:, :, start:end] = cells.masked_fill(keys < 0, 0.0)
    return out.transpose(1, 2)


AttentionInterface.register(ATTENTION, attention_forward)
AttentionMaskInterface.register(ATTENTION, sdpa_mask)
