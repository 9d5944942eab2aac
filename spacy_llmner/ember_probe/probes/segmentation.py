"""Segmentation of a text into mentions and other words, one word at a time."""

from typing import List, NamedTuple, Optional, Protocol, Sequence, Tuple

import numpy as np

# Score of a span that does not exist, for example because it would start before the text.
IMPOSSIBLE = -1e4


class ScoredSpan(NamedTuple):
    """A labeled span of words.

    start (int): First word.
    end (int): One past the last word.
    label (int): Index into the probe's labels.
    score (float): Probability, between 0 and 1.
    """

    start: int
    end: int
    label: int
    score: float


# Start, end and label of a mention.
Mention = Tuple[int, int, int]
# The best mentions of a text, which don't overlap, and all mentions that are probable enough, sorted. The
# latter include the former.
Decoded = Tuple[List[Mention], List[ScoredSpan]]


class SegmentDecoder(Protocol):
    """Converts a probe's scores to mentions, one word at a time.

    A whole text is decoded by pushing all its words. So a streamed text gets the same mentions as a
    finished one.
    """

    chain: "Chain"

    def push(self, row: np.ndarray, blank: bool = False) -> None:
        """Add a word.

        row (ndarray): The probe's scores of the spans that end with the word.
        blank (bool): Whether the word is blank: white space, or without width. A mention can contain such
            words, but can't begin or end with one.
        """

    def score(self, start: int, end: int, label: int) -> float:
        """RETURNS (float): Probability of a mention, given the words pushed so far."""


class Chain:
    """Segmentation by back-pointers: each boundary points to the start of the best segment that ends there.

    Boundary i comes after the first i words.

    max_words (int): Longest segment.
    """

    def __init__(self, max_words: int) -> None:
        self.max_words = max_words
        # Entry i - 1 is for boundary i: the length of the segment that ends there, and its label or None.
        self.segments: List[Tuple[int, Optional[int]]] = []

    def __len__(self) -> int:
        return len(self.segments)

    def push(self, length: int, label: Optional[int]) -> None:
        """Add a word.

        length (int): Number of words of the best segment that ends with it.
        label (Optional[int]): Label of the segment; None if it is outside all mentions.
        """
        self.segments.append((length, label))

    def trace(self, boundary: Optional[int] = None, until: int = 0) -> List[Tuple[int, int, int]]:
        """Follow the back-pointers from a boundary.

        boundary (Optional[int]): Where to start; None is the end.
        until (int): Leave out segments that end at or before this boundary.
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
        """Find the last boundary that stays part of the best path, however the text continues.

        The segment of the next word can start at any of the last max_words boundaries. Nothing can change
        before the boundary where the paths from all of these meet.

        since (int): A boundary that is known to be fixed; the search stops there.
        RETURNS (int): A boundary, at least `since`.
        """
        n = len(self.segments)
        low = max(n - self.max_words + 1, since)
        # The paths from the boundaries after `low` first pass through each other, then reach or skip `low`.
        firsts = (i - length for i, (length, _) in enumerate(self.segments[low:], low + 1))
        heads = {low, *(max(i, since) for i in firsts if i < low)}
        while len(heads) > 1:
            last = max(heads)
            heads.remove(last)
            heads.add(max(last - self.segments[last - 1][0], since))
        return heads.pop()


def mask_crossing(spans: np.ndarray, starts: Sequence[bool]) -> np.ndarray:
    """Rule out spans that cross a boundary.

    spans (ndarray): Shape (words, max_words, ...): cell [e, k] belongs to the words e - k to e.
    starts (Sequence[bool]): Whether there is a boundary before each word.
    RETURNS (ndarray): A copy of the spans, with IMPOSSIBLE where a span contains a boundary.
    """
    words = np.arange(len(spans))
    since = np.maximum.accumulate(np.where(starts, words, 0))
    lengths = np.arange(spans.shape[1])
    out = spans.copy()
    out[lengths > (words - since)[:, None]] = IMPOSSIBLE
    return out


def mask_blank(spans: np.ndarray, blank: Sequence[bool]) -> np.ndarray:
    """Rule out spans that begin or end with a blank word.

    spans (ndarray): Shape (words, max_words, ...), as in `mask_crossing`.
    blank (Sequence[bool]): Whether each word is blank.
    RETURNS (ndarray): The scores, IMPOSSIBLE where a span begins or ends with a blank word. A copy, unless
        there are no blank words.
    """
    is_blank = np.asarray(blank, dtype=bool)
    if not is_blank.any():
        return spans
    out = spans.copy()
    out[is_blank] = IMPOSSIBLE
    for k in range(1, spans.shape[1]):
        out[k:, k][is_blank[:-k]] = IMPOSSIBLE
    return out


def mask_blank_row(row: np.ndarray, blank: Sequence[bool]) -> np.ndarray:
    """Apply `mask_blank` to the last word of a text.

    row (ndarray): Shape (max_words, ...).
    blank (Sequence[bool]): Whether each word up to this one is blank.
    RETURNS (ndarray): The row itself if nothing is ruled out, otherwise a copy.
    """
    starts = blank[: -len(row) - 1 : -1]
    if not any(starts):
        return row
    out = row.copy()
    out[: len(starts)][np.array(starts)] = IMPOSSIBLE
    if starts[0]:
        out[:] = IMPOSSIBLE
    return out
