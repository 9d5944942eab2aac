"""Which types a text is asked about while tuning (methods.md 3a.4)."""

import random
from typing import Dict, List, Optional, Sequence


def sample_labels(
    present: Sequence[str],
    frequencies: Dict[str, int],
    rng: random.Random,
    *,
    rate: float = 0.5,
    least: int = 0,
    known: Optional[Sequence[str]] = None,
) -> List[str]:
    """Choose the types of a text that are asked for: those it has, and some that it does not.

    For each type it has a coin is flipped, and there are as many others as heads. They are drawn by their
    frequency in the corpus, and what is drawn twice is asked once.

    present (Sequence[str]): Types of the text's entities.
    frequencies (Dict[str, int]): Entities of each type in the whole corpus.
    rate (float): Probability of heads; published: 0.5.
    least (int): There are at least so many others, also for a text without entities.
    known (Optional[Sequence[str]]): Only these are known to be absent if the text does not have them;
        None: all.
    RETURNS (List[str]): Shuffled.
    """
    positives = sorted(set(present))
    heads = sum(rng.random() < rate for _ in positives)
    others = {
        label: count
        for label, count in sorted(frequencies.items())
        if label not in positives and (known is None or label in known)
    }
    for label in known or ():
        if label not in positives:
            others.setdefault(label, 1)  # never seen: as if once
    drawn = set()
    if others and max(heads, least):
        weights = list(others.values())
        drawn = set(rng.choices(list(others), weights, k=max(heads, least)))
    out = positives + sorted(drawn)
    rng.shuffle(out)
    return out
