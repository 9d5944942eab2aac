"""From the places that an answer fits to spans of a Doc: offsets, and what overlaps."""

from dataclasses import dataclass
from typing import Iterable, List, Protocol, Sequence, Set, Tuple

from spacy.tokens import Doc

from .predictions import PredictedSpan


@dataclass(frozen=True)
class Mention:
    """start (int): First character. end (int): One past the last. score (float): Between 0 and 1."""

    start: int
    end: int
    label: str
    score: float


class Located(Protocol):
    """occurrences (List[Tuple[int, int]]): Where in the text a string stands: (start, end) in characters."""

    occurrences: List[Tuple[int, int]]


def assign_occurrences(written: Sequence[Located]) -> List[Tuple[int, int]]:
    """Find where the mentions of one label stand: each at the first free occurrence of its string that
    begins no earlier than the mention before it.

    written (Sequence[Located]): The mentions, in the order they were written.
    RETURNS (List[Tuple[int, int]]): For each, or (-1, -1) where there is no such place.
    """
    out: List[Tuple[int, int]] = []
    used: Set[Tuple[int, int]] = set()
    reached = 0
    for mention in written:
        free = [p for p in sorted(mention.occurrences) if p[0] >= reached and p not in used]
        if free:
            used.add(free[0])
            reached = free[0][0]
        out.append(free[0] if free else (-1, -1))
    return out


def filter_overlapping(mentions: Iterable[Mention]) -> List[Mention]:
    """RETURNS (List[Mention]): The best that don't overlap, most confident first chosen, of equals the
    longest; in the order of the text."""
    out: List[Mention] = []
    for m in sorted(mentions, key=lambda m: (-m.score, m.start - m.end, m.start, m.label)):
        if all(m.end <= o.start or o.end <= m.start for o in out):
            out.append(m)
    return sorted(out, key=lambda m: m.start)


def token_spans(doc: Doc, mentions: Iterable[Mention]) -> List[PredictedSpan]:
    """RETURNS (List[PredictedSpan]): Mentions that begin and end with tokens of a Doc, by these tokens."""
    starts = {token.idx: token.i for token in doc}
    ends = {token.idx + len(token): token.i + 1 for token in doc}
    return [PredictedSpan(starts[m.start], ends[m.end], m.label, m.score) for m in mentions]
