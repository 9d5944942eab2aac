"""The default probe word by word, while a text is being written.

What it does for one word is some fifty small steps, each of which takes longer to begin than to do. So
they are done in numpy, beside the LLM, which takes half of torch's time on a CPU and spares a GPU as
many kernels; layers that read the same vectors stand side by side in one matrix.
"""

import math
from typing import TYPE_CHECKING, Any, List, Optional, Sequence, Tuple

import numpy as np
import torch
from thinc.api import NumpyOps
from torch import nn

from .segments import IMPOSSIBLE
from .standardize import CLIP
from .words import WordFeatures

if TYPE_CHECKING:
    from .structured import StructuredProbe

OPS = NumpyOps()


class StructuredStream:
    """Each word's row comes when the word after it is known. The same as StructuredProbe.forward.

    probe (StructuredProbe): Not one that looks to the right.
    """

    def __init__(self, probe: "StructuredProbe") -> None:
        width, max_words = probe.settings.width, probe.settings.max_words
        self.mean, self.std = _array(probe.scale.mean).ravel(), _array(probe.scale.std).ravel()
        embed: Any = probe.embed
        self.tables = [_array(table.weight) for table in embed]
        self.n_rows = probe.settings.surface_rows
        self.read = _side_by_side([probe.project, probe.embed_project])
        self.norm = _array(probe.norm.weight), _array(probe.norm.bias), probe.norm.eps
        self.gru = _gru_side_by_side(probe.forwards)
        head = probe.length.shape[1]
        none = torch.zeros(head, width)
        parts = (
            _side_by_side([probe.start, probe.before, none]),
            _side_by_side([probe.end, none, probe.after]),
            _side_by_side([none, probe.inside, none, none]),
        )
        # Of state, word, word before and word behind: a span's start, its end, and what is inside.
        self.sides = tuple(np.concatenate(x) for x in zip(*parts))
        self.length = _array(probe.length)
        self.output = _array(probe.output.weight).T, _array(probe.output.bias)
        self.state = np.zeros(width, dtype=np.float32)
        self.before = np.zeros(width, dtype=np.float32)
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
        z = self._word(_array(word.hidden).ravel(), surface)
        self._step(z)
        row = None if self.waiting is None else self._row(self.waiting, z)
        self.waiting = z
        return row

    def end(self) -> Optional[np.ndarray]:
        """RETURNS (Optional[ndarray]): The row of the last word, behind which the text ends."""
        if self.waiting is None:
            return None
        after = np.zeros_like(self.waiting)
        self._step(after)
        row = self._row(self.waiting, after)
        self.waiting = None
        return row

    def _word(self, hidden: np.ndarray, surface: np.ndarray) -> np.ndarray:
        """RETURNS (ndarray): What StructuredProbe.words says of the word, shape (width,)."""
        x = np.minimum(np.maximum((hidden - self.mean) / self.std, -CLIP), CLIP)
        rows = (table[i] for table, i in zip(self.tables, surface % self.n_rows))
        z = _linear(np.concatenate([x, *rows]), *self.read)
        weight, bias, eps = self.norm
        z -= z.sum() / len(z)
        z /= math.sqrt(z @ z / len(z) + eps)
        return OPS.gelu(z * weight + bias)

    def _step(self, z: np.ndarray) -> None:
        """Move the recurrent encoder on by a word, as nn.GRU does."""
        width = len(z)
        gates = _linear(np.concatenate([z, self.state]), *self.gru)
        opened = 0.5 * np.tanh(0.5 * gates[: 2 * width]) + 0.5  # the logistic function
        reset, keep = opened[:width], opened[width:]
        new = np.tanh(gates[2 * width : 3 * width] + reset * gates[3 * width :])
        self.state = new + keep * (self.state - new)

    def _row(self, z: np.ndarray, after: np.ndarray) -> np.ndarray:
        sides = _linear(np.concatenate([self.state, z, self.before, after]), *self.sides)
        head = len(self.sum)
        start, end, inside = sides[:head], sides[head : 2 * head], sides[2 * head :]
        _shift_in(self.starts, start)
        _shift_in(self.sums, self.sum)
        self.sum = self.sum + inside
        means = (self.sum - self.sums) / self.n_inside
        weight, bias = self.output
        scores = OPS.gelu(self.starts + end + means + self.length) @ weight + bias
        self.n_words += 1
        scores[self.n_words :] = IMPOSSIBLE
        self.before = z
        return scores


def _linear(x: np.ndarray, weight: np.ndarray, bias: np.ndarray) -> np.ndarray:
    return weight @ x + bias


def _shift_in(rows: np.ndarray, row: np.ndarray) -> None:
    """Put a row in front of the others, in place; the last one falls out."""
    rows[1:] = rows[:-1]
    rows[0] = row


def _side_by_side(layers: Sequence[Any]) -> Tuple[np.ndarray, np.ndarray]:
    """layers (Sequence[Union[nn.Linear, Tensor]]): Layers, or zeros in place of a weight.
    RETURNS (Tuple[ndarray, ndarray]): Weight and bias of their sum, as one layer that reads their inputs
        one behind the other."""
    weights: List[np.ndarray] = [_array(getattr(layer, "weight", layer)) for layer in layers]
    biases = [_array(layer.bias) for layer in layers if isinstance(layer, nn.Linear)]
    return np.concatenate(weights, 1), np.sum(biases, axis=0)


def _gru_side_by_side(gru: nn.GRU) -> Tuple[np.ndarray, np.ndarray]:
    """RETURNS (Tuple[ndarray, ndarray]): One layer that reads a word and the state. For the gates it gives
    the sums of both, for the new state each for itself, since a gate comes between."""
    names = ("weight_ih_l0", "weight_hh_l0", "bias_ih_l0", "bias_hh_l0")
    word, state, word_bias, state_bias = (_array(getattr(gru, name)) for name in names)
    gates = 2 * gru.hidden_size
    none = np.zeros_like(word[gates:])
    weight = np.block([[word[:gates], state[:gates]], [word[gates:], none], [none, state[gates:]]])
    sums = word_bias[:gates] + state_bias[:gates]
    return weight, np.concatenate([sums, word_bias[gates:], state_bias[gates:]])


def _array(x: torch.Tensor) -> np.ndarray:
    return x.detach().float().cpu().numpy()
