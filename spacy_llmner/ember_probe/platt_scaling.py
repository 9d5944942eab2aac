"""Platt scaling: scores that mean what they say, fitted on entities of known truth."""

from typing import Any, List, Sequence, Tuple

import numpy as np

Calibration = Tuple[float, float]
IDENTITY: Calibration = (1.0, 0.0)
LEAST = 20


def apply(calibration: Sequence[float], score: float) -> float:
    """RETURNS (float): The calibrated probability."""
    slope, offset = calibration
    return float(_sigmoid(slope * _logit(score) + offset))


def invert(calibration: Sequence[float], score: float) -> float:
    """RETURNS (float): The probability before calibration."""
    slope, offset = calibration
    return float(_sigmoid((_logit(score) - offset) / slope))


def fit(scored: List[Tuple[float, bool]]) -> Calibration:
    """Fit slope and offset of the log-odds by penalised logistic regression (Platt, 1999).

    scored (List[Tuple[float, bool]]): Uncalibrated scores of entities, and whether they are right.
    RETURNS (Tuple[float, float]): Slope (positive) and offset; the identity where there are too few
        examples to tell.
    """
    right = np.array([c for _, c in scored], dtype=np.float64)
    n_right = right.sum()
    n_wrong = len(right) - n_right
    if len(scored) < LEAST or not n_right or not n_wrong:
        return IDENTITY
    # Platt's softened targets: without them, scores that separate the classes become 0 and 1.
    right = np.where(right > 0, (n_right + 1) / (n_right + 2), 1 / (n_wrong + 2))
    x = np.stack([_logit(np.array([s for s, _ in scored])), np.ones(len(scored))], axis=1)
    prior = np.array(IDENTITY)
    w = prior.copy()
    for _ in range(50):
        p = _sigmoid(x @ w)
        gradient = x.T @ (p - right) + (w - prior)
        hessian = (x * (p * (1 - p))[:, None]).T @ x + np.eye(2)
        step = np.linalg.solve(hessian, gradient)
        # A whole Newton step goes astray where scores are near 0 and 1.
        while _loss(x, right, prior, w - step) > _loss(x, right, prior, w) + 1e-9:
            step = step / 2
        w = w - step
        if np.abs(step).max() < 1e-9:
            break
    return (float(np.clip(w[0], 0.05, 5.0)), float(w[1]))


def _loss(x: np.ndarray, right: np.ndarray, prior: np.ndarray, w: np.ndarray) -> float:
    z = x @ w
    return float((np.logaddexp(0.0, z) - right * z).sum() + ((w - prior) ** 2).sum() / 2)


def _logit(p: Any) -> Any:
    # Fine enough to undo a calibration that pushed scores towards 0 or 1.
    p = np.clip(p, 1e-12, 1 - 1e-12)
    return np.log(p) - np.log1p(-p)


def _sigmoid(x: np.ndarray) -> np.ndarray:
    return 1.0 / (1.0 + np.exp(-np.clip(x, -30, 30)))
