"""Forward passes of the decoding engine: tokens of many trees at once, over one KV cache.

On a GPU a pass of few tokens takes as long as its hundreds of kernels take to launch. There such
passes are recorded once as CUDA graphs, for a few sizes, and replayed: tokens are padded to the next
size, and keys to the next power of two.
"""

import logging
import threading
from contextlib import contextmanager
from typing import Any, Callable, Dict, Iterator, Sequence, Tuple
from weakref import WeakKeyDictionary

import numpy as np
import torch

from ..llm.tree_attention import EVERYTHING, Block, KVCache, TreePass, blocks_of, run_decoder
from .kv_slots import NO_SLOT

logger = logging.getLogger("spacy_llmner")

# Tokens of a replayed pass. Longer ones keep the GPU busy by themselves.
SIZES = (8, 32, 128)
MIN_KEYS = 256
# Slots that a cache has to begin with, at most: it grows, and a budget may be without limit.
MAX_INITIAL_SLOTS = 4096

Replay = Tuple[Callable[[], None], torch.Tensor]


class ForwardPasses:
    """Sends tokens through a decoder, one pass after the other.

    device (torch.device): Where the decoder is.
    room (int): Slots of the cache to begin with.
    """

    def __init__(self, device: torch.device, room: int = 64) -> None:
        self.device = device
        self.cache = KVCache(room)

    def forward(
        self, decoder: Any, numbers: np.ndarray, mask: np.ndarray, key_positions: np.ndarray
    ) -> torch.Tensor:
        """
        decoder (nn.Module): A model of transformers without its LM head; always the same one.
        numbers (ndarray): int64, shape (3, tokens): ids, positions and slots of the tokens.
        mask (ndarray): bool, shape (tokens, keys): the slots that each may see.
        key_places (ndarray): int64, shape (keys,): positions of what lies in the slots.
        RETURNS (Tensor): Hidden states after the final norm, shape (tokens, width). Read them before
            the next pass.
        """
        given = (torch.from_numpy(x).to(self.device) for x in (numbers, mask, key_positions))
        # A GPU would take longer to launch them.
        blocks = blocks_of(mask) if self.device.type == "cpu" else [EVERYTHING]
        return self._run(decoder, *given, blocks=blocks)

    def _run(
        self,
        decoder: Any,
        numbers: torch.Tensor,
        mask: torch.Tensor,
        key_positions: torch.Tensor,
        *,
        blocks: Sequence[Block] = (EVERYTHING,),
    ) -> torch.Tensor:
        ids, positions = numbers[:1], numbers[1:2]
        tree_pass = TreePass(
            mask[None], positions, key_positions[None], self.cache, numbers[2], blocks=blocks
        )
        return run_decoder(decoder, ids, positions, tree_pass)[0]


class CUDAGraphPasses(ForwardPasses):
    """Passes of few tokens are replayed as CUDA graphs."""

    def __init__(self, device: torch.device, room: int) -> None:
        super().__init__(device, _power_of_two(min(room, MAX_INITIAL_SLOTS)))
        self.free = threading.Lock()
        self._graphs: Dict[Tuple[int, int], Tuple[Tuple[torch.Tensor, ...], Replay]] = {}
        self._room = 0  # of the cache that the graphs write to
        self._pool: Any = None
        self._works = True

    def forward(
        self, decoder: Any, numbers: np.ndarray, mask: np.ndarray, key_positions: np.ndarray
    ) -> torch.Tensor:
        n, n_keys = mask.shape
        if n > SIZES[-1] or not self._works:
            return super().forward(decoder, numbers, mask, key_positions)
        size = next(s for s in SIZES if s >= n), max(_power_of_two(n_keys), MIN_KEYS)
        padded = _padded(numbers, mask, key_positions, *size)
        if max(size[1], self.cache.room) != self._room:
            self._graphs.clear()  # the cache has grown, or will: it lies elsewhere then
        if size not in self._graphs:
            given = tuple(torch.from_numpy(x).to(self.device) for x in padded)
            hidden = self._run(decoder, *given)  # makes the cache, and warms up
            self._room = self.cache.room
            try:
                self._graphs[size] = given, self._record(lambda: self._run(decoder, *given))
            except RuntimeError as e:
                self._works = False
                logger.warning("No CUDA graphs for this LLM, which takes longer: %s", e)
            return hidden[:n]
        given, (replay, hidden) = self._graphs[size]
        for tensor, new in zip(given, padded):
            tensor.copy_(torch.from_numpy(new))
        replay()
        return hidden[:n]

    def _record(self, run: Callable[[], torch.Tensor]) -> Replay:
        """RETURNS (Replay): A call that runs the same kernels on the same memory again, and the tensor
        that it writes to."""
        graph, stream = torch.cuda.CUDAGraph(), torch.cuda.Stream(self.device)
        if self._pool is None:
            self._pool = torch.cuda.graph_pool_handle()
        stream.wait_stream(torch.cuda.current_stream(self.device))
        with torch.cuda.device(self.device), torch.cuda.stream(stream):
            # Other threads may use the GPU meanwhile.
            graph.capture_begin(self._pool, capture_error_mode="thread_local")
            try:
                hidden = run()
            finally:
                graph.capture_end()
        torch.cuda.current_stream(self.device).wait_stream(stream)
        return graph.replay, hidden


_GRAPHED: "WeakKeyDictionary[Any, CUDAGraphPasses]" = WeakKeyDictionary()


@contextmanager
def forward_passes(decoder: Any, device: torch.device, room: int) -> Iterator[ForwardPasses]:
    """Get what sends tokens through a decoder. What was recorded of it is kept as long as the decoder is.

    room (int): Slots that will be used, about.
    """
    if device.type != "cuda":
        yield ForwardPasses(device)
        return
    graphed = _GRAPHED.setdefault(decoder, CUDAGraphPasses(device, room))
    if not graphed.free.acquire(blocking=False):  # its cache is in use
        yield ForwardPasses(device)
        return
    try:
        yield graphed
    finally:
        graphed.free.release()


def _padded(
    numbers: np.ndarray, mask: np.ndarray, key_positions: np.ndarray, n_tokens: int, n_keys: int
) -> Tuple[np.ndarray, np.ndarray, np.ndarray]:
    n, n_seen = mask.shape
    # What pads sees and overwrites the slot that is never used: it may not attend to nothing.
    out = np.full((3, n_tokens), NO_SLOT), np.zeros((n_tokens, n_keys), bool), np.zeros(n_keys, int)
    out[0][:, :n] = numbers
    out[1][:n, :n_seen] = mask
    out[1][n:, NO_SLOT] = True
    out[2][:n_seen] = key_positions
    return out


def _power_of_two(n: int) -> int:
    return 1 << (n - 1).bit_length()
