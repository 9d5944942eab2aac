"""Attention over trees of tokens: a token sees its ancestors and nothing else.

Inside `tree_attention` every shared LLM attends by the mask given here instead of causally. So one
pass can hold many texts, each with branches on branches, and needs neither the mask nor the cache of
transformers, whose shapes differ from version to version and from model to model.
"""

from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any, Dict, Iterator, List, NamedTuple, Optional, Sequence, Tuple, Union

import numpy as np
import torch
from torch.nn.functional import scaled_dot_product_attention

# Tokens of a block. On a CPU 16, 32, 64 and 128 were tried: 64 was best.
BLOCK_SIZE = 64


class KVCache:
    """Keys and values of all tokens of some trees, by slot.

    One tensor of shape (key heads, slots, head width) for each layer. It grows when a higher slot is
    written.

    room (int): Slots there are at first.
    """

    def __init__(self, room: int = 64) -> None:
        self.keys: Dict[int, torch.Tensor] = {}
        self.values: Dict[int, torch.Tensor] = {}
        self.room = room

    def write(
        self, layer: int, slots: torch.Tensor, n_slots: int, key: torch.Tensor, value: torch.Tensor
    ) -> Tuple[torch.Tensor, torch.Tensor]:
        """Store the keys and values of new tokens.

        slots (Tensor): int64, shape (tokens,): where to.
        n_slots (int): One past the highest slot in use.
        key (Tensor): Shape (key heads, tokens, head width), as is value.
        RETURNS (Tuple[Tensor, Tensor]): All keys and values, shape (key heads, n_slots, head width).
        """
        out = []
        for store, new in ((self.keys, key), (self.values, value)):
            old = store.get(layer)
            if old is None or old.shape[1] < n_slots:
                self.room = size = max(n_slots, self.room if old is None else 2 * old.shape[1])
                store[layer] = new.new_zeros((new.shape[0], size, new.shape[2]))
                if old is not None:
                    store[layer][:, : old.shape[1]] = old
            store[layer].index_copy_(1, slots, new)
            out.append(store[layer][:, :n_slots])
        return out[0], out[1]

    def copy(self, slots: torch.Tensor) -> "KVCache":
        """RETURNS (KVCache): What lies in some slots, without room to grow."""
        out = KVCache()
        out.keys = {layer: k[:, slots] for layer, k in self.keys.items()}
        out.values = {layer: v[:, slots] for layer, v in self.values.items()}
        return out


class Block(NamedTuple):
    """Some tokens of a pass, and all keys that any of them sees."""

    rows: slice
    keys: Union[slice, torch.Tensor]


EVERYTHING = Block(slice(None), slice(None))


@dataclass
class TreePass:
    """What the tokens of one forward pass may see.

    mask (Tensor): bool, shape (batch, queries, keys).
    positions (Tensor): int64, shape (batch, queries) or (1, queries): the queries' positions. Models with
        sliding windows see by them.
    key_positions (Tensor): int64, shape (batch, keys) or (1, keys): those of the keys.
    cache (Optional[KVCache]): Keys and values of earlier passes (batch size 1); None where all keys
        are those of the pass itself.
    slots (Optional[Tensor]): Where this pass's tokens go in the cache.
    prefix (Optional[KVCache]): Instead of a cache: tokens that stand in front of every text of the
        batch. The mask's first keys are theirs.
    blocks (Sequence[Block]): Attention goes block by block. Together they are all tokens, in order.
    """

    mask: torch.Tensor
    positions: torch.Tensor
    key_positions: torch.Tensor
    cache: Optional[KVCache] = None
    slots: Optional[torch.Tensor] = None
    prefix: Optional[KVCache] = None
    blocks: Sequence[Block] = (EVERYTHING,)
    _masks: Dict[Tuple[int, Optional[int], int], torch.Tensor] = field(default_factory=dict)

    def attend(
        self,
        layer: int,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        scaling: Optional[float],
        window: Optional[int],
    ) -> torch.Tensor:
        """RETURNS (Tensor): Shape (batch, queries, heads, head width)."""
        if self.cache is not None:
            assert self.slots is not None
            k, v = self.cache.write(layer, self.slots, self.mask.shape[2], key[0], value[0])
            key, value = k[None], v[None]
        elif self.prefix is not None:
            key = torch.cat([_each(self.prefix.keys[layer], key), key], dim=2)
            value = torch.cat([_each(self.prefix.values[layer], value), value], dim=2)
        # Query heads that share keys stand behind each other as more queries, so nothing is copied.
        n_batch, n_heads, n_queries, width = query.shape
        n_key_heads = key.shape[1]
        shared = n_heads // n_key_heads
        query = query.reshape(n_batch, n_key_heads, shared, n_queries, width)
        out = [
            scaled_dot_product_attention(
                query[:, :, :, block.rows].flatten(2, 3),
                key[:, :, block.keys],
                value[:, :, block.keys],
                attn_mask=self._mask(k, window, shared),
                scale=scaling,
            ).reshape(n_batch, n_heads, -1, width)
            for k, block in enumerate(self.blocks)
        ]
        return (out[0] if len(out) == 1 else torch.cat(out, dim=2)).transpose(1, 2)

    def _mask(self, k: int, window: Optional[int], shared: int) -> torch.Tensor:
        """RETURNS (Tensor): Of block k: bool, shape (batch, 1, shared * queries, keys). Made once."""
        key = k, window, shared
        if key not in self._masks:
            rows, keys = self.blocks[k]
            mask = self.mask[:, rows][:, :, keys]
            if window is not None:  # the layer sees no further back
                positions, key_positions = (
                    self.positions[:, rows, None],
                    self.key_positions[:, None, keys],
                )
                mask = mask & (positions - key_positions < window)
            self._masks[key] = mask[:, None, None].expand(-1, 1, shared, -1, -1).flatten(2, 3)
        return self._masks[key]


def _each(kept: torch.Tensor, new: torch.Tensor) -> torch.Tensor:
    """RETURNS (Tensor): What is kept of the prefix, for each text of a batch."""
    return kept[None].expand(len(new), -1, -1, -1)


_PASS: ContextVar[Optional[TreePass]] = ContextVar("tree_pass", default=None)


@contextmanager
def tree_attention(tree_pass: TreePass) -> Iterator[None]:
    """Attend along trees in the forward passes made by this thread inside the block."""
    token = _PASS.set(tree_pass)
    try:
        yield
    finally:
        _PASS.reset(token)


def current_pass() -> Optional[TreePass]:
    """RETURNS (Optional[TreePass]): The one that this thread is in."""
    return _PASS.get()


def causal_pass(past: int, n: int, device: torch.device) -> TreePass:
    """RETURNS (TreePass): For n tokens in a row behind `past` others, all of which they see."""
    place = torch.arange(past + n, device=device)[None]
    return TreePass(place[:, past:, None] >= place[:, None], place[:, past:], place)


def blocks_of(mask: np.ndarray) -> List[Block]:
    """Cut a pass into blocks. Neighbours are of the same text, most often: a block sees little of what else
    lies in the cache, and attention over it takes much less time on a CPU.

    mask (ndarray): bool, shape (tokens, keys).
    RETURNS (List[Block]): In order.
    """
    cuts = range(0, len(mask), BLOCK_SIZE)
    seen = [np.flatnonzero(mask[start : start + BLOCK_SIZE].any(axis=0)) for start in cuts]
    if len(seen) == 1 and 2 * len(seen[0]) > mask.shape[1]:
        return [EVERYTHING]
    rows = [slice(start, start + BLOCK_SIZE) for start in cuts]
    return [Block(of_block, torch.from_numpy(keys)) for of_block, keys in zip(rows, seen)]


def run_decoder(decoder: Any, ids: torch.Tensor, positions: torch.Tensor, tree_pass: TreePass):
    """Send tokens through a decoder under tree attention.

    decoder (nn.Module): A model of transformers without its LM head.
    ids (Tensor): int64, shape (batch, tokens), as are positions.
    RETURNS (Tensor): Hidden states after the final norm, shape (batch, tokens, width).
    """
    # A mask of four dimensions keeps transformers from building one of its own.
    unused = torch.ones((1, 1, 1, 1), dtype=torch.bool, device=ids.device)
    with tree_attention(tree_pass):
        return decoder(
            input_ids=ids, position_ids=positions, attention_mask=unused, use_cache=False
        ).last_hidden_state
