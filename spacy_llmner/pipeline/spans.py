"""From occurrences in the text to spans of a Doc: assign occurrences to mentions, and filter overlaps."""

from dataclasses import dataclass
from typing import Iterable, List, Protocol, Sequence, Set, Tuple

from spacy.tokens import Doc

from .predictions import PredictedSpan


@dataclass(frozen=True)
class Mention:
    """A mention in a text.

    start (int): The first character.
    end (int): One past the last character.
    label (str): The label.
    score (float): Between 0 and 1.
    """

    start: int
    end: int
    label: str
    score: float


class Located(Protocol):
    """An object with the occurrences of a string in the text.

    occurrences (List[Tuple[int, int]]): The (start, end) character offsets.
    """

    occurrences: List[Tuple[int, int]]


def assign_occurrences(decoded: Sequence[Located]) -> List[Tuple[int, int]]:
    """Assign an occurrence to each mention of a label: the first occurrence of its string that is not
    used yet and doesn't begin before the previous mention.

    decoded (Sequence[Located]): The mentions in the order they were decoded.
    RETURNS (List[Tuple[int, int]]): The (start, end) character offsets of each mention; (-1, -1) if
        no occurrence is left.
    """
    out: List[Tuple[int, int]] = []
    used: Set[Tuple[int, int]] = set()
    reached = 0
    for mention in decoded:
        free = [p for p in sorted(mention.occurrences) if p[0] >= reached and p not in used]
        if free:
            used.add(free[0])
            reached = free[0][0]
        out.append(free[0] if free else (-1, -1))
    return out


def filter_overlapping(mentions: Iterable[Mention]) -> List[Mention]:
    """RETURNS (List[Mention]): The mentions that don't overlap, in the order of the text. The mention
    with the higher score is preferred; if the scores are equal, the longer one.
    """
    out: List[Mention] = []
    for m in sorted(mentions, key=lambda m: (-m.score, m.start - m.end, m.start, m.label)):
        if all(m.end <= o.start or o.end <= m.start for o in out):
            out.append(m)
    return sorted(out, key=lambda m: m.start)


def token_spans(doc: Doc, mentions: Iterable[Mention]) -> List[PredictedSpan]:
    """RETURNS (List[PredictedSpan]): The mentions as spans of tokens. All of them must begin and end at
    token boundaries.
    """
    starts = {token.idx: token.i for token in doc}
    ends = {token.idx + len(token): token.i + 1 for token in doc}
    return [PredictedSpan(starts[m.start], ends[m.end], m.label, m.score) for m in mentions]
