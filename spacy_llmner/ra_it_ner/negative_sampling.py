"""Sample the types that are requested for a training text (RA-IT, arXiv 2406.17305)."""

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
    """Sample the types to request for a text: all types it contains, and some that it doesn't contain.

    A coin is flipped for each type that the text contains. The number of heads is the number of other
    types that are drawn, with probabilities proportional to their frequencies in the corpus. A type
    that is drawn twice is requested once.

    present (Sequence[str]): The types of the text's entities.
    frequencies (Dict[str, int]): The number of entities of each type in the whole corpus.
    rng (random.Random): The random number generator.
    rate (float): The probability of heads. As published, 0.5.
    least (int): The minimum number of draws, also for a text without entities.
    known (Optional[Sequence[str]]): The types that the annotators looked for. Other types are not drawn,
        since the text may contain them without annotation. None for all types.
    RETURNS (List[str]): The types in random order.
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
            others.setdefault(label, 1)  # not in the corpus: sampled as if it occurred once
    drawn = set()
    if others and max(heads, least):
        weights = list(others.values())
        drawn = set(rng.choices(list(others), weights, k=max(heads, least)))
    out = positives + sorted(drawn)
    rng.shuffle(out)
    return out
