"""Bootstrap intervals of differences in F1 between two systems on the same texts."""

import random
from typing import Any, Dict, List, Sequence, Tuple

# Per text: correct, predicted and gold spans.
Counts = Sequence[Tuple[int, int, int]]
DRAWS = 1000


def paired_interval(a: List[Dict[str, Any]], b: List[Dict[str, Any]]) -> Tuple[float, float]:
    """Estimate by how much the F1 of `a` is higher than that of `b`, with a paired bootstrap over the
    texts.

    a, b (List[Dict[str, Any]]): Runs with the counts of each text in run["test"]["each"]. The runs of a
        system are pooled.
    RETURNS (Tuple[float, float]): 95 % interval of the difference, in percentage points.
    """
    rng = random.Random(0)
    n = len(a[0]["test"]["each"])
    differences = []
    for _ in range(DRAWS):
        chosen = rng.choices(range(n), k=n)
        scores = []
        for runs in (a, b):
            counts = [run["test"]["each"] for run in runs]
            scores.append(micro_f1([c[i] for c in counts for i in chosen]))
        differences.append(scores[0] - scores[1])
    differences.sort()
    return differences[int(0.025 * DRAWS)], differences[int(0.975 * DRAWS) - 1]


def micro_f1(counts: Counts) -> float:
    """RETURNS (float): F1 of the summed counts, in percent."""
    right, found, gold = (sum(c[k] for c in counts) for k in range(3))
    return 200 * right / max(found + gold, 1)
