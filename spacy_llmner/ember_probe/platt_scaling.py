"""Platt scaling: calibrate scores on entities of which it is known whether they are correct."""

from typing import Any, List, Sequence, Tuple

import numpy as np

from ..errors import wrong

# Slope and offset of the log-odds.
Calibration = Tuple[float, float]
IDENTITY: Calibration = (1.0, 0.0)
# With fewer scored entities than this, nothing is fitted.
MIN_ENTITIES = 20


def check(name: str, calibration: Any) -> None:
    """Validate the calibration of the component `name`.

    RAISES (LLMNERError): If it is not two numbers, the first of them positive.
    """
    try:
        slope, _ = np.array(calibration, dtype=np.float64).tolist()
        if slope > 0 and np.isfinite(calibration).all():
            return
    except (TypeError, ValueError):
        pass
    raise wrong("calibration", name, calibration, "two numbers: a positive slope, and an offset")


def apply(calibration: Sequence[float], score: float) -> float:
    """RETURNS (float): The calibrated probability."""
    return apply_to_all(calibration, [score])[0]


def apply_to_all(calibration: Sequence[float], scores: Sequence[float]) -> List[float]:
    """RETURNS (List[float]): The calibrated probabilities."""
    slope, offset = calibration
    return _sigmoid(slope * _logit(np.array(scores, dtype=np.float64)) + offset).tolist()


def invert(calibration: Sequence[float], score: float) -> float:
    """RETURNS (float): The probability before calibration."""
    slope, offset = calibration
    return float(_sigmoid((_logit(score) - offset) / slope))


def fit(scored: List[Tuple[float, bool]]) -> Calibration:
    """Fit slope and offset of the log-odds by penalized logistic regression (Platt, 1999).

    scored (List[Tuple[float, bool]]): Uncalibrated score of each entity, and whether it is correct.
    RETURNS (Tuple[float, float]): Slope (positive) and offset; the identity if there are fewer than 20
        entities, or if all of them are correct or all are wrong.
    """
    correct = np.array([c for _, c in scored], dtype=np.float64)
    n_correct = correct.sum()
    n_wrong = len(correct) - n_correct
    if len(scored) < MIN_ENTITIES or not n_correct or not n_wrong:
        return IDENTITY
    # Platt's smoothed targets: without them, scores that separate the classes would become 0 and 1.
    correct = np.where(correct > 0, (n_correct + 1) / (n_correct + 2), 1 / (n_wrong + 2))
    x = np.stack([_logit(np.array([s for s, _ in scored])), np.ones(len(scored))], axis=1)
    prior = np.array(IDENTITY)
    w = prior.copy()
    for _ in range(50):
        p = _sigmoid(x @ w)
        gradient = x.T @ (p - correct) + (w - prior)
        hessian = (x * (p * (1 - p))[:, None]).T @ x + np.eye(2)
        step = np.linalg.solve(hessian, gradient)
        # A full Newton step can overshoot where scores are close to 0 or 1.
        while _loss(x, correct, prior, w - step) > _loss(x, correct, prior, w) + 1e-9:
            step = step / 2
        w = w - step
        if np.abs(step).max() < 1e-9:
            break
    return (float(np.clip(w[0], 0.05, 5.0)), float(w[1]))


def _loss(x: np.ndarray, correct: np.ndarray, prior: np.ndarray, w: np.ndarray) -> float:
    z = x @ w
    return float((np.logaddexp(0.0, z) - correct * z).sum() + ((w - prior) ** 2).sum() / 2)


def _logit(p: Any) -> Any:
    # Clip as little as possible, so that `invert` can undo a calibration that pushed scores towards 0 or 1.
    p = np.clip(p, 1e-12, 1 - 1e-12)
    return np.log(p) - np.log1p(-p)


def _sigmoid(x: np.ndarray) -> np.ndarray:
    return 1.0 / (1.0 + np.exp(-np.clip(x, -30, 30)))
