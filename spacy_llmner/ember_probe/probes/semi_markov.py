"""A semi-Markov model, which divides a text into labeled mentions and single words outside mentions.

Every mention (words e - k to e, label c) has a score. A word outside mentions has the score 0. The
probability of a segmentation is the exponential of its summed scores, normalized over all segmentations
with mentions of at most `max_words` words (Sarawagi and Cohen, 2004). Probabilities are computed in float64
with numpy, since the recursions are long chains of very small operations.
"""

import math
from bisect import bisect_right
from typing import List, Sequence, Tuple

import numpy as np

from ...util import padded_positions
from .segmentation import Chain, Decoded, Mention, ScoredSpan, mask_blank_row

# Score of a mention that does not exist, and log-sum over an empty set of segmentations.
NEVER = -1e30
# A posterior probability can be at the threshold although the score is less than its log-odds by this much.
ROUNDING = 1e-3


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
    alpha, beta = _log_sums(spans)
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


def decode_texts(texts: Sequence[np.ndarray], threshold: float) -> List[Decoded]:
    """Decode finished texts. Equal to pushing their words to a SemiMarkovDecoder, but for the whole batch.

    Replacing a mention by words outside divides the weight of a segmentation by exp(score). So if a
    mention's score is below the log-odds of the threshold, it is neither part of the best segmentation nor
    more probable than the threshold, and only the few other mentions are considered.

    texts (Sequence[ndarray]): For each text the scores of its mentions, shape (words, max_words, labels).
    threshold (float): See SemiMarkovDecoder.
    RETURNS (List[Decoded]): For each text, its best mentions, and all mentions that are at least as
        probable as the threshold.
    """
    bias = _bias(threshold)
    out: List[Decoded] = [([], []) for _ in texts]
    scores = np.concatenate(texts)
    # Numpy is slow for the cells of an array with several dimensions.
    cells = np.unravel_index(np.flatnonzero(scores >= -bias - ROUNDING), scores.shape)
    first_words = np.cumsum([0, *(len(text) for text in texts)])
    of_text = np.searchsorted(first_words, cells[0], side="right") - 1
    numbers, sizes = np.unique(of_text, return_counts=True)
    if not len(numbers):
        return out
    ends = cells[0] - first_words[of_text] + 1
    starts = ends - 1 - cells[1]
    rows = np.repeat(np.arange(len(numbers)), sizes)
    boundaries = np.stack([rows, starts, ends])
    posterior = _posteriors([texts[i] for i in numbers], boundaries, scores[cells]).tolist()
    mentions = list(zip(starts.tolist(), ends.tolist(), cells[2].tolist()))
    values = scores[cells].tolist()
    last = 0
    for i, size in zip(numbers.tolist(), sizes.tolist()):
        part, last = slice(last, last + size), last + size
        best = _best_mentions(mentions[part], values[part], bias)
        out[i] = (
            best,
            [
                ScoredSpan(*mention, score)
                for mention, score in sorted(zip(mentions[part], posterior[part]))
                if score >= threshold or mention in best
            ],
        )
    return out


def _best_mentions(
    mentions: Sequence[Mention], scores: Sequence[float], bias: float
) -> List[Mention]:
    """Find the best segmentation, as SemiMarkovDecoder does, from the mentions that can be part of it.

    mentions (Sequence[Mention]): Ascending by their end, then by their length, then by their label.
    scores (Sequence[float]): Their scores.
    bias (float): Added to each score.
    RETURNS (List[Mention]): The mentions of the segmentation, in text order.
    """
    # The boundaries where a mention of the best segmentation up to there ends.
    ends, totals = [0], [0.0]
    last: List[Mention] = [(0, 0, 0)]
    for mention, score in zip(mentions, scores):
        start, end, _ = mention
        before = bisect_right(ends, start) - 1
        total = score + bias + totals[before]
        if total > totals[-1]:
            if ends[-1] < end:
                ends.append(end)
                totals.append(total)
                last.append(mention)
            else:
                totals[-1], last[-1] = total, mention
    out = []
    k = len(ends) - 1
    while k:
        out.append(last[k])
        k = bisect_right(ends, last[k][0]) - 1
    return out[::-1]


def _posteriors(
    texts: Sequence[np.ndarray], boundaries: np.ndarray, scores: np.ndarray
) -> np.ndarray:
    """Compute the posterior probabilities of some mentions.

    texts (Sequence[ndarray]): See `decode_texts`.
    boundaries (ndarray): int64, shape (3, mentions): the text, the start and the end of each mention.
    scores (ndarray): Shape (mentions,).
    RETURNS (ndarray): Shape (mentions,).
    """
    width = max(len(text) for text in texts)
    # Labels come first, where numpy adds them fastest.
    by_label = np.concatenate(texts).transpose(2, 0, 1).copy()
    spans = np.full((len(texts) * width, by_label.shape[2]), NEVER)
    spans[padded_positions([len(text) for text in texts], width)] = _logsumexp(by_label, 0)
    alpha, beta = _log_sums(spans.reshape(len(texts), width, -1))
    rows, starts, ends = boundaries
    logs = alpha[rows, starts] + scores + beta[rows, ends]
    return np.exp(np.minimum(logs - alpha[rows, -1], 0.0))


class SemiMarkovDecoder:
    """Viterbi search, word by word.

    max_words (int): Longest mention.
    threshold (float): Probability at which a mention is preferred over the same words outside, all else
        being equal. 0.5 finds the most probable segmentation; a lower threshold finds more mentions.
    """

    def __init__(self, max_words: int, threshold: float = 0.5) -> None:
        self.chain = Chain(max_words)
        self.bias = _bias(threshold)
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


def _bias(threshold: float) -> float:
    """RETURNS (float): The log-odds of no mention at the threshold."""
    threshold = min(max(threshold, 1e-6), 1 - 1e-6)
    return float(np.log(1 - threshold) - np.log(threshold))


def _over_labels(scores: np.ndarray) -> Tuple[np.ndarray, np.ndarray]:
    """RETURNS (Tuple[ndarray, ndarray]): Log-sum of the scores over the labels, and the fraction of each
    label.
    """
    spans = _logsumexp(scores, -1)
    return spans, np.exp(scores - spans[..., None])


def _log_sums(spans: np.ndarray) -> Tuple[np.ndarray, np.ndarray]:
    """RETURNS (Tuple[ndarray, ndarray]): Shape (batch, words + 1): log-sums over the segmentations up to
    each boundary, and over those after each boundary.
    """
    n_batch, n_words, max_words = spans.shape
    # The sums after the boundaries are those up to the boundaries of the mirrored text. A mention that ends
    # with word e of the mirrored text starts with word n_words - 1 - e.
    ends = np.arange(n_words)[::-1, None] + np.arange(max_words)[None]
    mirrored = spans[:, ends.clip(max=n_words - 1), np.arange(max_words)[None]]
    mirrored = np.where(ends[None] < n_words, mirrored, NEVER)
    sums = _forward(np.concatenate([spans, mirrored]))
    return sums[:n_batch], sums[n_batch:, ::-1]


def _forward(spans: np.ndarray) -> np.ndarray:
    """RETURNS (ndarray): Shape (batch, words + 1): log-sum over the segmentations up to each boundary."""
    n_batch, n_words, max_words = spans.shape
    # One word after the other, longest mention first. Texts come last, where numpy is fastest.
    words = np.ascontiguousarray(spans.transpose(1, 2, 0)[:, ::-1])
    # Row e + max_words - 1 is boundary e. Boundaries before the start of the text are impossible.
    alpha = np.full((n_words + max_words, n_batch), NEVER)
    alpha[max_words - 1] = 0.0
    logs = np.empty((max_words + 1, n_batch))
    for e in range(n_words):
        # A mention of k + 1 words starts at boundary e - k.
        np.add(alpha[e : e + max_words], words[e], out=logs[:-1])
        logs[-1] = alpha[e + max_words - 1]  # outside
        top = logs.max(0)
        alpha[e + max_words] = top + np.log(np.exp(logs - top).sum(0))
    return alpha[max_words - 1 :].T


def _logsumexp(x: np.ndarray, axis: int) -> np.ndarray:
    top = x.max(axis=axis, keepdims=True)
    return np.squeeze(top, axis) + np.log(np.exp(x - top).sum(axis=axis))


def _log_add(*logs: float) -> float:
    top = max(logs)
    return top + math.log(sum(math.exp(log - top) for log in logs))
