"""From what was written to spans: offsets, confidence, and one label for each string."""

import math
from typing import Dict, Iterable, List, Tuple

from ..pipeline.spans import Mention, assign_occurrences
from .decoding import DecodedMention

DEDUPLICATION = ("none", "string", "span")
CONFIDENCE = ("product", "mean")


def locate_mentions(
    written: Iterable[Dict[str, List[DecodedMention]]], kind: str, *, raw: bool
) -> Tuple[List[Mention], int]:
    """Place everything that was written about a text, and say how sure the LLM was of it.

    written (Iterable[Dict[str, List[DecodedMention]]]): By label, for each window of the text.
    kind, raw: See `confidence`.
    RETURNS (Tuple[List[Mention], int]): In the order of the text, and how many had no place.
    """
    out: Dict[Tuple[int, int, str], Mention] = {}
    lost = 0
    for by_label in written:
        for label, answers in by_label.items():
            for answer, (start, end) in zip(answers, assign_occurrences(answers)):
                if start < 0:
                    lost += 1
                    continue
                score = confidence(answer, kind, raw=raw)
                out[start, end, label] = Mention(start, end, label, score)
    return sorted(out.values(), key=lambda m: (m.start, -m.end, m.label)), lost


def confidence(mention: DecodedMention, kind: str, *, raw: bool) -> float:
    """How sure the LLM was of a mention (methods.md 2a.5).

    kind (str): "product" of the tokens' probabilities as published, or their geometric "mean".
    raw (bool): Probabilities over the whole vocabulary, as published, and not only over what was
        allowed.
    """
    log_probs = mention.raw_log_probs if raw else mention.log_probs
    total = sum(log_probs)
    if kind == "mean" and log_probs:
        total /= len(log_probs)
    return math.exp(min(total, 0.0))


def deduplicate(text: str, mentions: Iterable[Mention], policy: str) -> List[Mention]:
    """Settle which label gets what was written under several.

    policy (str): "string", as published: a string that occurs under several labels stays under the one
        of its most confident mention, with all its mentions there; ties go to the first. "span": the
        same for each place in the text. "none" keeps all.
    """
    mentions = list(mentions)
    if policy == "none":
        return mentions
    best: Dict[object, Mention] = {}
    for m in mentions:
        key = _key(text, m, policy)
        if key not in best or m.score > best[key].score:
            best[key] = m
    return [m for m in mentions if m.label == best[_key(text, m, policy)].label]


def _key(text: str, mention: Mention, policy: str) -> object:
    return text[mention.start : mention.end] if policy == "string" else (mention.start, mention.end)
