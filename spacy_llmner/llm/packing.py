"""Training sequences that begin alike, packed into one: what they share goes through the LLM once.

A text and the questions about it are a tree, as when decoding: each token sees its ancestors only,
at the position it has in its own sequence. So the logits are those of the sequences one by one.
"""

from dataclasses import dataclass
from typing import Any, Dict, List, Sequence, Tuple

import numpy as np
import torch

from .pool import LoadedLLM
from .tree_attention import TreePass, run_decoder


@dataclass
class TrainingSequence:
    """ids (List[int]): Tokens.
    loss (List[bool]): Same length: which of them are to be learnt.
    weight (float): How much they count.
    """

    ids: List[int]
    loss: List[bool]
    weight: float = 1.0


@dataclass
class Packed:
    """Sequences merged into a tree.

    ids (ndarray): int64, shape (tokens,), parents before children.
    positions (ndarray): int64, shape (tokens,).
    mask (ndarray): bool, shape (tokens, tokens): what each token may see.
    rows (ndarray): int64, shape (targets,): tokens that predict something.
    targets (ndarray): int64, shape (targets,): what they predict.
    weights (ndarray): float32, shape (targets,): of the sequences that have them, summed.
    """

    ids: np.ndarray
    positions: np.ndarray
    mask: np.ndarray
    rows: np.ndarray
    targets: np.ndarray
    weights: np.ndarray

    def __len__(self) -> int:
        return len(self.ids)


def pack(sequences: Sequence[TrainingSequence]) -> Packed:
    """Merge sequences that share their first token."""
    ids: List[int] = []
    parents: List[int] = []
    children: Dict[Tuple[int, int], int] = {}
    learnt: Dict[Tuple[int, int], float] = {}
    for sequence in sequences:
        at = -1
        last = len(sequence.ids) - 1
        for k, (token, loss) in enumerate(zip(sequence.ids, sequence.loss)):
            if loss and at >= 0:
                learnt[at, token] = learnt.get((at, token), 0.0) + sequence.weight
            if k == last:
                break  # nothing is predicted from it
            if (at, token) not in children:
                children[at, token] = len(ids)
                ids.append(token)
                parents.append(at)
            at = children[at, token]
    n = len(ids)
    mask = np.zeros((n, n), dtype=bool)
    positions = np.zeros(n, dtype=np.int64)
    for k, parent in enumerate(parents):
        if parent >= 0:
            mask[k] = mask[parent]
            positions[k] = positions[parent] + 1
        mask[k, k] = True
    return Packed(
        np.array(ids, dtype=np.int64),
        positions,
        mask,
        np.array([row for row, _ in learnt], dtype=np.int64),
        np.array([token for _, token in learnt], dtype=np.int64),
        np.array(list(learnt.values()), dtype=np.float32),
    )


def target_logits(llm: LoadedLLM, decoder: Any, batch: Sequence[Packed]) -> torch.Tensor:
    """Ask for the logits behind all `rows` of some packed trees.

    decoder (nn.Module): The LLM's decoder, or a view with an adapter.
    RETURNS (Tensor): float32, shape (targets of all trees, vocabulary).
    """
    lines = fill_lines([len(packed) for packed in batch])
    n_tokens = max(len(packed) for packed in batch)
    ids = np.zeros((len(lines), n_tokens), dtype=np.int64)
    positions = np.zeros_like(ids)
    # What pads a line sees itself, since the attention of what sees nothing is NaN.
    mask = np.tile(np.eye(n_tokens, dtype=bool), (len(lines), 1, 1))
    starts = np.zeros(len(batch), dtype=np.int64)
    for line, trees in enumerate(lines):
        start = 0
        for k in trees:
            packed, end = batch[k], start + len(batch[k])
            ids[line, start:end] = packed.ids
            positions[line, start:end] = packed.positions
            mask[line, start:end, start:end] = packed.mask
            starts[k] = line * n_tokens + start
            start = end
    tokens, places, seen = (torch.from_numpy(x).to(llm.device) for x in (ids, positions, mask))
    hidden = run_decoder(decoder, tokens, places, TreePass(seen, places, places)).flatten(0, 1)
    rows = np.concatenate([start + packed.rows for start, packed in zip(starts, batch)])
    return llm.logits(hidden[torch.from_numpy(rows).to(llm.device)])


def fill_lines(lengths: Sequence[int]) -> List[List[int]]:
    """Put trees behind each other into lines no longer than the longest of them, the long ones first:
    little is padded, and attention does not grow with the batch.

    RETURNS (List[List[int]]): For each line, the numbers of its trees.
    """
    room = max(lengths)
    lines: List[List[int]] = []
    left: List[int] = []
    for k in sorted(range(len(lengths)), key=lambda k: -lengths[k]):
        line = next((i for i, free in enumerate(left) if free >= lengths[k]), len(lines))
        if line == len(lines):
            lines.append([])
            left.append(room)
        lines[line].append(k)
        left[line] -= lengths[k]
    return lines
