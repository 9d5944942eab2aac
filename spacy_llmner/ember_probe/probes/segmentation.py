"""Cutting a text into mentions and other words, word by word, knowing what can't change any more."""

from dataclasses import dataclass
from typing import List, Optional, Protocol, Sequence, Tuple

import numpy as np

# Score of a span that is not there: one that starts before the text, for example.
IMPOSSIBLE = -1e4


@dataclass(frozen=True)
class ScoredSpan:
    """A typed span of words.

    start (int): First word.
    end (int): One past the last word.
    label (int): Index into the probe's labels.
    score (float): Probability, between 0 and 1.
    """

    start: int
    end: int
    label: int
    score: float


class SegmentDecoder(Protocol):
    """Turns a probe's scores into mentions, one word at a time.

    Decoding a whole text is pushing all its words, so a text that is being written and the same
    text when finished get the same mentions by construction.
    """

    chain: "Chain"

    def push(self, row: np.ndarray) -> None:
        """Add a word. row (ndarray): The probe's scores of the spans that end there."""

    def score(self, start: int, end: int, label: int) -> float:
        """RETURNS (float): Probability of a mention, given the words pushed so far."""


class Chain:
    """Segmentation by back-pointers: boundary i knows the best segment that ends there.

    max_words (int): Longest segment.
    """

    def __init__(self, max_words: int) -> None:
        self.max_words = max_words
        # Entry i - 1 is about boundary i: length of the segment ending there, label or None.
        self.segments: List[Tuple[int, Optional[int]]] = []

    def __len__(self) -> int:
        return len(self.segments)

    def push(self, length: int, label: Optional[int]) -> None:
        """Add a word. length (int): Words of the best segment that ends with it."""
        self.segments.append((length, label))

    def trace(self, boundary: Optional[int] = None, until: int = 0) -> List[Tuple[int, int, int]]:
        """Follow the pointers back from a boundary.

        boundary (Optional[int]): Where to start; None is the end.
        until (int): Segments that end at or before this boundary are left out.
        RETURNS (List[Tuple[int, int, int]]): (start, end, label) of the mentions, in text order.
        """
        i = len(self.segments) if boundary is None else boundary
        out = []
        while i > until:
            length, label = self.segments[i - 1]
            if label is not None:
                out.append((i - length, i, label))
            i -= length
        return out[::-1]

    def fixed(self, since: int = 0) -> int:
        """Find the last boundary that every continuation of the text goes through.

        The next word's segment may reach back to any of the last max_words boundaries. Where the
        paths from all of them have met, the past can't change any more.
        since (int): A boundary known to be fixed; the search stops there.
        RETURNS (int): A boundary, at least `since`.
        """
        n = len(self.segments)
        low = max(n - self.max_words + 1, since)
        # The boundaries behind `low` lead to each other, and at last to it or past it.
        firsts = (i - length for i, (length, _) in enumerate(self.segments[low:], low + 1))
        heads = {low, *(max(i, since) for i in firsts if i < low)}
        while len(heads) > 1:
            last = max(heads)
            heads.remove(last)
            heads.add(max(last - self.segments[last - 1][0], since))
        return heads.pop()


def mask_crossing(spans: np.ndarray, starts: Sequence[bool]) -> np.ndarray:
    """Rule out spans that cross a boundary.

    spans (ndarray): Shape (words, max_words, ...): cell [e, k] is about the words e - k to e.
    starts (Sequence[bool]): Whether a boundary is in front of each word.
    RETURNS (ndarray): A copy, IMPOSSIBLE where a span has a boundary inside.
    """
    out = spans.copy()
    since = 0
    for e, start in enumerate(starts):
        since = e if start else since
        out[e, e - since + 1 :] = IMPOSSIBLE
    return out
