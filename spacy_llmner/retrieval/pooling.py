"""Token vectors to the vectors of texts and spans."""

from typing import Any, Dict, List, Optional, Sequence, Tuple

import numpy as np
import torch

# First character, one past the last.
Chars = Tuple[int, int]


def unit(vectors: np.ndarray) -> np.ndarray:
    """RETURNS (ndarray): float32 rows of length 1. Rows of zeros stay as they are."""
    norms = np.linalg.norm(vectors, axis=-1, keepdims=True)
    return (vectors / np.maximum(norms, 1e-12)).astype(np.float32)


def span_mean(
    tokens: torch.Tensor, starts: np.ndarray, ends: np.ndarray, span: Chars
) -> Optional[np.ndarray]:
    """Average the vectors of the tokens that the characters of a span touch.

    tokens (Tensor): Shape (tokens, width).
    starts (ndarray): First character of each token.
    ends (ndarray): One past the last character of each token.
    RETURNS (Optional[ndarray]): Shape (width,). None if the span is not wholly in front of where the
        tokens end, or touches none.
    """
    touched = np.flatnonzero((starts < span[1]) & (ends > span[0]))
    if not len(touched) or span[1] > ends.max():
        return None
    return tokens[torch.from_numpy(touched)].mean(0).float().numpy()


def fill_spans(
    found: Sequence[List[Any]], texts: Sequence[str], spans: Sequence[Sequence[Chars]], encoder: Any
) -> List[np.ndarray]:
    """Encode the spans without a vector as texts of their own, and normalise all.

    found (Sequence[List[Optional[ndarray]]]): Per text, what span_mean gave for each span.
    encoder (Encoder): Encodes texts.
    RETURNS (List[ndarray]): Per text, float32, shape (spans, width).
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
