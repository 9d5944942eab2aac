"""Pack training sequences with a common prefix into a tree, so that shared tokens go through the LLM
once.

A text and the questions about it form a tree, as in decoding. Each token attends only to its ancestors, and
has the same position as in its own sequence. So the logits are the same as for separate sequences.
"""

from dataclasses import dataclass
from typing import Any, Dict, List, Optional, Sequence, Tuple

import numpy as np
import torch

from .loading import LoadedLLM
from .tree_attention import TreePass, run_decoder


@dataclass
class TrainingSequence:
    """One sequence of tokens to train on.

    ids (List[int]): Token ids.
    loss (List[bool]): Same length: whether each token is learned.
    weight (float): Weight of its tokens in the loss.
    allowed (Optional[List[ndarray]]): Same length: for each learned token, the token ids that it is chosen
        from. A token without alternatives is not learned. None for the whole vocabulary.
    """

    ids: List[int]
    loss: List[bool]
    weight: float = 1.0
    allowed: Optional[List[np.ndarray]] = None

    def learns(self, k: int) -> bool:
        """RETURNS (bool): Whether token k is learned."""
        return self.loss[k] and not (self.allowed and len(self.allowed[k]) == 1)


@dataclass
class Packed:
    """Sequences merged into a tree.

    ids (ndarray): int64, shape (tokens,), parents before children.
    positions (ndarray): int64, shape (tokens,): the position of each token in its own sequence.
    mask (ndarray): bool, shape (tokens, tokens): the tokens that each token attends to.
    rows (ndarray): int64, shape (targets,): for each target, the index of the token that predicts it.
    targets (ndarray): int64, shape (targets,): the token ids to predict.
    weights (ndarray): float32, shape (targets,): the summed weights of the sequences with each target.
    allowed (Optional[List[ndarray]]): For each target, the token ids that it is chosen from. None for the
        whole vocabulary.
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
    """Merge sequences that share their first token into a tree."""
    ids: List[int] = []
    parents: List[int] = []
    children: Dict[Tuple[int, int], int] = {}
    weights: Dict[Tuple[int, int], float] = {}
    allowed: Dict[Tuple[int, int], np.ndarray] = {}
    full_vocabulary = any(sequence.allowed is None for sequence in sequences)
    for sequence in sequences:
        node = -1
        last = len(sequence.ids) - 1
        while last > 0 and sequence.loss[last] and not sequence.learns(last):
            last -= 1
        for k, token in enumerate(sequence.ids):
            if sequence.learns(k) and node >= 0:
                weights[node, token] = weights.get((node, token), 0.0) + sequence.weight
                if sequence.allowed is not None:
                    allowed[node, token] = sequence.allowed[k]
            if k == last:
                break  # the last token predicts nothing
            if (node, token) not in children:
                children[node, token] = len(ids)
                ids.append(token)
                parents.append(node)
            node = children[node, token]
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
        np.array([row for row, _ in weights], dtype=np.int64),
        np.array([token for _, token in weights], dtype=np.int64),
        np.array(list(weights.values()), dtype=np.float32),
        None if full_vocabulary else [allowed[target] for target in weights],
    )


def target_logits(llm: LoadedLLM, decoder: Any, batch: Sequence[Packed]) -> torch.Tensor:
    """Compute the logits at all `rows` of a batch of packed trees.

    decoder (nn.Module): The LLM's decoder, or a view with an adapter.
    batch (Sequence[Packed]): At least one tree.
    RETURNS (Tensor): float32, shape (targets of all trees, vocabulary). If all targets are chosen from a
        part of the vocabulary, the shape is (targets of all trees, `choices` of the batch), and the logits
        of tokens that are not allowed for a target are -inf.
    """
    llm.require("trees")
    lines = fill_lines([len(packed) for packed in batch])
    n_tokens = max(len(packed) for packed in batch)
    ids = np.zeros((len(lines), n_tokens), dtype=np.int64)
    positions = np.zeros_like(ids)
    # Padding attends to itself, since attention without any key would be NaN.
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
    tokens, pos, visible = (torch.from_numpy(x).to(llm.device) for x in (ids, positions, mask))
    hidden = run_decoder(decoder, tokens, pos, TreePass(visible, pos, pos)).flatten(0, 1)
    rows = np.concatenate([start + packed.rows for start, packed in zip(starts, batch)])
    hidden = hidden[torch.from_numpy(rows).to(hidden.device)]
    columns = choices(batch)
    if columns is None:
        return llm.logits(hidden)
    forbidden = np.ones((len(rows), len(columns)), dtype=bool)
    for row, allowed in enumerate(ids for packed in batch for ids in packed.allowed or ()):
        forbidden[row, np.searchsorted(columns, allowed)] = False
    logits = llm.logits(hidden, torch.from_numpy(columns))
    return logits.masked_fill(torch.from_numpy(forbidden).to(logits.device), -torch.inf)


def choices(batch: Sequence[Packed]) -> Optional[np.ndarray]:
    """RETURNS (Optional[ndarray]): int64, ascending: all token ids that any target of a batch is chosen
    from; None for the whole vocabulary."""
    if any(packed.allowed is None for packed in batch):
        return None
    allowed = [ids for packed in batch for ids in packed.allowed or ()]
    return np.unique(np.concatenate([np.empty(0, np.int64), *allowed]))


def target_columns(batch: Sequence[Packed]) -> np.ndarray:
    """RETURNS (ndarray): int64, shape (targets of all trees,): each target's column in `target_logits`."""
    targets = np.concatenate([packed.targets for packed in batch])
    columns = choices(batch)
    return targets if columns is None else np.searchsorted(columns, targets)


def fill_lines(lengths: Sequence[int]) -> List[List[int]]:
    """Pack trees into lines, longest trees first. No line is longer than the longest tree, so there is
    little padding, and the attention of a line does not grow with the batch.

    lengths (Sequence[int]): Length of each tree, in tokens.
    RETURNS (List[List[int]]): For each line, the indices of its trees.
    """
    capacity = max(lengths)
    lines: List[List[int]] = []
    free: List[int] = []
    for k in sorted(range(len(lengths)), key=lambda k: -lengths[k]):
        line = next((i for i, n in enumerate(free) if n >= lengths[k]), len(lines))
        if line == len(lines):
            lines.append([])
            free.append(capacity)
        lines[line].append(k)
        free[line] -= lengths[k]
    return lines
