"""From decoded mentions to spans: character offsets, confidence, and deduplication across labels."""

import math
from typing import Dict, Iterable, List, Tuple

from ..pipeline.spans import Mention, assign_occurrences
from .decoding import DecodedMention

DEDUPLICATION = ("none", "string", "span")
CONFIDENCE = ("product", "mean")


def locate_mentions(
    written: Iterable[Dict[str, List[DecodedMention]]], kind: str, *, raw: bool
) -> Tuple[List[Mention], int]:
    """Assign character offsets and a confidence to the mentions decoded for a text.

    written (Iterable[Dict[str, List[DecodedMention]]]): The mentions of each label, for each window
        of the text.
    kind, raw: See `confidence`.
    RETURNS (Tuple[List[Mention], int]): The mentions in the order of the text, and the number of
        mentions that were dropped because no occurrence was left for them.
    """
    out: Dict[Tuple[int, int, str], Mention] = {}
    n_lost = 0
    for by_label in written:
        for label, answers in by_label.items():
            for answer, (start, end) in zip(answers, assign_occurrences(answers)):
                if start < 0:
                    n_lost += 1
                    continue
                score = confidence(answer, kind, raw=raw)
                out[start, end, label] = Mention(start, end, label, score)
    return sorted(out.values(), key=lambda m: (m.start, -m.end, m.label)), n_lost


def confidence(mention: DecodedMention, kind: str, *, raw: bool) -> float:
    """Compute the LLM's confidence in a mention (PaDeLLM-NER, section 3.3).

    mention (DecodedMention): The mention.
    kind (str): "product" of the token probabilities, as published, or their geometric "mean".
    raw (bool): Use the probabilities over the whole vocabulary, as published, instead of those over
        the allowed tokens.
    RETURNS (float): Between 0 and 1.
    """
    log_probs = mention.raw_log_probs if raw else mention.log_probs
    total = sum(log_probs)
    if kind == "mean" and log_probs:
        total /= len(log_probs)
    return math.exp(min(total, 0.0))


def deduplicate(text: str, mentions: Iterable[Mention], policy: str) -> List[Mention]:
    """Decide which label keeps a string or span that has several labels (PaDeLLM-NER, section 3.3).

    text (str): The text.
    mentions (Iterable[Mention]): The mentions.
    policy (str): "string", as published: if a string was found under several labels, only mentions
        with the label of its most confident mention are kept. In a tie, the first mention decides.
        "span": the same for mentions with the same offsets, instead of the same string. "none": keep
        all mentions.
    RETURNS (List[Mention]): The mentions that are kept.
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
