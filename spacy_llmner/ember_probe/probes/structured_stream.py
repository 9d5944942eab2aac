"""The default probe word by word, while a text is being written.

What it does for one word is some fifty small steps, each of which takes longer to begin than to do. So
they are done in numpy, beside the LLM, which takes half of torch's time on a CPU and spares a GPU as
many kernels. The LLM has driven all else out of the CPU's caches, code too, so each weight is fetched once
a word: whatever reads a word stands in one matrix, whatever reads a state of the encoder in another. And
steps are done in place, by few different functions.
"""

import math
from typing import Mapping, Optional, Tuple

import numpy as np
import torch

from ..features.batch import SURFACE
from ..features.words import WordFeatures
from .segmentation import IMPOSSIBLE
from .standardize import CLIP

# The epsilon of the LayerNorm.
NORM_EPS = 1e-5
# Abramowitz and Stegun, Handbook of Mathematical Functions (1964), 26.2.17, divided by the root of 2 pi.
TAIL = 0.5307027145, -0.7265760135, 0.7107068705, -0.142248368, 0.127414796


class StructuredStream:
    """Each word's row comes when the word after it is known. The same as StructuredProbe.forward.

    weights (Mapping[str, Tensor]): The `state_dict` of a StructuredProbe that does not look to the right.
    """

    def __init__(self, weights: Mapping[str, torch.Tensor]) -> None:
        def layer(name: str) -> Tuple[torch.Tensor, torch.Tensor]:
            return weights[f"{name}.weight"], weights[f"{name}.bias"]

        max_words, head = weights["length"].shape
        width = weights["norm.weight"].shape[0]
        self.mean, self.std = (
            _array(weights["scale.mean"]).ravel(),
            _array(weights["scale.std"]).ravel(),
        )
        self.tables = [_array(weights[f"embed.{k}.weight"]) for k in range(len(SURFACE))]
        project, embed = layer("project"), layer("embed_project")
        bias = _array(project[1]) + _array(embed[1])
        weight = np.concatenate([_array(project[0]), _array(embed[0])], 1)
        # The norm subtracts the mean, which the weights may as well do.
        weight -= weight.mean(0)
        self.project = weight, bias - bias.mean()
        self.inputs = np.zeros(weight.shape[1], dtype=np.float32)
        self.norm = _array(weights["norm.weight"]), _array(weights["norm.bias"])
        start, end = layer("start"), layer("end")
        # A word's part in the encoder's next state; in a span that starts, ends or goes on with it; in
        # one that starts after it and one that ends before it.
        self.read_word = _stacked(
            (weights["forwards.weight_ih_l0"], weights["forwards.bias_ih_l0"]),
            (start[0][:, width:], torch.zeros_like(start[1])),
            (end[0][:, width:], torch.zeros_like(end[1])),
            layer("inside"),
            layer("before"),
            layer("after"),
        )
        # The state's part in the next one, and in a span that starts or ends with its word.
        self.read_state = _stacked(
            (weights["forwards.weight_hh_l0"], weights["forwards.bias_hh_l0"]),
            (start[0][:, :width], start[1]),
            (end[0][:, :width], end[1]),
        )
        self.length = _array(weights["length"])
        output = layer("output")
        self.output = _array(output[0]).T, _array(output[1])
        self.state = np.zeros(width, dtype=np.float32)
        self.from_state = _linear(self.state, *self.read_state)
        self.before = _array(weights["before.bias"])
        self.waiting: Optional[np.ndarray] = None
        # Of the last max_words words, the latest first.
        self.starts = np.zeros((max_words, head), dtype=np.float32)
        self.sums = np.zeros((max_words, head), dtype=np.float32)
        self.sum = np.zeros(head, dtype=np.float32)
        self.n_inside = np.arange(1, max_words + 1, dtype=np.float32)[:, None]
        self.n_words = 0

    def push(self, word: WordFeatures, surface: np.ndarray) -> Optional[np.ndarray]:
        """Add the next word.

        word (WordFeatures): One word.
        surface (ndarray): Its row of `batch.surface`.
        RETURNS (Optional[ndarray]): The row of the word before it, if there is one.
        """
        return self._add(self._word(word.hidden.cpu().numpy().ravel(), surface))

    def end(self) -> Optional[np.ndarray]:
        """RETURNS (Optional[ndarray]): The row of the last word, behind which the text ends."""
        row = None if self.waiting is None else self._add(np.zeros_like(self.state))
        self.waiting = None
        return row

    def _word(self, hidden: np.ndarray, surface: np.ndarray) -> np.ndarray:
        """RETURNS (ndarray): What StructuredProbe.words says of the word, shape (width,)."""
        n = len(hidden)
        x = np.subtract(hidden, self.mean, out=self.inputs[:n])
        x /= self.std
        np.minimum(np.maximum(x, -CLIP, out=x), CLIP, out=x)
        for table, i in zip(self.tables, surface.tolist()):
            row = table[i % len(table)]
            self.inputs[n : n + len(row)] = row
            n += len(row)
        z = _linear(self.inputs, *self.project)
        weight, bias = self.norm
        z /= math.sqrt(z @ z / len(z) + NORM_EPS)
        z *= weight
        z += bias
        return _gelu(z)

    def _add(self, z: np.ndarray) -> Optional[np.ndarray]:
        """RETURNS (Optional[ndarray]): The row of the word in front of z."""
        from_word = _linear(z, *self.read_word)
        n_gates = 3 * len(z)
        self._step(from_word[:n_gates], self.from_state[:n_gates])
        self.from_state = _linear(self.state, *self.read_state)
        parts = from_word[n_gates:].reshape(5, -1)
        row = None
        if self.waiting is not None:
            head = parts.shape[1]
            start, end = self.from_state[n_gates:-head], self.from_state[-head:]
            row = self._row(start, end + parts[4], self.waiting)
        self.waiting = parts
        return row

    def _step(self, word: np.ndarray, state: np.ndarray) -> None:
        """Move the encoder on by a word, as nn.GRU does."""
        width = len(self.state)
        both = word[: 2 * width] + state[: 2 * width]
        opened = 0.5 * np.tanh(0.5 * both) + 0.5  # the logistic function
        reset, keep = opened[:width], opened[width:]
        new = np.tanh(word[2 * width :] + reset * state[2 * width :])
        self.state = new + keep * (self.state - new)

    def _row(self, start: np.ndarray, end: np.ndarray, parts: np.ndarray) -> np.ndarray:
        """parts (ndarray): The word's own, shape (5, head)."""
        _shift_in(self.starts, start + parts[0] + self.before)
        _shift_in(self.sums, self.sum)
        self.sum = self.sum + parts[2]
        means = (self.sum - self.sums) / self.n_inside
        weight, bias = self.output
        hidden = _gelu(self.starts + (end + parts[1]) + means + self.length)
        scores = hidden @ weight + bias
        self.n_words += 1
        scores[self.n_words :] = IMPOSSIBLE
        self.before = parts[3]
        return scores


def _linear(x: np.ndarray, weight: np.ndarray, bias: np.ndarray) -> np.ndarray:
    out = weight @ x
    out += bias
    return out


def _gelu(x: np.ndarray) -> np.ndarray:
    """RETURNS (ndarray): x times the share of the normal distribution that is below x."""
    size = np.abs(x)
    t = 0.2316419 * size
    t += 1.0
    np.divide(1.0, t, out=t)
    tail = TAIL[0] * t
    for term in TAIL[1:]:
        tail += term
        tail *= t
    tail *= size
    size *= size
    size *= -0.5
    tail *= np.exp(size, out=size)
    return np.maximum(x, 0.0) - tail


def _shift_in(rows: np.ndarray, row: np.ndarray) -> None:
    """Put a row in front of the others, in place; the last one falls out."""
    rows[1:] = rows[:-1]
    rows[0] = row


def _stacked(*layers: Tuple[torch.Tensor, torch.Tensor]) -> Tuple[np.ndarray, np.ndarray]:
    """RETURNS (Tuple[ndarray, ndarray]): Weight and bias of layers that read the same, as of one layer."""
    weights, biases = zip(*layers)
    return _array(torch.cat(weights)), _array(torch.cat(biases))


def _array(x: torch.Tensor) -> np.ndarray:
    return x.detach().float().cpu().numpy()
