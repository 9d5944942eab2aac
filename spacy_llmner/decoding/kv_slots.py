"""Allocate the KV slots of tokens. Released slots are used again."""

from heapq import heappop, heappush
from typing import List

import numpy as np

# The slot that is never allocated, for padding tokens of a pass.
NO_SLOT = 0


class KVSlots:
    """The KV slots of one DecodingEngine.

    budget (int): The number of slots that should be in use at most. It is not enforced here.
    positions (ndarray): int64, shape (slots,): position of the token in each slot, from the root of its
        tree.
    """

    def __init__(self, budget: int) -> None:
        self.budget = budget
        self.positions = np.zeros(NO_SLOT + 1, dtype=np.int64)
        self._free: List[int] = []

    @property
    def used(self) -> int:
        """RETURNS (int): The number of slots in use."""
        return len(self.positions) - (NO_SLOT + 1) - len(self._free)

    @property
    def full(self) -> bool:
        """RETURNS (bool): Whether the budget is used up."""
        return self.used >= self.budget

    def allocate(self, n: int) -> np.ndarray:
        """RETURNS (ndarray): int64, shape (n,): newly allocated slots, ascending."""
        if len(self._free) < n:
            size = len(self.positions)
            more = max(n - len(self._free), 64, size)
            # The new slots are ascending and higher than all others, so the list stays a heap.
            self._free.extend(range(size, size + more))
            self.positions = np.concatenate([self.positions, np.zeros(more, dtype=np.int64)])
        # Allocate the lowest slots first, so that attention covers few keys.
        return np.array([heappop(self._free) for _ in range(n)], dtype=np.int64)

    def release(self, slots: np.ndarray) -> None:
        """Make slots available again.

        slots (ndarray): int64: slots in use.
        """
        for slot in slots.tolist():
            heappush(self._free, slot)
