"""The tree of tokens of a request to the LLM, and the scores that it asks for."""

from contextlib import contextmanager
from dataclasses import dataclass
from itertools import groupby
from operator import itemgetter
from typing import Any, Callable, Dict, Generator, Iterator, List, Optional, Sequence, Tuple

import numpy as np

from .kv_slots import KVSlots

Request = Callable[["Tree"], Generator[None, None, Any]]


@dataclass
class Scores:
    """The LLM's scores for the next token at one position.

    ids (ndarray): int64, shape (ids,): the tokens that were scored.
    log_probs (ndarray): float64, same shape: their log-probabilities, normalized over these tokens.
    total (Optional[float]): Log of these tokens' total probability in the whole vocabulary. Added to
        `log_probs`, it gives log-probabilities over the whole vocabulary. None unless the engine is `raw`.
    """

    ids: np.ndarray
    log_probs: np.ndarray
    total: Optional[float] = None

    def best(self) -> Tuple[int, float]:
        """RETURNS (Tuple[int, float]): The most likely token (the first of equals) and its
        log-probability."""
        k = int(self.log_probs.argmax())
        return int(self.ids[k]), float(self.log_probs[k])

    def of(self, token: int) -> float:
        """RETURNS (float): The log-probability of a token that was scored."""
        return float(self.log_probs[self.ids == token][0])

    def raw(self, log_prob: float) -> float:
        """RETURNS (float): One of `log_probs`, normalized over the whole vocabulary; NaN unless the engine
        is `raw`."""
        return float("nan") if self.total is None else log_prob + self.total


class Node:
    """A sequence of tokens in a tree, after those of its parent.

    path (ndarray): int64: the slots of all tokens from the root to the last token of this node.
    ids (List[int]): The tokens of this node.
    ask (Dict[int, ndarray]): By index of a token in `ids`: the possible next tokens to score.
    answers (Dict[int, Scores]): By index of a token in `ids`: the scores.
    """

    def __init__(self, path: np.ndarray, ids: Sequence[int], ask: Dict[int, np.ndarray]) -> None:
        self.path = path
        self.ids = list(ids)
        self.ask = ask
        self.answers: Dict[int, Scores] = {}

    def __len__(self) -> int:
        """RETURNS (int): The number of tokens from the root to the end of this node."""
        return len(self.path)

    @property
    def first(self) -> int:
        """RETURNS (int): The position of this node's first token."""
        return len(self.path) - len(self.ids)

    def scores(self, row: int) -> Scores:
        """RETURNS (Scores): The scores after token `row` of this node. They are available after the next
        `yield` of the request."""
        return self.answers[row % len(self.ids)]

    def truncated(self, n: int) -> "Node":
        """RETURNS (Node): A node with only the first n tokens of this node, at the same position in the
        tree."""
        node = Node(self.path[: self.first + n], self.ids[:n], {})
        node.answers = self.answers
        return node


class Tree:
    """The tree of tokens of one request.

    slots (KVSlots): The KV slots of the engine.
    prefix (Optional[Node]): The engine's prefix.
    pending (List[Node]): Nodes whose tokens have not been sent through the LLM yet.
    """

    def __init__(self, slots: KVSlots, prefix: Optional[Node] = None) -> None:
        self.slots = slots
        self.prefix = prefix
        self.pending: List[Node] = []
        # Nodes added by the branch that is running now.
        self._added: List[Node] = []

    @contextmanager
    def collect(self, branch: List[Node]) -> Iterator[None]:
        """Collect the nodes that a branch adds inside the `with` block, to `drop` them when it ends.

        branch (List[Node]): The nodes are appended to it.
        """
        outer, self._added = self._added, branch
        try:
            yield
        finally:
            self._added = outer

    def add(
        self,
        parent: Optional[Node],
        ids: Sequence[int],
        ask: Optional[Dict[int, np.ndarray]] = None,
    ) -> Node:
        """Add tokens to the tree. They are sent through the LLM when the request yields.

        parent (Optional[Node]): The node to add them after, which can also be new; None for a root.
        ids (Sequence[int]): At least one token.
        ask (Optional[Dict[int, ndarray]]): By index of a token in `ids` (negative indices count from the
            end): the possible next tokens to score, int64.
        RETURNS (Node): The new node. Its scores are available after the next `yield` of the request.
        """
        slots = self.slots.allocate(len(ids))
        path = slots if parent is None else np.concatenate([parent.path, slots])
        asked = {row % len(ids): allowed for row, allowed in (ask or {}).items()}
        node = Node(path, ids, asked)
        self.pending.append(node)
        self._added.append(node)
        return node

    def root(self, ids: Sequence[int]) -> Node:
        """Add a prompt to the tree, after the engine's prefix if it has one.

        ids (Sequence[int]): The prompt, including the prefix.
        RETURNS (Node): The last node of the prompt. If the prompt consists of the prefix only, this is the
            node of the prefix, which has no scores.
        """
        if self.prefix is None:
            return self.add(None, ids)
        assert list(ids[: len(self.prefix)]) == self.prefix.ids
        rest = ids[len(self.prefix) :]
        return self.add(self.prefix, rest) if len(rest) else self.prefix

    def drop(self, branch: Optional[List[Node]] = None) -> None:
        """Release the slots of a branch's nodes. After that, nothing can be added to these nodes.

        branch (Optional[List[Node]]): The nodes, as filled by `collect`, which are removed from the list.
            None for the nodes that were added outside of branches.
        """
        nodes = self._added if branch is None else branch
        dropped = set(map(id, nodes))
        self.pending = [node for node in self.pending if id(node) not in dropped]
        for node in nodes:
            self.slots.release(node.path[node.first :])
        nodes.clear()


def tree_mask(tokens: Sequence[Tuple[Node, int]]) -> Tuple[np.ndarray, int]:
    """Create the mask of a pass: each token attends to the slots on its path from the root.

    tokens (Sequence[Tuple[Node, int]]): For each token, its node and its index in the node.
    RETURNS (Tuple[ndarray, int]): The mask, bool, shape (tokens, slots), and the number of slots.
    """
    nodes = [(node, [k for _, k in part]) for node, part in groupby(tokens, key=itemgetter(0))]
    n_slots = max(int(node.path.max()) for node, _ in nodes) + 1
    mask = np.zeros((len(tokens), n_slots), dtype=bool)
    row = 0
    for node, part in nodes:
        n_before, n = node.first + part[0], len(part)
        mask[row : row + n, node.path[:n_before]] = True
        mask[row : row + n, node.path[n_before : n_before + n]] = np.tri(n, dtype=bool)
        row += n
    return mask, n_slots
