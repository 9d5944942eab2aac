"""What an answer says: places in the text of each string that it lists."""

import json
import math
import re
from dataclasses import dataclass
from typing import Dict, List, Sequence, Tuple

from ..pipeline.spans import Mention, assign_occurrences

Place = Tuple[int, int]


@dataclass
class ListedString:
    """A string of an answer.

    occurrences (List[Tuple[int, int]]): Where in the text it stands: (start, end) in characters.
    log_prob (float): How likely the LLM was to list it, over what was allowed.
    """

    occurrences: List[Place]
    log_prob: float


def mentions_of(
    label: str, listed: List[ListedString], *, ordered: bool
) -> Tuple[List[Mention], int]:
    """Place the strings that were listed for a label.

    ordered (bool): Each stands for one mention: the first that begins behind the one before. Else for all
        its occurrences.
    RETURNS (Tuple[List[Mention], int]): The mentions, and how many strings were dropped since they have no
        place in the text.
    """
    best: Dict[Place, float] = {}
    lost = 0
    first = assign_occurrences(listed) if ordered else []
    for k, answer in enumerate(listed):
        score = math.exp(min(answer.log_prob, 0.0))
        spans = (
            [span for span in first[k : k + 1] if span[0] >= 0] if ordered else answer.occurrences
        )
        lost += not spans
        for span in spans:
            best[span] = max(score, best.get(span, 0.0))
    return [Mention(start, end, label, score) for (start, end), score in best.items()], lost


def parse_list(answer: str) -> List[str]:
    """Read a JSON list of strings out of whatever was written; nothing malformed raises.

    What is no list at all gives nothing. Nested lists and objects give their strings (of an object the
    keys), a list that was cut gives the strings that were finished.
    """
    start = answer.find("[")
    if start < 0:
        return []
    decoder = json.JSONDecoder()
    try:
        value, _ = decoder.raw_decode(answer, start)
        return [s for s in _strings(value) if s.strip()]
    except (ValueError, RecursionError):
        pass
    # Not valid: take what looks like a string, in either kind of quotes.
    found = re.findall(r'"((?:[^"\\]|\\.)*)"|\'((?:[^\'\\]|\\.)*)\'', answer[start:])
    return [s for s in (_unescape(double or single) for double, single in found) if s.strip()]


def find_strings(text: str, strings: Sequence[str], bounds: Sequence[Place]) -> List[List[Place]]:
    """Find where strings stand in a text, from word to word.

    bounds (Sequence[Tuple[int, int]]): First character of each word and one past its last.
    RETURNS (List[List[Tuple[int, int]]]): All places of each string; none for one that is not there.
    """
    starts, ends = {a for a, _ in bounds}, {b for _, b in bounds}
    out = []
    for string in strings:
        string = string.strip()
        # White space between words may be written in another way.
        pattern = r"\s+".join(re.escape(part) for part in string.split())
        # Overlapping occurrences count too.
        found = re.finditer(f"(?=({pattern}))", text) if pattern else ()
        occurrences = [match.span(1) for match in found]
        out.append([(a, b) for a, b in occurrences if a in starts and b in ends])
    return out


def _strings(value: object) -> List[str]:
    if isinstance(value, str):
        return [value]
    if isinstance(value, dict):
        value = list(value)
    if isinstance(value, list):
        return [s for item in value for s in _strings(item)]
    return []


def _unescape(inside: str) -> str:
    try:
        return str(json.loads(f'"{inside}"'))
    except ValueError:
        return inside
