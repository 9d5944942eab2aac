"""Where the keys and values of tokens lie: slots that are given back and used again."""

from heapq import heappop, heappush
from typing import List

import numpy as np

# The slot that is never taken, for what pads a pass.
NO_SLOT = 0


class KVSlots:
    """The slots of one Decoder.

    budget (int): How many are meant to be in use.
    positions (ndarray): int64: the position in its text of the token in each slot.
    """

    def __init__(self, budget: int) -> None:
        self.budget = budget
        self.positions = np.zeros(NO_SLOT + 1, dtype=np.int64)
        self._free: List[int] = []

    @property
    def used(self) -> int:
        """How many are in use."""
        return len(self.positions) - (NO_SLOT + 1) - len(self._free)

    @property
    def full(self) -> bool:
        """Whether the budget is used up."""
        return self.used >= self.budget

    def allocate(self, n: int) -> np.ndarray:
        """RETURNS (ndarray): int64, shape (n,): free slots, ascending."""
        if len(self._free) < n:
            size = len(self.positions)
            more = max(n - len(self._free), 64, size)
            # Ascending, and higher than all others: the heap stays one.
            self._free.extend(range(size, size + more))
            self.positions = np.concatenate([self.positions, np.zeros(more, dtype=np.int64)])
        # The lowest slots are taken first, so that attention stays short.
        return np.array([heappop(self._free) for _ in range(n)], dtype=np.int64)

    def release(self, slots: np.ndarray) -> None:
        for slot in slots.tolist():
            heappush(self._free, slot)
