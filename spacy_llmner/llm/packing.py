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
    """

    ids: List[int]
    loss: List[bool]


@dataclass
class Packed:
    """Sequences merged into a tree.

    ids (ndarray): int64, shape (tokens,), parents before children.
    positions (ndarray): int64, shape (tokens,).
    mask (ndarray): bool, shape (tokens, tokens): what each token may see.
    rows (ndarray): int64, shape (targets,): tokens that predict something.
    targets (ndarray): int64, shape (targets,): what they predict.
    weights (ndarray): float32, shape (targets,): in how many of the sequences.
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
    learnt: Dict[Tuple[int, int], int] = {}
    for sequence in sequences:
        at = -1
        last = len(sequence.ids) - 1
        for k, (token, loss) in enumerate(zip(sequence.ids, sequence.loss)):
            if loss and at >= 0:
                learnt[at, token] = learnt.get((at, token), 0) + 1
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
    ids = np.concatenate([packed.ids for packed in batch])
    positions = np.concatenate([packed.positions for packed in batch])
    # All trees stand in one row: none sees another, and nothing is padded.
    mask = np.zeros((len(ids), len(ids)), dtype=bool)
    starts = np.cumsum([0, *(len(packed) for packed in batch)])
    for start, end, packed in zip(starts, starts[1:], batch):
        mask[start:end, start:end] = packed.mask
    distance = positions[:, None] - positions[None]
    device = llm.device
    tree_pass = TreePass(
        torch.from_numpy(mask)[None].to(device), torch.from_numpy(distance)[None].to(device)
    )
    row, place = (torch.from_numpy(x)[None].to(device) for x in (ids, positions))
    hidden = run_decoder(decoder, row, place, tree_pass)[0]
    rows = np.concatenate([start + packed.rows for start, packed in zip(starts, batch)])
    return llm.logits(hidden[torch.from_numpy(rows).to(device)])
