"""Pool token vectors into vectors of texts and spans."""

from typing import Any, Dict, List, Optional, Sequence, Tuple

import numpy as np
import torch

from ..util import CharSpan


def unit(vectors: np.ndarray) -> np.ndarray:
    """Normalize vectors.

    vectors (ndarray): Shape (vectors, width).
    RETURNS (ndarray): The vectors with length 1. Vectors of zeros stay the same. float32.
    """
    norms = np.linalg.norm(vectors, axis=-1, keepdims=True)
    return (vectors / np.maximum(norms, 1e-12)).astype(np.float32)


def span_mean(
    tokens: torch.Tensor, starts: np.ndarray, ends: np.ndarray, span: CharSpan
) -> Optional[np.ndarray]:
    """Compute the vector of a span: the mean of the vectors of the tokens that overlap it.

    tokens (Tensor): The vectors of the tokens. Shape (tokens, width).
    starts (ndarray): The first character of each token.
    ends (ndarray): One past the last character of each token.
    span (Tuple[int, int]): The span.
    RETURNS (Optional[ndarray]): The mean, float32, shape (width,). None if no token overlaps the span, or
        if the span extends beyond the last token.
    """
    overlapping = np.flatnonzero((starts < span[1]) & (ends > span[0]))
    if not len(overlapping) or span[1] > ends.max():
        return None
    return tokens[torch.from_numpy(overlapping)].mean(0).float().numpy()


def fill_spans(
    found: Sequence[List[Any]],
    texts: Sequence[str],
    spans: Sequence[Sequence[CharSpan]],
    encoder: Any,
) -> List[np.ndarray]:
    """Embed the spans without a vector like texts of their own, and normalize all vectors.

    found (Sequence[List[Optional[ndarray]]]): For each text, the result of `span_mean` for each span. The
        missing vectors are filled in.
    texts (Sequence[str]): The texts.
    spans (Sequence[Sequence[Tuple[int, int]]]): For each text, its spans.
    encoder (Encoder): Embeds the missing spans.
    RETURNS (List[ndarray]): For each text, the vectors of its spans. float32, shape (spans, width).
    """
    missing: Dict[str, List[Tuple[int, int]]] = {}
    for row, vectors in enumerate(found):
        for column, vector in enumerate(vectors):
            if vector is None:
                start, end = spans[row][column]
                missing.setdefault(texts[row][max(start, 0) : max(end, 0)], []).append(
                    (row, column)
                )
    for alone, vector in zip(missing.values(), encoder.encode(list(missing)) if missing else ()):
        for row, column in alone:
            found[row][column] = vector
    return [
        unit(np.stack(vectors)) if vectors else np.zeros((0, encoder.width), dtype=np.float32)
        for vectors in found
    ]
