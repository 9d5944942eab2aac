"""From answers to mentions: find the occurrences in the text of the strings that an answer lists."""

import json
import math
import re
from dataclasses import dataclass
from typing import Dict, List, Sequence, Tuple

from ..pipeline.spans import Mention, assign_occurrences
from ..util import CharSpan


@dataclass
class ListedString:
    """A string that an answer lists.

    occurrences (List[Tuple[int, int]]): The (start, end) character offsets of its occurrences in the
        text.
    log_prob (float): Log-probability that the LLM lists it, over the allowed tokens.
    """

    occurrences: List[CharSpan]
    log_prob: float


def mentions_of(
    label: str, listed: List[ListedString], *, ordered: bool
) -> Tuple[List[Mention], int]:
    """Assign character offsets to the strings listed for a label.

    label (str): The label.
    listed (List[ListedString]): The strings in the order of the answer.
    ordered (bool): Each string is one mention: its first free occurrence that doesn't begin before the
        previous mention. If False, all occurrences of a string are mentions.
    RETURNS (Tuple[List[Mention], int]): The mentions, and the number of strings that were dropped
        because no occurrence was left for them.
    """
    best: Dict[CharSpan, float] = {}
    n_lost = 0
    first = assign_occurrences(listed) if ordered else []
    for k, answer in enumerate(listed):
        score = math.exp(min(answer.log_prob, 0.0))
        spans = (
            [span for span in first[k : k + 1] if span[0] >= 0] if ordered else answer.occurrences
        )
        n_lost += not spans
        for span in spans:
            best[span] = max(score, best.get(span, 0.0))
    return [Mention(start, end, label, score) for (start, end), score in best.items()], n_lost


def parse_list(answer: str) -> List[str]:
    """Parse a JSON list of strings from any answer. Malformed answers don't raise an error.

    An answer without a list has no strings. Nested lists and objects are flattened (the keys of an
    object are used). If a list was cut, its complete strings are returned.

    answer (str): The answer.
    RETURNS (List[str]): The strings.
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
    # Not valid JSON: take everything that looks like a string, in single or double quotes.
    found = re.findall(r'"((?:[^"\\]|\\.)*)"|\'((?:[^\'\\]|\\.)*)\'', answer[start:])
    return [s for s in (_unescape(double or single) for double, single in found) if s.strip()]


def find_strings(
    text: str, strings: Sequence[str], bounds: Sequence[CharSpan]
) -> List[List[CharSpan]]:
    """Find the occurrences of strings in a text that begin and end at word boundaries.

    text (str): The text.
    strings (Sequence[str]): The strings.
    bounds (Sequence[Tuple[int, int]]): The first character, and one past the last, of each word.
    RETURNS (List[List[Tuple[int, int]]]): The (start, end) character offsets of all occurrences of
        each string. Empty for a string that doesn't occur.
    """
    starts, ends = {a for a, _ in bounds}, {b for _, b in bounds}
    out = []
    for string in strings:
        string = string.strip()
        # The LLM can change the white space between words.
        pattern = r"\s+".join(re.escape(part) for part in string.split())
        # A look-ahead, so that overlapping occurrences are found too.
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
