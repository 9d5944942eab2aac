"""Prefix-sharing batched decoding: a tree of prompts, each prefix encoded once.

A request is a program: a generator that hangs tokens into its tree with `tree.add` and yields when it
wants to know what the LLM says about them. `DecodingEngine.run` runs the programs of many requests side by
side: every round sends the new tokens of all of them through the LLM in one ragged pass, without
padding. A branch that is done adds nothing more and gives back its memory (`branches.together`), and as
requests end, waiting ones join.

    def program(tree):
        text = tree.add(None, text_ids)
        ends = [tree.add(text, question, ask={-1: allowed}) for question in questions]
        yield
        return [end.scores(-1).best() for end in ends]
"""

from contextlib import contextmanager
from dataclasses import dataclass
from typing import (
    Any,
    Callable,
    Dict,
    Generator,
    Iterable,
    Iterator,
    List,
    Optional,
    Sequence,
    Tuple,
)
from weakref import WeakKeyDictionary

import numpy as np
import torch

from ..llm.loading import LoadedLLM
from ..llm.tree_attention import KVCache
from .forward import ForwardPasses, forward_passes
from .kv_slots import KVSlots

Request = Callable[["Tree"], Generator[None, None, Any]]
Steps = Generator[None, None, Any]


@dataclass
class Scores:
    """What the LLM says about the next token at one place.

    ids (ndarray): The tokens that were asked for.
    log_probs (ndarray): Their log-probabilities, renormalised over what was asked for.
    total (Optional[float]): What to add for log-probabilities over the whole vocabulary, if those
        were asked for.
    """

    ids: np.ndarray
    log_probs: np.ndarray
    total: Optional[float] = None

    def best(self) -> Tuple[int, float]:
        """RETURNS (Tuple[int, float]): The likeliest token (the first of equals) and its
        log-probability."""
        k = int(self.log_probs.argmax())
        return int(self.ids[k]), float(self.log_probs[k])

    def of(self, token: int) -> float:
        """RETURNS (float): The log-probability of a token that was asked for."""
        return float(self.log_probs[self.ids == token][0])

    def raw(self, log_prob: float) -> float:
        """RETURNS (float): A log-probability over the whole vocabulary, NaN if not asked for."""
        return float("nan") if self.total is None else log_prob + self.total


class Node:
    """A run of tokens in a tree, standing behind its parent.

    path (ndarray): Slots of all tokens from the root to its last one.
    ids (List[int]): Its own tokens.
    """

    def __init__(self, path: np.ndarray, ids: Sequence[int], ask: Dict[int, np.ndarray]) -> None:
        self.path = path
        self.ids = list(ids)
        self.ask = ask
        self.answers: Dict[int, Scores] = {}

    def __len__(self) -> int:
        """Tokens from the root to the end of this node."""
        return len(self.path)

    @property
    def first(self) -> int:
        """Position of its first own token."""
        return len(self.path) - len(self.ids)

    def scores(self, row: int) -> Scores:
        """RETURNS (Scores): What was asked about its token number `row`, once the program was resumed."""
        return self.answers[row % len(self.ids)]

    def upto(self, n: int) -> "Node":
        """RETURNS (Node): The same place in the tree, with the first n own tokens only."""
        node = Node(self.path[: self.first + n], self.ids[:n], {})
        node.answers = self.answers
        return node


class Tree:
    """The prompts of one request.

    slots (KVSlots): Where their tokens lie.
    begin (Optional[Node]): The decoder's prefix.
    """

    def __init__(self, slots: KVSlots, begin: Optional[Node] = None) -> None:
        self.slots = slots
        self.begin = begin
        self.pending: List[Node] = []
        # What was added, in the branch that runs just now.
        self._added: List[Node] = []

    @contextmanager
    def inside(self, branch: List[Node]) -> Iterator[None]:
        """Note what is added in a branch of its own, to `drop` it when that has ended."""
        before, self._added = self._added, branch
        try:
            yield
        finally:
            self._added = before

    def add(
        self,
        parent: Optional[Node],
        ids: Sequence[int],
        ask: Optional[Dict[int, np.ndarray]] = None,
    ) -> Node:
        """Hang tokens into the tree. They are sent through the LLM when the program yields.

        parent (Optional[Node]): What they stand behind; it may be as new as they are.
        ids (Sequence[int]): At least one.
        ask (Optional[Dict[int, ndarray]]): For which of these tokens, by number (negative ones from the
            end), the scores of which possible next tokens are wanted.
        RETURNS (Node): Its scores are there when the program is resumed.
        """
        slots = self.slots.allocate(len(ids))
        path = slots if parent is None else np.concatenate([parent.path, slots])
        asked = {row % len(ids): allowed for row, allowed in (ask or {}).items()}
        node = Node(path, ids, asked)
        self.pending.append(node)
        self._added.append(node)
        return node

    def root(self, ids: Sequence[int]) -> Node:
        """Hang a prompt into the tree, without what the decoder's prefix holds of it.

        ids (Sequence[int]): If there is a prefix, they begin with it.
        RETURNS (Node): Its end. It may be that of the prefix, about which nothing was asked.
        """
        if self.begin is None:
            return self.add(None, ids)
        assert list(ids[: len(self.begin)]) == self.begin.ids
        rest = ids[len(self.begin) :]
        return self.add(self.begin, rest) if len(rest) else self.begin

    def drop(self, branch: Optional[List[Node]] = None) -> None:
        """Give back the slots of a branch's nodes, behind which nothing may be added any more.

        branch (Optional[List[Node]]): See `inside`; None takes what was added in none.
        """
        nodes = self._added if branch is None else branch
        dropped = set(map(id, nodes))
        self.pending = [node for node in self.pending if id(node) not in dropped]
        for node in nodes:
            self.slots.release(node.path[node.first :])
        nodes.clear()


class Prefix:
    """Tokens that stand in front of many requests: one instruction for all texts. What an LLM has read of
    them is kept from run to run, as long as its decoder is there; its weights may not change meanwhile.

    ids (Sequence[int]): At least one.
    """

    def __init__(self, ids: Sequence[int]) -> None:
        self.ids = list(ids)
        self.read: WeakKeyDictionary[Any, KVCache] = WeakKeyDictionary()


class DecodingEngine:
    """Runs programs on an LLM.

    llm (LoadedLLM): The shared LLM.
    decoder (Optional[nn.Module]): A view of its decoder to use, with adapters for example; None takes
        the LLM as it is.
    prefix (Optional[Prefix]): What the prompts begin with that programs hang in by `tree.root`.
    raw (bool): Also give log-probabilities over the whole vocabulary, which costs a full LM head.
    max_slots (int): Budget of tokens that are kept in memory. When it is used up, further requests wait,
        and of each request's branches (`branches.together`) all but the first. One branch alone may
        exceed it.
    max_batch_tokens (int): Tokens of one forward pass.

    `passes` and `tokens` count what went through the LLM.
    """

    def __init__(
        self,
        llm: LoadedLLM,
        decoder: Any = None,
        *,
        prefix: Optional[Prefix] = None,
        raw: bool = False,
        max_slots: int = 2048,
        max_batch_tokens: int = 1024,
    ) -> None:
        self.llm = llm
        self.decoder = llm.decoder if decoder is None else decoder
        self.prefix = prefix
        self.raw = raw
        self.slots = KVSlots(max_slots)
        self.max_batch_tokens = max_batch_tokens
        self.passes = 0
        self.tokens = 0

    def run(self, requests: Iterable[Request]) -> List[Any]:
        """Run programs to their end.

        RETURNS (List[Any]): What each of them returned, in order.
        """
        rounds = list(self.steps(requests))
        return rounds[-1] if rounds else []

    def steps(self, requests: Iterable[Request]) -> Iterator[List[Any]]:
        """Run programs to their end, round by round.

        YIELDS (List[Any]): After each round, what each of them returned; None if it still runs.
        """
        waiting = list(enumerate(requests))[::-1]
        running: Dict[int, Tuple[Tree, Steps]] = {}
        results: List[Any] = [None] * len(waiting)
        begin = Tree(self.slots)
        try:
            with forward_passes(self.decoder, self.llm.device, 2 * self.slots.budget) as passes:
                first = self._begin(begin, passes) if waiting else None
                while running or waiting:
                    while waiting and not (running and self.slots.full):
                        i, request = waiting.pop()
                        tree = Tree(self.slots, first)
                        running[i] = tree, _start(request, tree)
                        if not self._resume(i, running, results):
                            continue
                        if len(running) > 1 and self.slots.used > self.slots.budget:
                            # It has to wait for its turn; a new generator starts it afresh.
                            self._end(i, running)
                            waiting.append((i, request))
                            break
                    if running:
                        trees = [begin, *(tree for tree, _ in running.values())]
                        self._forward([node for tree in trees for node in tree.pending], passes)
                        self._keep(begin, passes)
                    for i, (tree, _) in list(running.items()):
                        tree.pending = []
                        self._resume(i, running, results)
                    yield results
        finally:
            # After an error, or if the caller stops in between.
            for i in list(running):
                self._end(i, running)
            begin.drop()

    def _begin(self, tree: Tree, passes: ForwardPasses) -> Optional[Node]:
        """Hang the prefix into a tree of its own. What was read of it before is put into the cache, and not
        read again.

        RETURNS (Optional[Node]): Its end.
        """
        if self.prefix is None:
            return None
        node = tree.add(None, self.prefix.ids)
        read = self.prefix.read.get(self.decoder)
        if read is not None:
            tree.pending = []
            self.slots.positions[node.path] = np.arange(len(node))
            slots = torch.from_numpy(node.path).to(self.llm.device)
            n_slots = int(node.path.max()) + 1
            for layer, keys in read.keys.items():
                passes.cache.write(layer, slots, n_slots, keys, read.values[layer])
        return node

    def _keep(self, tree: Tree, passes: ForwardPasses) -> None:
        """Keep what has just been read of the prefix."""
        if self.prefix is not None and tree.pending:
            slots = torch.from_numpy(tree.pending.pop().path).to(self.llm.device)
            self.prefix.read[self.decoder] = passes.cache.copy(slots)

    def _resume(self, i: int, running: Dict[int, Tuple[Tree, Steps]], results: List[Any]) -> bool:
        """Let a program go on. RETURNS (bool): Whether it wants a forward pass."""
        try:
            next(running[i][1])
            return True
        except StopIteration as stop:
            results[i] = stop.value
            self._end(i, running)
            return False

    def _end(self, i: int, running: Dict[int, Tuple[Tree, Steps]]) -> None:
        tree, steps = running.pop(i)
        steps.close()
        tree.drop()

    def _forward(self, nodes: Sequence[Node], passes: ForwardPasses) -> None:
        """Send the tokens of some nodes through the LLM, and answer what was asked."""
        tokens = [(node, k) for node in nodes for k in range(len(node.ids))]
        for start in range(0, len(tokens), self.max_batch_tokens):
            self._pass(tokens[start : start + self.max_batch_tokens], passes)

    @torch.no_grad()
    def _pass(self, tokens: Sequence[Tuple[Node, int]], passes: ForwardPasses) -> None:
        """tokens: Each as a node and the number of the token in it, parents before children."""
        ids = [node.ids[k] for node, k in tokens]
        positions = [node.first + k for node, k in tokens]
        slots = [node.path[place] for (node, _), place in zip(tokens, positions)]
        numbers = np.array([ids, positions, slots], dtype=np.int64)
        self.slots.positions[numbers[2]] = positions
        mask, n_slots = tree_mask(tokens)
        hidden = passes.forward(self.decoder, numbers, mask, self.slots.positions[:n_slots])
        self.passes += 1
        self.tokens += len(tokens)
        asked = [(row, node, k) for row, (node, k) in enumerate(tokens) if k in node.ask]
        if asked:
            rows = hidden[torch.tensor([row for row, _, _ in asked], device=hidden.device)]
            answers = self._scores(rows, [node.ask[k] for _, node, k in asked])
            for (_, node, k), scores in zip(asked, answers):
                node.answers[k] = scores

    def _scores(self, hidden: torch.Tensor, asked: Sequence[np.ndarray]) -> List[Scores]:
        """hidden (Tensor): Shape (rows, width)."""
        if all(ids is asked[0] for ids in asked):
            union, where = asked[0], np.tile(np.arange(len(asked[0])), len(asked))
        else:
            union, where = np.unique(np.concatenate(asked), return_inverse=True)
        if not self.raw and len(union) == len(self.llm.model.get_output_embeddings().weight):
            logits = self.llm.logits(hidden).cpu().numpy()
        elif self.raw:
            every = self.llm.logits(hidden)
            total = torch.logsumexp(every, dim=-1).cpu().numpy()
            logits = every[:, torch.from_numpy(union).to(hidden.device)].cpu().numpy()
        else:
            logits = self.llm.logits(hidden, torch.from_numpy(union)).cpu().numpy()
        self.llm.check_finite(logits)
        out, start = [], 0
        for row, ids in enumerate(asked):
            mine = logits[row, where[start : start + len(ids)]].astype(np.float64)
            start += len(ids)
            highest = mine.max()
            normal = highest + np.log(np.exp(mine - highest).sum())
            beyond = float(normal - total[row]) if self.raw else None
            out.append(Scores(ids, mine - normal, beyond))
        return out


def _start(request: Request, tree: Tree) -> Steps:
    """Put off all of a program, also what it does before it returns its generator."""
    return (yield from request(tree))


def tree_mask(tokens: Sequence[Tuple[Node, int]]) -> Tuple[np.ndarray, int]:
    """Say which slots each token may see: those on its path from the root.

    RETURNS (Tuple[ndarray, int]): bool, shape (tokens, slots), and the number of slots.
    """
    n_slots = max(int(node.path[: node.first + k + 1].max()) for node, k in tokens) + 1
    mask = np.zeros((len(tokens), n_slots), dtype=bool)
    for row, (node, k) in enumerate(tokens):
        mask[row, node.path[: node.first + k + 1]] = True
    return mask, n_slots
