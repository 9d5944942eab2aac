"""Batched decoding with shared prefixes: prompts form a tree, and each prefix is encoded once.

A request is a generator function that adds tokens to its tree with `tree.add` and yields when it needs
the LLM's scores for them. `DecodingEngine.run` runs many requests concurrently: each round sends the new
tokens of all of them through the LLM in one ragged pass, without padding. When a branch ends, its KV slots
are released (`generate.run_parallel`). When a request ends, a waiting one starts.

    def request(tree):
        text = tree.add(None, text_ids)
        nodes = [tree.add(text, question, ask={-1: allowed}) for question in questions]
        yield
        return [node.scores(-1).best() for node in nodes]
"""

from typing import Any, Dict, Generator, Iterable, Iterator, List, Optional, Sequence, Tuple
from weakref import WeakKeyDictionary

import numpy as np
import torch

from ..llm.loading import LoadedLLM
from ..llm.tree_attention import KVCache
from .forward import ForwardPasses, forward_passes
from .kv_slots import KVSlots
from .tree import Node, Request, Scores, Tree, tree_mask

# Logits that are computed at once.
MAX_LOGITS = 2**25

Steps = Generator[None, None, Any]


class Prefix:
    """Tokens before many requests, such as one instruction for all texts. Their keys and values are stored
    between runs, as long as the decoder exists. The decoder's weights must not change in between.

    ids (Sequence[int]): At least one token.
    read (WeakKeyDictionary[Module, KVCache]): By decoder: the stored keys and values.
    """

    def __init__(self, ids: Sequence[int]) -> None:
        self.ids = list(ids)
        self.read: WeakKeyDictionary[Any, KVCache] = WeakKeyDictionary()


class DecodingEngine:
    """Runs requests on an LLM.

    llm (LoadedLLM): The shared LLM.
    decoder (Optional[nn.Module]): A view of the LLM's decoder to use, for example with an adapter; None for
        the LLM's own decoder.
    prefix (Optional[Prefix]): Common prefix of the prompts that requests add with `tree.root`.
    raw (bool): Also compute log-probabilities over the whole vocabulary, for which the LM head has to
        compute all logits.
    max_slots (int): Budget of KV slots, one for each token in memory. When it is used up, further requests
        have to wait. So do all branches of a request but the first (`generate.run_parallel`). A single
        branch can exceed the budget.
    max_batch_tokens (int): Maximum number of tokens per forward pass.
    passes (int): Number of forward passes so far.
    tokens (int): Number of tokens sent through the LLM so far.
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
        llm.require("trees")
        self.llm = llm
        self.decoder = llm.decoder if decoder is None else decoder
        self.prefix = prefix
        self.raw = raw
        self.slots = KVSlots(max_slots)
        self.max_batch_tokens = max_batch_tokens
        self.passes = 0
        self.tokens = 0

    def run(self, requests: Iterable[Request]) -> List[Any]:
        """Run requests to their end.

        requests (Iterable[Request]): The requests.
        RETURNS (List[Any]): The result of each request, in order.
        """
        rounds = list(self.steps(requests))
        return rounds[-1] if rounds else []

    def steps(self, requests: Iterable[Request]) -> Iterator[List[Any]]:
        """Run requests to their end, round by round.

        requests (Iterable[Request]): The requests.
        YIELDS (List[Any]): After each round, the result of each request; None until it has ended.
        """
        waiting = list(enumerate(requests))[::-1]
        running: Dict[int, Tuple[Tree, Steps]] = {}
        results: List[Any] = [None] * len(waiting)
        prefix_tree = Tree(self.slots)
        try:
            n_slots, can_record = 2 * self.slots.budget, not self.llm.is_spread
            with forward_passes(self.decoder, self.llm.device, n_slots, can_record) as passes:
                prefix = self._add_prefix(prefix_tree, passes) if waiting else None
                while running or waiting:
                    while waiting and not (running and self.slots.full):
                        i, request = waiting.pop()
                        tree = Tree(self.slots, prefix)
                        running[i] = tree, _start(request, tree)
                        if not self._resume(i, running, results):
                            continue
                        if len(running) > 1 and self.slots.used > self.slots.budget:
                            # The request has to wait. Later, it starts again from the beginning.
                            self._end(i, running)
                            waiting.append((i, request))
                            break
                    if running:
                        trees = [prefix_tree, *(tree for tree, _ in running.values())]
                        self._forward([node for tree in trees for node in tree.pending], passes)
                        self._store_prefix(prefix_tree, passes)
                    for i, (tree, _) in list(running.items()):
                        tree.pending = []
                        self._resume(i, running, results)
                    yield results
        finally:
            # After an error, or if the caller stops early.
            for i in list(running):
                self._end(i, running)
            prefix_tree.drop()

    def _add_prefix(self, tree: Tree, passes: ForwardPasses) -> Optional[Node]:
        """Add the prefix to its own tree. If its keys and values are stored, they are copied into the
        cache, and its tokens don't go through the LLM again.

        RETURNS (Optional[Node]): The node of the prefix.
        """
        if self.prefix is None:
            return None
        node = tree.add(None, self.prefix.ids)
        stored = self.prefix.read.get(self.decoder)
        if stored is not None:
            tree.pending = []
            self.slots.positions[node.path] = np.arange(len(node))
            slots = torch.from_numpy(node.path).to(self.llm.device)
            n_slots = int(node.path.max()) + 1
            for layer, keys in stored.keys.items():
                passes.cache.write(layer, slots, n_slots, keys, stored.values[layer])
        return node

    def _store_prefix(self, tree: Tree, passes: ForwardPasses) -> None:
        """Store the keys and values of the prefix after its first pass."""
        if self.prefix is not None and tree.pending:
            slots = torch.from_numpy(tree.pending.pop().path).to(self.llm.device)
            self.prefix.read[self.decoder] = passes.cache.copy(slots)

    def _resume(self, i: int, running: Dict[int, Tuple[Tree, Steps]], results: List[Any]) -> bool:
        """Resume a request.

        RETURNS (bool): Whether it needs a forward pass; False if it has ended.
        """
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
        """Send the tokens of some nodes through the LLM, and compute the scores that they ask for."""
        tokens = [(node, k) for node in nodes for k in range(len(node.ids))]
        for start in range(0, len(tokens), self.max_batch_tokens):
            self._pass(tokens[start : start + self.max_batch_tokens], passes)

    @torch.no_grad()
    def _pass(self, tokens: Sequence[Tuple[Node, int]], passes: ForwardPasses) -> None:
        """Run one forward pass.

        tokens (Sequence[Tuple[Node, int]]): For each token, its node and its index in the node, parents
            before children.
        """
        ids = [node.ids[k] for node, k in tokens]
        positions = [node.first + k for node, k in tokens]
        slots = [node.path[position] for (node, _), position in zip(tokens, positions)]
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
        """Compute scores from hidden states.

        hidden (Tensor): Shape (rows, width).
        asked (Sequence[ndarray]): For each row, the tokens to score.
        RETURNS (List[Scores]): The scores of each row.
        """
        if all(ids is asked[0] for ids in asked):
            union, columns = asked[0], np.tile(np.arange(len(asked[0])), len(asked))
        else:
            union, columns = np.unique(np.concatenate(asked), return_inverse=True)
        if not self.raw and len(union) == self.llm.n_logits:
            logits = self.llm.logits(hidden).cpu().numpy()
        elif self.raw:
            wanted = torch.from_numpy(union)
            parts = []
            # In parts, since the logits of a thousand rows take up to a gigabyte.
            for part in hidden.split(max(MAX_LOGITS // self.llm.n_logits, 1)):
                all_logits = self.llm.logits(part)
                full_sum = torch.logsumexp(all_logits, dim=-1)
                parts.append((all_logits[:, wanted.to(full_sum.device)].cpu(), full_sum.cpu()))
            logits = torch.cat([part for part, _ in parts]).numpy()
            full_sums = torch.cat([full_sum for _, full_sum in parts]).numpy()
        else:
            logits = self.llm.logits(hidden, torch.from_numpy(union)).cpu().numpy()
        self.llm.check_finite(logits)
        # The scores of all rows, one after the other.
        sizes = [len(ids) for ids in asked]
        starts = np.cumsum([0, *sizes[:-1]])
        values = logits[np.repeat(np.arange(len(asked)), sizes), columns].astype(np.float64)
        highest = np.maximum.reduceat(values, starts)
        sums = np.add.reduceat(np.exp(values - np.repeat(highest, sizes)), starts)
        log_sums = highest + np.log(sums)
        log_probs = np.split(values - np.repeat(log_sums, sizes), starts[1:])
        totals = (log_sums - full_sums).tolist() if self.raw else [None] * len(asked)
        return [Scores(*row) for row in zip(asked, log_probs, totals)]


def _start(request: Request, tree: Tree) -> Steps:
    """Start a request lazily, including the code that runs before it returns its generator."""
    return (yield from request(tree))
