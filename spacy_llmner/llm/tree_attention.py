"""Attention over trees of tokens: a token attends to itself and its ancestors only.

Inside `tree_attention` every shared LLM uses the mask of a TreePass instead of causal attention. So one
forward pass can contain many texts, each with nested branches. It needs neither the mask nor the cache of
transformers, whose shapes differ between versions and models.
"""

from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any, Dict, Iterator, List, NamedTuple, Optional, Sequence, Tuple, Union

import numpy as np
import torch
from torch.nn.functional import scaled_dot_product_attention

# Tokens per block. On a CPU, 64 was the fastest of 16, 32, 64 and 128.
BLOCK_SIZE = 64


class KVCache:
    """The keys and values of the tokens of several trees, by slot.

    Each layer has one tensor of keys and one of values, both of shape (key heads, slots, head width). They
    grow when a higher slot is written.

    capacity (int): Initial number of slots.
    """

    def __init__(self, capacity: int = 64) -> None:
        self.keys: Dict[int, torch.Tensor] = {}
        self.values: Dict[int, torch.Tensor] = {}
        self.capacity = capacity

    def write(
        self, layer: int, slots: torch.Tensor, n_slots: int, key: torch.Tensor, value: torch.Tensor
    ) -> Tuple[torch.Tensor, torch.Tensor]:
        """Store the keys and values of new tokens.

        layer (int): Index of the layer.
        slots (Tensor): int64, shape (tokens,): the slots to write to.
        n_slots (int): One past the highest slot in use.
        key (Tensor): Shape (key heads, tokens, head width).
        value (Tensor): The same; the head width may differ.
        RETURNS (Tuple[Tensor, Tensor]): All keys and values, shape (key heads, n_slots, their head width).
        """
        out = []
        for store, new in ((self.keys, key), (self.values, value)):
            old = store.get(layer)
            if old is None or old.shape[1] < n_slots:
                size = max(n_slots, self.capacity if old is None else 2 * old.shape[1])
                self.capacity = size
                store[layer] = new.new_zeros((new.shape[0], size, new.shape[2]))
                if old is not None:
                    store[layer][:, : old.shape[1]] = old
            store[layer].index_copy_(1, slots.to(new.device), new)
            out.append(store[layer][:, :n_slots])
        return out[0], out[1]

    def copy(self, slots: torch.Tensor) -> "KVCache":
        """RETURNS (KVCache): A copy of some slots, without spare capacity."""
        out = KVCache()
        out.keys = {layer: k[:, slots.to(k.device)] for layer, k in self.keys.items()}
        out.values = {layer: v[:, slots.to(v.device)] for layer, v in self.values.items()}
        return out


class TextRows:
    """The keys and values of several texts that grow by one token per pass. Each text has a row.

    Each layer has one tensor of keys and one of values, both of shape (rows, key heads, tokens, head
    width), which grow as needed.

    lengths (List[int]): Number of tokens of each text. The next token of each text is written after them.
    """

    def __init__(self) -> None:
        self.keys: Dict[int, torch.Tensor] = {}
        self.values: Dict[int, torch.Tensor] = {}
        self.lengths: List[int] = []

    def add(self, cache: KVCache, length: int) -> None:
        """Add a row for a text that has been read.

        cache (KVCache): The keys and values of its tokens, in order.
        length (int): Its number of tokens, at least 1.
        """
        row = len(self.lengths)
        self.lengths.append(length)
        for stores, new in ((self.keys, cache.keys), (self.values, cache.values)):
            for layer, tensor in new.items():
                n_heads, _, width = tensor.shape
                old = stores.get(layer)
                stores[layer] = _grown(old, (row + 1, n_heads, length + 1, width), tensor)
                stores[layer][row, :, :length] = tensor[:, :length]

    def remove(self, row: int) -> None:
        """Remove a text. The last row takes its place."""
        last = self.lengths.pop()
        if row == len(self.lengths):
            return
        for store in (*self.keys.values(), *self.values.values()):
            store[row, :, :last] = store[len(self.lengths), :, :last]
        self.lengths[row] = last

    def write(
        self, layer: int, key: torch.Tensor, value: torch.Tensor
    ) -> Tuple[torch.Tensor, torch.Tensor]:
        """Store the keys and values of the next token of each text.

        layer (int): Index of the layer.
        key (Tensor): Shape (rows, key heads, 1, head width).
        value (Tensor): The same; the head width may differ.
        RETURNS (Tuple[Tensor, Tensor]): All keys and values, shape (rows, key heads, tokens of the longest
            text, their head width).
        """
        n_rows, n_keys = len(self.lengths), max(self.lengths) + 1
        rows = torch.arange(n_rows, device=key.device)
        ends = torch.tensor(self.lengths, device=key.device)
        out = []
        for stores, new in ((self.keys, key), (self.values, value)):
            n_heads, width = new.shape[1], new.shape[3]
            stores[layer] = _grown(stores[layer], (n_rows, n_heads, n_keys, width), new)
            stores[layer][rows, :, ends] = new[:, :, 0]
            out.append(stores[layer][:n_rows, :, :n_keys])
        return out[0], out[1]


def _grown(
    store: Optional[torch.Tensor], shape: Tuple[int, int, int, int], like: torch.Tensor
) -> torch.Tensor:
    """RETURNS (Tensor): A tensor of at least this shape, with the contents of `store`."""
    if store is not None and store.shape[0] >= shape[0] and store.shape[2] >= shape[2]:
        return store
    if store is None:
        return like.new_zeros(shape)
    rows, tokens = store.shape[0], store.shape[2]
    size = [
        rows if rows >= shape[0] else max(2 * rows, shape[0]),
        shape[1],
        tokens if tokens >= shape[2] else max(tokens + tokens // 2, shape[2]),
        shape[3],
    ]
    out = store.new_zeros(size)
    out[:rows, :, :tokens] = store
    return out


class Block(NamedTuple):
    """Consecutive tokens of a pass, and all keys that any of them attends to."""

    rows: slice
    keys: Union[slice, torch.Tensor]


EVERYTHING = Block(slice(None), slice(None))


@dataclass
class TreePass:
    """Defines which keys the tokens of one forward pass attend to.

    mask (Tensor): bool, shape (batch, queries, keys): whether a query attends to a key.
    positions (Tensor): int64, shape (batch, queries) or (1, queries): positions of the queries. Layers with
        a sliding window compare them with those of the keys.
    key_positions (Tensor): int64, shape (batch, keys) or (1, keys): positions of the keys.
    cache (Optional[KVCache]): Keys and values of earlier passes (batch size 1); None if all keys belong to
        this pass.
    slots (Optional[Tensor]): int64, shape (queries,): the slots of this pass's tokens in the cache.
    prefix (Optional[KVCache]): Keys and values of tokens before every text of the batch, instead of a
        cache. They are the first keys of the mask.
    rows (Optional[TextRows]): Keys and values of the texts that this pass continues by one token each,
        instead of a cache.
    blocks (Sequence[Block]): Attention is computed block by block. The blocks cover all tokens, in order.
    """

    mask: torch.Tensor
    positions: torch.Tensor
    key_positions: torch.Tensor
    cache: Optional[KVCache] = None
    slots: Optional[torch.Tensor] = None
    prefix: Optional[KVCache] = None
    rows: Optional[TextRows] = None
    blocks: Sequence[Block] = (EVERYTHING,)
    _masks: Dict[Tuple[int, Optional[int], int, torch.device], torch.Tensor] = field(
        default_factory=dict
    )

    def attend(
        self,
        layer: int,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        scaling: Optional[float],
        window: Optional[int],
        softcap: Optional[float] = None,
    ) -> torch.Tensor:
        """Compute the attention of one layer.

        layer (int): Index of the layer.
        query (Tensor): Shape (batch, heads, queries, head width).
        key (Tensor): Shape (batch, key heads, queries, head width): keys of this pass's tokens.
        value (Tensor): Same shape as the keys, except that the head width may differ.
        scaling (Optional[float]): Factor of the scores; None for head width ** -0.5.
        window (Optional[int]): Size of the layer's sliding window in positions; None for no window.
        softcap (Optional[float]): Soft cap of the scores (Gemma 2); None for no cap.
        RETURNS (Tensor): Shape (batch, queries, heads, head width).
        """
        if self.cache is not None:
            assert self.slots is not None
            k, v = self.cache.write(layer, self.slots, self.mask.shape[2], key[0], value[0])
            key, value = k[None], v[None]
        elif self.rows is not None:
            key, value = self.rows.write(layer, key, value)
        elif self.prefix is not None:
            key = torch.cat([_expand(self.prefix.keys[layer], key), key], dim=2)
            value = torch.cat([_expand(self.prefix.values[layer], value), value], dim=2)
        # Query heads that share keys become additional queries, so that keys need not be copied.
        n_batch, n_heads, n_queries, width = query.shape
        n_key_heads = key.shape[1]
        shared = n_heads // n_key_heads
        query = query.reshape(n_batch, n_key_heads, shared, n_queries, width)
        out = [
            masked_attention(
                query[:, :, :, block.rows].flatten(2, 3),
                key[:, :, block.keys],
                value[:, :, block.keys],
                self._mask(k, window, shared, query.device),
                scaling,
                softcap,
            ).reshape(n_batch, n_heads, -1, value.shape[-1])
            for k, block in enumerate(self.blocks)
        ]
        return (out[0] if len(out) == 1 else torch.cat(out, dim=2)).transpose(1, 2).contiguous()

    def _mask(
        self, k: int, window: Optional[int], shared: int, device: torch.device
    ) -> torch.Tensor:
        """RETURNS (Tensor): Cached mask of block k: bool, shape (batch, 1, shared * queries, keys)."""
        key = k, window, shared, device
        if key not in self._masks:
            rows, keys = self.blocks[k]
            mask = self.mask[:, rows][:, :, keys]
            if window is not None:
                distance = self.positions[:, rows, None] - self.key_positions[:, None, keys]
                mask = mask & (distance < window)
            mask = mask[:, None, None].expand(-1, 1, shared, -1, -1).flatten(2, 3)
            self._masks[key] = mask.to(device)
        return self._masks[key]


def masked_attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    mask: torch.Tensor,
    scaling: Optional[float],
    softcap: Optional[float],
) -> torch.Tensor:
    """Compute attention. With a soft cap, which torch's function lacks, all scores are in memory at once.

    query (Tensor): Shape (batch, heads, queries, head width).
    key (Tensor): Shape (batch, heads, keys, head width).
    value (Tensor): Shape (batch, heads, keys, head width), where the head width may differ.
    mask (Tensor): bool, broadcastable to (batch, heads, queries, keys): whether a query attends to a key.
    scaling (Optional[float]): Factor of the scores; None for head width ** -0.5.
    softcap (Optional[float]): The soft cap c of the scores s: c * tanh(s / c). None for no cap.
    RETURNS (Tensor): Shape (batch, heads, queries, width of the values).
    """
    if softcap is None:
        return scaled_dot_product_attention(query, key, value, attn_mask=mask, scale=scaling)
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    scores = torch.matmul(query * scale, key.transpose(2, 3)).float()
    scores = (softcap * torch.tanh(scores / softcap)).masked_fill(~mask, float("-inf"))
    return torch.matmul(torch.softmax(scores, dim=-1).to(value.dtype), value)


def _expand(cached: torch.Tensor, new: torch.Tensor) -> torch.Tensor:
    """RETURNS (Tensor): Cached keys or values of the prefix, repeated for each text of the batch."""
    return cached[None].expand(len(new), -1, -1, -1)


_PASS: ContextVar[Optional[TreePass]] = ContextVar("tree_pass", default=None)


@contextmanager
def tree_attention(tree_pass: TreePass) -> Iterator[None]:
    """Attend along trees in the forward passes that this thread runs inside the `with` block."""
    token = _PASS.set(tree_pass)
    try:
        yield
    finally:
        _PASS.reset(token)


def current_pass() -> Optional[TreePass]:
    """RETURNS (Optional[TreePass]): The active tree pass of this thread."""
    return _PASS.get()


def causal_pass(past: int, n: int, device: torch.device) -> TreePass:
    """RETURNS (TreePass): Causal attention for n consecutive tokens after `past` others."""
    positions = torch.arange(past + n, device=device)[None]
    mask = positions[:, past:, None] >= positions[:, None]
    return TreePass(mask, positions[:, past:], positions)


def blocks_of(mask: np.ndarray) -> List[Block]:
    """Split a pass into blocks. Adjacent tokens are usually from the same text, so a block attends to few
    of the keys in the cache, and its attention takes much less time on a CPU.

    mask (ndarray): bool, shape (tokens, keys).
    RETURNS (List[Block]): The blocks, in order.
    """
    starts = range(0, len(mask), BLOCK_SIZE)
    keys = [np.flatnonzero(mask[start : start + BLOCK_SIZE].any(axis=0)) for start in starts]
    if len(keys) == 1 and 2 * len(keys[0]) > mask.shape[1]:
        return [EVERYTHING]
    rows = [slice(start, start + BLOCK_SIZE) for start in starts]
    return [Block(r, torch.from_numpy(k)) for r, k in zip(rows, keys)]


def run_decoder(decoder: Any, ids: torch.Tensor, positions: torch.Tensor, tree_pass: TreePass):
    """Run a decoder with tree attention.

    decoder (nn.Module): A model of transformers without its LM head.
    ids (Tensor): int64, shape (batch, tokens).
    positions (Tensor): Same shape.
    tree_pass (TreePass): Which keys the tokens attend to.
    RETURNS (Tensor): Hidden states after the final norm, shape (batch, tokens, width).
    """
    # If it gets a four-dimensional mask, transformers doesn't build its own.
    unused = torch.ones((1, 1, 1, 1), dtype=torch.bool, device=ids.device)
    with tree_attention(tree_pass):
        return decoder(
            input_ids=ids, position_ids=positions, attention_mask=unused, use_cache=False
        ).last_hidden_state
