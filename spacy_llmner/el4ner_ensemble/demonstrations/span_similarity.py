"""SpanSim: how well the spans of a pool text cover those of a text (methods.md 4a, stage 1)."""

from typing import Sequence

import numpy as np


def span_similarity(
    spans: np.ndarray, weights: np.ndarray, pool: np.ndarray, sizes: Sequence[int]
) -> np.ndarray:
    """Compute, for each pool text, the weighted mean over the spans of the text of the cosine to the
    most similar span of the pool text:

        sum_s w(s) * max_c Sim(s, c) / sum_s w(s)

    It is 0 if the text or the pool text has no span, or if all weights are 0.

    spans (ndarray): Shape (spans, width): vectors of length 1.
    weights (ndarray): Shape (spans,): not negative.
    pool (ndarray): Shape (pool spans, width): vectors of length 1, text by text.
    sizes (Sequence[int]): How many of them each pool text has.
    RETURNS (ndarray): float64, shape (pool texts,).
    """
    counts = np.asarray(sizes, dtype=np.int64)
    out = np.zeros(len(counts))
    total = float(np.sum(weights))
    filled = np.flatnonzero(counts)
    if not total or not len(filled):
        return out
    cosines = spans.astype(np.float64) @ pool.T.astype(np.float64)
    begins = (np.cumsum(counts) - counts)[filled]
    # Texts without a span take no columns, so each run ends where the next one begins.
    best = np.maximum.reduceat(cosines, begins, axis=1)
    out[filled] = np.asarray(weights, dtype=np.float64) @ best / total
    return out
