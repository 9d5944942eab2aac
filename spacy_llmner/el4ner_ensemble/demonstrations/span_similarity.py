"""SpanSim: how well the spans of a pool text cover those of a text (EL4NER, arXiv 2505.23038)."""

from typing import Sequence

import numpy as np


def span_similarity(
    spans: np.ndarray, weights: np.ndarray, pool: np.ndarray, sizes: Sequence[int]
) -> np.ndarray:
    """Compute the similarity of a text to each pool text. Each span s of the text is compared with the most
    similar span c of the pool text, and the similarities are averaged with the weights w:

        sum_s w(s) * max_c Sim(s, c) / sum_s w(s)

    Sim is the cosine. The result is 0 if the text or the pool text has no spans, or if all weights are 0.

    spans (ndarray): The vectors of the spans of the text, each of length 1. Shape (spans, width).
    weights (ndarray): The weights of these spans, 0 or more. Shape (spans,).
    pool (ndarray): The vectors of the spans of all pool texts, text by text, each of length 1. Shape (pool
        spans, width).
    sizes (Sequence[int]): The number of spans of each pool text.
    RETURNS (ndarray): The similarity to each pool text. float64, shape (pool texts,).
    """
    counts = np.asarray(sizes, dtype=np.int64)
    out = np.zeros(len(counts))
    total = float(np.sum(weights))
    filled = np.flatnonzero(counts)
    if not total or not len(filled):
        return out
    cosines = spans.astype(np.float64) @ pool.T.astype(np.float64)
    begins = (np.cumsum(counts) - counts)[filled]
    # Texts without spans have no columns, so the columns of each text end where those of the next begin.
    best = np.maximum.reduceat(cosines, begins, axis=1)
    out[filled] = np.asarray(weights, dtype=np.float64) @ best / total
    return out
