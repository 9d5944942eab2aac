"""SDPA attention that can also record the attention weights of a few keys, without building the
full attention map.

Every shared LLM is loaded with this attention. It calls transformers' own SDPA. If a recorder is active in
the calling thread, it also computes the attention weights of each query for a window of keys, from the
same queries and keys. So the model needs no switch and no hooks, and each thread sees only its own
recorder.
"""

from contextvars import ContextVar
from typing import Any, Dict, Optional, Tuple

import torch
from transformers.integrations.sdpa_attention import repeat_kv, sdpa_attention_forward
from transformers.masking_utils import AttentionMaskInterface, sdpa_mask
from transformers.modeling_utils import AttentionInterface

from ..errors import Errors, LLMNERError
from .tree_attention import current_pass, masked_attention

# transformers 5 refuses a name with "sdpa" for models that its own SDPA can't compute, such as Gemma 2.
ATTENTION = "llmner"
# Queries are processed in slices, so that memory grows with the length of the text, not its square.
SLICE = 128


class Recorder:
    """Records the forward passes that this thread runs inside the `with` block.

    window (int): Number of keys recorded per query: the query itself and the window - 1 tokens before it.
        0 records no attention.
    rows (Dict[int, Tensor]): By layer: attention probabilities, float32, shape (batch, queries,
        heads, window). Entry [..., w] is the weight of the key w positions before the query; entries
        before the start of the text are 0.
    hidden (Dict[int, Tensor]): By layer: hidden states, if the view records them (`llm/views.py`).
    """

    def __init__(self, window: int = 0) -> None:
        self.window = window
        self.rows: Dict[int, torch.Tensor] = {}
        self.hidden: Dict[int, torch.Tensor] = {}

    def __enter__(self) -> "Recorder":
        self._token = _RECORDER.set(self)
        return self

    def __exit__(self, *error: Any) -> None:
        _RECORDER.reset(self._token)


_RECORDER: ContextVar[Optional[Recorder]] = ContextVar("recorder", default=None)


def current_recorder() -> Optional[Recorder]:
    """RETURNS (Optional[Recorder]): The active recorder of this thread."""
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
    """Implement transformers' attention interface: SDPA, plus rows for the active recorder. Inside a tree
    pass, attend along its trees instead."""
    if kwargs.get("s_aux") is not None:  # such as gpt-oss
        raise LLMNERError(Errors.E143)
    softcap = kwargs.get("softcap")
    tree_pass = current_pass()
    if tree_pass is not None:
        window = kwargs.get("sliding_window")
        return tree_pass.attend(module.layer_idx, query, key, value, scaling, window, softcap), None
    recorder = _RECORDER.get()
    if recorder is not None and recorder.window:
        recorder.rows[module.layer_idx] = attention_rows(
            query, key, attention_mask, scaling, recorder.window, softcap
        )
    if softcap is not None:
        shared = query.shape[1] // key.shape[1]
        key, value = repeat_kv(key, shared), repeat_kv(value, shared)
        mask = _bool_mask(attention_mask, query.shape[2], key.shape[2], query.device)
        out = masked_attention(query, key, value, mask, scaling, softcap)
        return out.transpose(1, 2).contiguous(), None
    return sdpa_attention_forward(
        module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, **kwargs
    )


def _bool_mask(
    mask: Optional[torch.Tensor], n_queries: int, n_keys: int, device: torch.device
) -> torch.Tensor:
    """RETURNS (Tensor): transformers' mask as bool, broadcastable to (batch, heads, queries, keys). The
    causal mask if there is none.
    """
    if mask is None:
        past = torch.arange(n_keys - n_queries, n_keys, device=device)[:, None]
        return (torch.arange(n_keys, device=device)[None] <= past)[None, None]
    mask = mask[..., :n_keys]
    return mask if mask.dtype == torch.bool else mask == 0


def attention_rows(
    query: torch.Tensor,
    key: torch.Tensor,
    mask: Optional[torch.Tensor],
    scaling: Optional[float],
    window: int,
    softcap: Optional[float] = None,
) -> torch.Tensor:
    """Compute the attention probabilities of the last `window` keys of each query.

    query (Tensor): Shape (batch, heads, queries, head width).
    key (Tensor): Shape (batch, key heads, keys, head width). The last keys are those of the queries.
    mask (Optional[Tensor]): Additive or boolean, broadcastable to (batch, heads, queries, keys).
        None is plain causal attention.
    RETURNS (Tensor): float32, shape (batch, queries, heads, window); see Recorder.
    """
    n_batch, n_heads, n_queries, width = query.shape
    key = repeat_kv(key, n_heads // key.shape[1])
    n_keys = key.shape[2]
    scale = width**-0.5 if scaling is None else scaling
    n_past = n_keys - n_queries
    out = query.new_zeros((n_batch, n_heads, n_queries, window), dtype=torch.float32)
    offsets = torch.arange(window, device=query.device)
    for start in range(0, n_queries, SLICE):
        end = min(start + SLICE, n_queries)
        # A causal query sees no later key, so the slice needs only the keys up to its end.
        n_visible = n_past + end
        # Scale before the product, which could overflow in float16.
        scaled = query[:, :, start:end] * scale
        weights = torch.matmul(scaled, key[:, :, :n_visible].transpose(2, 3)).float()
        if softcap is not None:
            weights = softcap * torch.tanh(weights / softcap)
        positions = torch.arange(n_past + start, n_visible, device=query.device)[:, None]
        if mask is None:
            future = torch.arange(n_visible, device=query.device)[None] > positions
            weights.masked_fill_(future, float("-inf"))
        else:
            slice_mask = mask[:, :, start:end, :n_visible]
            if slice_mask.dtype == torch.bool:
                weights.masked_fill_(~slice_mask, float("-inf"))
            else:
                weights += slice_mask
        log_sum = torch.logsumexp(weights, dim=-1, keepdim=True)
        keys = positions - offsets[None]
        index = keys.clamp(min=0).expand(n_batch, n_heads, end - start, window)
        probabilities = torch.exp(torch.gather(weights, 3, index) - log_sum)
        out[:, :, start:end] = probabilities.masked_fill(keys < 0, 0.0)
    return out.transpose(1, 2)


AttentionInterface.register(ATTENTION, attention_forward)
AttentionMaskInterface.register(ATTENTION, sdpa_mask)
