"""Forward passes of the decoding engine: each sends tokens of many trees through the LLM, with one KV
cache.

On a GPU, a pass with few tokens spends nearly all of its time launching hundreds of kernels. Therefore such
passes are recorded once as CUDA graphs, for a few sizes, and replayed. Tokens are padded to the next size,
and keys to the next power of two.
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

# The numbers of tokens that a replayed pass can have. Longer passes keep the GPU busy without CUDA graphs.
SIZES = (8, 32, 128)
MIN_KEYS = 256
# Maximum initial number of slots of a cache. The cache grows, and a budget can be unlimited.
MAX_INITIAL_SLOTS = 4096

Replay = Tuple[Callable[[], None], torch.Tensor]


class ForwardPasses:
    """Runs forward passes of a decoder with one KV cache.

    device (torch.device): The device of the decoder.
    capacity (int): Initial number of slots of the cache.
    """

    def __init__(self, device: torch.device, capacity: int = 64) -> None:
        self.device = device
        self.cache = KVCache(capacity)

    def forward(
        self, decoder: Any, numbers: np.ndarray, mask: np.ndarray, key_positions: np.ndarray
    ) -> torch.Tensor:
        """Run one forward pass.

        decoder (nn.Module): A model of transformers without its LM head, the same for all passes.
        numbers (ndarray): int64, shape (3, tokens): ids, positions and slots of the tokens.
        mask (ndarray): bool, shape (tokens, keys): the slots that each token attends to.
        key_positions (ndarray): int64, shape (keys,): positions of the tokens in the slots.
        RETURNS (Tensor): Hidden states after the final norm, shape (tokens, width). The next pass can
            overwrite them.
        """
        inputs = (torch.from_numpy(x).to(self.device) for x in (numbers, mask, key_positions))
        # On a GPU, launching the kernels of several blocks would take longer.
        blocks = blocks_of(mask) if self.device.type == "cpu" else [EVERYTHING]
        return self._run(decoder, *inputs, blocks=blocks)

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
    """Replays passes of few tokens as CUDA graphs.

    device (torch.device): The GPU of the decoder.
    capacity (int): Number of slots that will be used, approximately.
    lock (Lock): Held while an engine uses the cache.
    """

    def __init__(self, device: torch.device, capacity: int) -> None:
        super().__init__(device, _power_of_two(min(capacity, MAX_INITIAL_SLOTS)))
        self.lock = threading.Lock()
        self._graphs: Dict[Tuple[int, int], Tuple[Tuple[torch.Tensor, ...], Replay]] = {}
        self._graph_capacity = 0  # of the cache when the graphs were recorded
        self._pool: Any = None
        self._can_record = True

    def forward(
        self, decoder: Any, numbers: np.ndarray, mask: np.ndarray, key_positions: np.ndarray
    ) -> torch.Tensor:
        n, n_keys = mask.shape
        if n > SIZES[-1] or not self._can_record:
            return super().forward(decoder, numbers, mask, key_positions)
        size = next(s for s in SIZES if s >= n), max(_power_of_two(n_keys), MIN_KEYS)
        padded = _padded(numbers, mask, key_positions, *size)
        if max(size[1], self.cache.capacity) != self._graph_capacity:
            self._graphs.clear()  # the cache has grown or will grow, which moves it in memory
        if size not in self._graphs:
            inputs = tuple(torch.from_numpy(x).to(self.device) for x in padded)
            hidden = self._run(decoder, *inputs)  # creates the cache, and warms up
            self._graph_capacity = self.cache.capacity
            try:
                self._graphs[size] = inputs, self._record(lambda: self._run(decoder, *inputs))
            except RuntimeError as e:
                self._can_record = False
                logger.warning("No CUDA graphs for this LLM, so decoding is slower: %s", e)
            return hidden[:n]
        inputs, (replay, hidden) = self._graphs[size]
        for tensor, new in zip(inputs, padded):
            tensor.copy_(torch.from_numpy(new))
        replay()
        return hidden[:n]

    def _record(self, run: Callable[[], torch.Tensor]) -> Replay:
        """RETURNS (Replay): A function that runs the same kernels on the same memory again, and the tensor
        that it writes to."""
        graph, stream = torch.cuda.CUDAGraph(), torch.cuda.Stream(self.device)
        if self._pool is None:
            self._pool = torch.cuda.graph_pool_handle()
        stream.wait_stream(torch.cuda.current_stream(self.device))
        with torch.cuda.device(self.device), torch.cuda.stream(stream):
            # Other threads can use the GPU at the same time.
            graph.capture_begin(self._pool, capture_error_mode="thread_local")
            try:
                hidden = run()
            finally:
                graph.capture_end()
        torch.cuda.current_stream(self.device).wait_stream(stream)
        return graph.replay, hidden


_GRAPHED: "WeakKeyDictionary[Any, CUDAGraphPasses]" = WeakKeyDictionary()


@contextmanager
def forward_passes(
    decoder: Any, device: torch.device, n_slots: int, can_record: bool = True
) -> Iterator[ForwardPasses]:
    """Get the forward passes of a decoder. Its CUDA graphs are stored as long as the decoder exists.

    decoder (nn.Module): A model of transformers without its LM head.
    device (torch.device): The device of the decoder.
    n_slots (int): Number of slots that will be used, approximately.
    can_record (bool): Whether CUDA graphs are possible. A decoder on several devices can't be recorded.
    YIELDS (ForwardPasses): Passes whose cache no other engine uses inside the `with` block.
    """
    if device.type != "cuda" or not can_record:
        yield ForwardPasses(device)
        return
    graph_passes = _GRAPHED.setdefault(decoder, CUDAGraphPasses(device, n_slots))
    if not graph_passes.lock.acquire(blocking=False):  # another engine uses its cache
        yield ForwardPasses(device)
        return
    try:
        yield graph_passes
    finally:
        graph_passes.lock.release()


def _padded(
    numbers: np.ndarray, mask: np.ndarray, key_positions: np.ndarray, n_tokens: int, n_keys: int
) -> Tuple[np.ndarray, np.ndarray, np.ndarray]:
    n, n_used = mask.shape
    # Padding tokens write to the unused slot and attend to it, since they must attend to some key.
    out = np.full((3, n_tokens), NO_SLOT), np.zeros((n_tokens, n_keys), bool), np.zeros(n_keys, int)
    out[0][:, :n] = numbers
    out[1][:n, :n_used] = mask
    out[1][n:, NO_SLOT] = True
    out[2][:n_used] = key_positions
    return out


def _power_of_two(n: int) -> int:
    return 1 << (n - 1).bit_length()
