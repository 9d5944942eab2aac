"""Training sequences that begin alike, packed into one: what they share goes through the LLM once.

A text and the questions about it are a tree, as when decoding: each token sees its ancestors only,
at the position it has in its own sequence. So the logits are those of the sequences one by one.
"""

from dataclasses import dataclass
from typing import Any, Dict, List, Optional, Sequence, Tuple

import numpy as np
import torch

from .loading import LoadedLLM
from .tree_attention import TreePass, run_decoder


@dataclass
class TrainingSequence:
    """ids (List[int]): Tokens.
    loss (List[bool]): Same length: which of them are to be learnt.
    weight (float): How much they count.
    allowed (Optional[List[ndarray]]): Same length: what each token to be learnt is chosen from. Where there
        is no choice, nothing is learnt. None for the whole vocabulary.
    """

    ids: List[int]
    loss: List[bool]
    weight: float = 1.0
    allowed: Optional[List[np.ndarray]] = None

    def learns(self, k: int) -> bool:
        """RETURNS (bool): Whether token k is to be learnt."""
        return self.loss[k] and not (self.allowed and len(self.allowed[k]) == 1)


@dataclass
class Packed:
    """Sequences merged into a tree.

    ids (ndarray): int64, shape (tokens,), parents before children.
    positions (ndarray): int64, shape (tokens,).
    mask (ndarray): bool, shape (tokens, tokens): what each token may see.
    rows (ndarray): int64, shape (targets,): tokens that predict something.
    targets (ndarray): int64, shape (targets,): what they predict.
    weights (ndarray): float32, shape (targets,): of the sequences that have them, summed.
    allowed (Optional[List[ndarray]]): For each target, what it is chosen from. None for the vocabulary.
    """

    ids: np.ndarray
    positions: np.ndarray
    mask: np.ndarray
    rows: np.ndarray
    targets: np.ndarray
    weights: np.ndarray
    allowed: Optional[List[np.ndarray]]

    def __len__(self) -> int:
        return len(self.ids)


def pack(sequences: Sequence[TrainingSequence]) -> Packed:
    """Merge sequences that share their first token."""
    ids: List[int] = []
    parents: List[int] = []
    children: Dict[Tuple[int, int], int] = {}
    learnt: Dict[Tuple[int, int], float] = {}
    allowed: Dict[Tuple[int, int], np.ndarray] = {}
    everything = any(sequence.allowed is None for sequence in sequences)
    for sequence in sequences:
        at = -1
        last = len(sequence.ids) - 1
        while last > 0 and sequence.loss[last] and not sequence.learns(last):
            last -= 1
        for k, token in enumerate(sequence.ids):
            if sequence.learns(k) and at >= 0:
                learnt[at, token] = learnt.get((at, token), 0.0) + sequence.weight
                if sequence.allowed is not None:
                    allowed[at, token] = sequence.allowed[k]
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
        None if everything else [allowed[target] for target in learnt],
    )


def target_logits(llm: LoadedLLM, decoder: Any, batch: Sequence[Packed]) -> torch.Tensor:
    """Ask for the logits behind all `rows` of some packed trees.

    decoder (nn.Module): The LLM's decoder, or a view with an adapter.
    RETURNS (Tensor): float32, shape (targets of all trees, vocabulary); where all targets are chosen from
        a part of it, (targets, `choices` of the batch), -inf for what a target is not chosen from.
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
    tokens, at, seen = (torch.from_numpy(x).to(llm.device) for x in (ids, positions, mask))
    hidden = run_decoder(decoder, tokens, at, TreePass(seen, at, at)).flatten(0, 1)
    rows = np.concatenate([start + packed.rows for start, packed in zip(starts, batch)])
    hidden = hidden[torch.from_numpy(rows).to(llm.device)]
    columns = choices(batch)
    if columns is None:
        return llm.logits(hidden)
    barred = np.ones((len(rows), len(columns)), dtype=bool)
    for row, allowed in enumerate(ids for packed in batch for ids in packed.allowed or ()):
        barred[row, np.searchsorted(columns, allowed)] = False
    logits = llm.logits(hidden, torch.from_numpy(columns))
    return logits.masked_fill(torch.from_numpy(barred).to(llm.device), -torch.inf)


def choices(batch: Sequence[Packed]) -> Optional[np.ndarray]:
    """RETURNS (Optional[ndarray]): int64, sorted: the tokens that any target of some packed trees is chosen
    from; None for the whole vocabulary."""
    if any(packed.allowed is None for packed in batch):
        return None
    every = [ids for packed in batch for ids in packed.allowed or ()]
    return np.unique(np.concatenate([np.empty(0, np.int64), *every]))


def target_columns(batch: Sequence[Packed]) -> np.ndarray:
    """RETURNS (ndarray): int64, shape (targets of all trees,): their columns of `target_logits`."""
    targets = np.concatenate([packed.targets for packed in batch])
    columns = choices(batch)
    return targets if columns is None else np.searchsorted(columns, targets)


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
