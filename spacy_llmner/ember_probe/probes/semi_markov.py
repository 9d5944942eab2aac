"""A semi-Markov model, which divides a text into labeled mentions and single words outside mentions.

Every mention (words e - k to e, label c) has a score. A word outside mentions has the score 0. The
probability of a segmentation is the exponential of its summed scores, normalized over all segmentations
with mentions of at most `max_words` words (Sarawagi and Cohen, 2004). Probabilities are computed in float64
with numpy, since the recursions are long chains of very small operations.
"""

import math
from typing import List, Sequence, Tuple

import numpy as np

from .segmentation import Chain, mask_blank_row

# Score of a mention that does not exist, and log-sum over an empty set of segmentations.
NEVER = -1e30


def probabilities(scores: np.ndarray) -> Tuple[np.ndarray, np.ndarray]:
    """Compute the posterior probability of every mention with the forward-backward algorithm.

    scores (ndarray): Shape (batch, words, max_words, labels): cell [b, e, k, c] is the score of the mention
        of k + 1 words that ends with word e. Mentions that don't exist (they would start before the text,
        or end in the padding after it) have the score NEVER.
    RETURNS (Tuple[ndarray, ndarray]): Probabilities, in the shape of the scores; and the logarithm of the
        partition function, shape (batch,).
    """
    scores = scores.astype(np.float64)
    spans, shares = _over_labels(scores)
    alpha = _forward(spans)
    beta = _backward(spans)
    total = alpha[:, -1]
    n_batch, n_words, max_words = spans.shape
    starts = np.arange(n_words)[:, None] - np.arange(max_words)[None]
    before = alpha[:, starts.clip(min=0)]
    logs = before + spans + beta[:, 1:, None] - total[:, None, None]
    return np.exp(np.minimum(logs, 0.0))[..., None] * shares, total


def loss_and_gradient(
    scores: np.ndarray, gold: Sequence[Sequence[Tuple[int, int, int]]]
) -> Tuple[float, np.ndarray]:
    """Compute the negative log-likelihood of the gold segmentations, and its gradient.

    scores (ndarray): As in `probabilities`.
    gold (Sequence[Sequence[Tuple[int, int, int]]]): For each text (start, end, label) of its mentions,
        which don't overlap and have at most max_words words.
    RETURNS (Tuple[float, ndarray]): The sum over the texts, and the gradient in the shape of the scores.
    """
    gradient, total = probabilities(scores)
    loss = float(total.sum())
    for row, mentions in enumerate(gold):
        for start, end, label in mentions:
            cell = (row, end - 1, end - start - 1, label)
            loss -= float(scores[cell])
            gradient[cell] -= 1.0
    return loss, gradient


class SemiMarkovDecoder:
    """Viterbi search, word by word.

    max_words (int): Longest mention.
    threshold (float): Probability at which a mention is preferred over the same words outside, all else
        being equal. 0.5 finds the most probable segmentation; a lower threshold finds more mentions.
    """

    def __init__(self, max_words: int, threshold: float = 0.5) -> None:
        self.chain = Chain(max_words)
        threshold = min(max(threshold, 1e-6), 1 - 1e-6)
        self.bias = float(np.log(1 - threshold) - np.log(threshold))
        self.rows: List[np.ndarray] = []
        self.blank: List[bool] = []
        self.best: List[float] = [0.0]
        # Computed when `score` is called. `spans`: log-sums of the mentions' scores over the labels.
        # `alpha`: log-sums over the segmentations up to each boundary.
        self.spans: List[List[float]] = []
        self.alpha: List[float] = [0.0]
        # Log-sums over the segmentations from each boundary to the end, last boundary first.
        self.beta: List[float] = [0.0]

    def push(self, row: np.ndarray, blank: bool = False) -> None:
        """row (ndarray): Shape (max_words, labels): scores of the mentions that end with this word.
        blank (bool): Whether the word is blank.
        """
        self.blank.append(blank)
        row = mask_blank_row(row, self.blank)
        self.rows.append(row)
        self.beta = [0.0]
        scores = row.tolist()
        spans = [max(labels) for labels in scores]
        previous = self.best[: -len(spans) - 1 : -1]
        totals = [span + self.bias + before for span, before in zip(spans, previous)]
        best, outside = max(totals), self.best[-1]
        if best > outside:
            k = totals.index(best)
            self.best.append(best)
            self.chain.push(k + 1, scores[k].index(spans[k]))
        else:
            self.best.append(outside)
            self.chain.push(1, None)

    def score(self, start: int, end: int, label: int) -> float:
        """RETURNS (float): Posterior probability of a mention, given the words pushed so far."""
        self._update_sums()
        n_words, beta = len(self.rows), self.beta
        while len(beta) <= n_words - end:
            first = n_words - len(beta)
            ends = self.spans[first : first + self.chain.max_words]
            logs = [ends[k][k] + beta[-1 - k] for k in range(len(ends))]
            beta.append(_log_add(beta[-1], *logs))
        score = float(self.rows[end - 1][end - start - 1, label])
        log = self.alpha[start] + score + beta[n_words - end]
        return math.exp(min(log - self.alpha[-1], 0.0))

    def _update_sums(self) -> None:
        """Update the log-sums to the last word."""
        if new := self.rows[len(self.spans) :]:
            self.spans += _logsumexp(np.array(new, dtype=np.float64), -1).tolist()
        for spans in self.spans[len(self.alpha) - 1 :]:
            previous = self.alpha[: -len(spans) - 1 : -1]
            logs = [span + before for span, before in zip(spans, previous)]
            self.alpha.append(_log_add(self.alpha[-1], *logs))


def _over_labels(scores: np.ndarray) -> Tuple[np.ndarray, np.ndarray]:
    """RETURNS (Tuple[ndarray, ndarray]): Log-sum of the scores over the labels, and the fraction of each
    label.
    """
    spans = _logsumexp(scores, -1)
    return spans, np.exp(scores - spans[..., None])


def _forward(spans: np.ndarray) -> np.ndarray:
    """RETURNS (ndarray): Shape (batch, words + 1): log-sum over the segmentations up to each boundary."""
    n_batch, n_words, max_words = spans.shape
    # Boundaries before the start of the text are impossible.
    alpha = np.full((n_batch, n_words + max_words), NEVER)
    alpha[:, max_words - 1] = 0.0
    for e in range(n_words):
        # alpha[:, e + max_words - 1] is boundary e; a mention of k + 1 words starts at boundary e - k.
        logs = alpha[:, e : e + max_words][:, ::-1] + spans[:, e]
        outside = alpha[:, e + max_words - 1]
        alpha[:, e + max_words] = np.logaddexp(_logsumexp(logs, 1), outside)
    return alpha[:, max_words - 1 :]


def _backward(spans: np.ndarray) -> np.ndarray:
    """RETURNS (ndarray): Shape (batch, words + 1): log-sum over the segmentations after each boundary."""
    n_batch, n_words, max_words = spans.shape
    # Mentions by their start: cell [b, s, k] belongs to words s to s + k.
    ends = np.arange(n_words)[:, None] + np.arange(max_words)[None]
    by_start = spans[:, ends.clip(max=n_words - 1), np.arange(max_words)[None]]
    by_start = np.where(ends[None] < n_words, by_start, NEVER)
    beta = np.full((n_batch, n_words + max_words + 1), NEVER)
    beta[:, n_words] = 0.0
    for s in range(n_words - 1, -1, -1):
        logs = beta[:, s + 1 : s + 1 + max_words] + by_start[:, s]
        beta[:, s] = np.logaddexp(_logsumexp(logs, 1), beta[:, s + 1])
    return beta[:, : n_words + 1]


def _logsumexp(x: np.ndarray, axis: int) -> np.ndarray:
    top = x.max(axis=axis, keepdims=True)
    return np.squeeze(top, axis) + np.log(np.exp(x - top).sum(axis=axis))


def _log_add(*logs: float) -> float:
    top = max(logs)
    return top + math.log(sum(math.exp(log - top) for log in logs))
