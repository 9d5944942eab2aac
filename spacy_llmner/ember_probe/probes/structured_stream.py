"""The default probe word by word, for a text that is still being written.

A word takes about fifty small operations, each of which takes longer to launch than to compute. On a CPU,
numpy needs half the time of torch for them, and they need no kernel launches on a GPU. Between two words,
the LLM evicts everything else from the CPU's caches, code included. So each weight is read only once per
word: all layers that are applied to a word are stacked into one matrix, and all layers that are applied to
a state of the encoder are stacked into another. For the same reason, operations work in place and use few
different functions.
"""

import math
from typing import Mapping, Optional, Tuple

import numpy as np
import torch

from ..features.batch import SURFACE
from ..features.words import WordFeatures
from .segmentation import IMPOSSIBLE
from .standardize import CLIP

# Weight and bias.
Layer = Tuple[np.ndarray, np.ndarray]
# Epsilon of the probe's LayerNorm.
NORM_EPS = 1e-5
# Coefficients for the tail of the normal distribution, divided by the square root of 2 pi. Abramowitz and
# Stegun, Handbook of Mathematical Functions (1964), 26.2.17.
TAIL = 0.5307027145, -0.7265760135, 0.7107068705, -0.142248368, 0.127414796


class StreamWeights:
    """The stacked weights of a probe, which all its streams share.

    weights (Mapping[str, Tensor]): The `state_dict` of a StructuredProbe without `look_right`.
    """

    def __init__(self, weights: Mapping[str, torch.Tensor]) -> None:
        arrays = {name: tensor.detach().float().cpu().numpy() for name, tensor in weights.items()}

        def layer(name: str) -> Layer:
            return arrays[f"{name}.weight"], arrays[f"{name}.bias"]

        self.mean, self.std = arrays["scale.mean"].ravel(), arrays["scale.std"].ravel()
        self.tables = [arrays[f"embed.{k}.weight"] for k in range(len(SURFACE))]
        # `project` and `embed_project` as one layer for the concatenated inputs. Its weights include the
        # first step of the LayerNorm after it, which subtracts the mean.
        project, project_bias = layer("project")
        embed, embed_bias = layer("embed_project")
        weight, bias = np.concatenate([project, embed], 1), project_bias + embed_bias
        self.project = weight - weight.mean(0), bias - bias.mean()
        self.norm = layer("norm")
        # `start` and `end` get the encoder's state and the word, concatenated.
        self.width = len(arrays["norm.weight"])
        (start, start_bias), (end, end_bias) = layer("start"), layer("end")
        # Contributions of a word: to the next state of the encoder; to spans that start with it, end with
        # it, contain it, start after it or end before it.
        self.word_layers = _stack(
            (arrays["forwards.weight_ih_l0"], arrays["forwards.bias_ih_l0"]),
            (start[:, self.width :], np.zeros_like(start_bias)),
            (end[:, self.width :], np.zeros_like(end_bias)),
            layer("inside"),
            layer("before"),
            layer("after"),
        )
        # Contributions of a state: to the next state; to spans that start or end with its word.
        self.state_layers = _stack(
            (arrays["forwards.weight_hh_l0"], arrays["forwards.bias_hh_l0"]),
            (start[:, : self.width], start_bias),
            (end[:, : self.width], end_bias),
        )
        self.length = arrays["length"]
        output, output_bias = layer("output")
        self.output = output.T, output_bias
        self.before = arrays["before.bias"]


class StructuredStream:
    """Scores a text word by word, with the same results as StructuredProbe.forward.

    The row of a word is complete when the word after it is known.

    weights (StreamWeights): The probe's weights.
    """

    def __init__(self, weights: StreamWeights) -> None:
        self.weights = weights
        self.inputs = np.zeros(weights.project[0].shape[1], dtype=np.float32)
        self.state = np.zeros(weights.width, dtype=np.float32)
        self.from_state = _linear(self.state, *weights.state_layers)
        self.before = weights.before
        # Contributions of the last word, whose row needs the next word.
        self.waiting: Optional[np.ndarray] = None
        # For the last max_words words, latest first: their contributions as starts of spans, and the sums
        # of `inside` over all words before each of them.
        max_words, head = weights.length.shape
        self.starts = np.zeros((max_words, head), dtype=np.float32)
        self.sums = np.zeros((max_words, head), dtype=np.float32)
        self.sum = np.zeros(head, dtype=np.float32)
        self.lengths = np.arange(1, max_words + 1, dtype=np.float32)[:, None]
        self.n_words = 0

    def push(self, word: WordFeatures, surface: np.ndarray) -> Optional[np.ndarray]:
        """Add the next word.

        word (WordFeatures): Features of one word.
        surface (ndarray): The word's row of `batch.surface`.
        RETURNS (Optional[ndarray]): The row of the word before it, if there is one.
        """
        return self._add(self._word(word.hidden.cpu().numpy().ravel(), surface))

    def end(self) -> Optional[np.ndarray]:
        """RETURNS (Optional[ndarray]): The row of the last word."""
        row = None if self.waiting is None else self._add(np.zeros_like(self.state))
        self.waiting = None
        return row

    def _word(self, hidden: np.ndarray, surface: np.ndarray) -> np.ndarray:
        """RETURNS (ndarray): The word's vector, as from StructuredProbe.words, shape (width,)."""
        n = len(hidden)
        x = np.subtract(hidden, self.weights.mean, out=self.inputs[:n])
        x /= self.weights.std
        np.minimum(np.maximum(x, -CLIP, out=x), CLIP, out=x)
        for table, i in zip(self.weights.tables, surface.tolist()):
            row = table[i % len(table)]
            self.inputs[n : n + len(row)] = row
            n += len(row)
        z = _linear(self.inputs, *self.weights.project)
        weight, bias = self.weights.norm
        z /= math.sqrt(z @ z / len(z) + NORM_EPS)
        z *= weight
        z += bias
        return _gelu(z)

    def _add(self, z: np.ndarray) -> Optional[np.ndarray]:
        """Add a word's vector.

        RETURNS (Optional[ndarray]): The row of the word before it.
        """
        from_word = _linear(z, *self.weights.word_layers)
        n_gates = 3 * len(z)
        self._step(from_word[:n_gates], self.from_state[:n_gates])
        self.from_state = _linear(self.state, *self.weights.state_layers)
        parts = from_word[n_gates:].reshape(5, -1)
        row = None
        if self.waiting is not None:
            head = parts.shape[1]
            start, end = self.from_state[n_gates:-head], self.from_state[-head:]
            row = self._row(start, end + parts[4], self.waiting)
        self.waiting = parts
        return row

    def _step(self, word: np.ndarray, state: np.ndarray) -> None:
        """Update the encoder's state as nn.GRU does."""
        width = len(self.state)
        logits = word[: 2 * width] + state[: 2 * width]
        gates = 0.5 * np.tanh(0.5 * logits) + 0.5  # the logistic function
        reset, update = gates[:width], gates[width:]
        new = np.tanh(word[2 * width :] + reset * state[2 * width :])
        self.state = new + update * (self.state - new)

    def _row(self, start: np.ndarray, end: np.ndarray, parts: np.ndarray) -> np.ndarray:
        """start (ndarray): Contribution of the encoder's state to spans that start with the word.
        end (ndarray): Contribution of the encoder's state and the next word to spans that end with the
            word.
        parts (ndarray): Contributions of the word itself, shape (5, head).
        RETURNS (ndarray): Scores of the spans that end with the word, shape (max_words, labels).
        """
        _shift_in(self.starts, start + parts[0] + self.before)
        _shift_in(self.sums, self.sum)
        self.sum = self.sum + parts[2]
        means = (self.sum - self.sums) / self.lengths
        weight, bias = self.weights.output
        hidden = _gelu(self.starts + (end + parts[1]) + means + self.weights.length)
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
    """RETURNS (ndarray): GELU: x times the probability that a standard normal variable is less than x."""
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
    """Insert a row before the others, in place, and drop the last row."""
    rows[1:] = rows[:-1]
    rows[0] = row


def _stack(*layers: Layer) -> Layer:
    """RETURNS (Layer): Layers with the same input as one layer."""
    weights, biases = zip(*layers)
    return np.concatenate(weights), np.concatenate(biases)
