"""Building blocks of requests: decode an answer after a node under a constraint, and run branches."""

from dataclasses import dataclass
from typing import Any, Callable, Generator, Iterable, List, Optional, Sequence, Tuple

import numpy as np

from .constraints import Constraint
from .engine import Steps
from .tree import Node, Scores, Tree

# A generator that runs within a request: see `engine.Steps`.
Branch = Steps


@dataclass
class Answer:
    """The output of `decode`.

    ids (List[int]): The tokens, including the end token.
    log_probs (List[float]): Log-probability of each token, normalized over the allowed tokens; 0 if only
        one was allowed.
    raw_log_probs (List[float]): Log-probability of each token over the whole vocabulary; NaN unless
        decoded with `raw`.
    state (Any): The constraint's last state. For a substring, it has the occurrences in the text.
    complete (bool): False if `max_tokens` was reached before the end.
    """

    ids: List[int]
    log_probs: List[float]
    raw_log_probs: List[float]
    state: Any
    complete: bool = True


def decode(
    tree: Tree,
    parent: Node,
    prompt: Sequence[int],
    constraint: Constraint,
    *,
    guess: Sequence[int] = (),
    draft: int = 4,
    raw: bool = False,
    max_tokens: int = 256,
    on_choice: Optional[Callable[[Any, Scores], None]] = None,
    first: Optional[int] = None,
    n_read: Optional[int] = None,
) -> Generator[None, None, Answer]:
    """Decode greedily after a node, under a constraint.

    Drafted tokens go through the LLM in the same pass as the token before them. They are accepted up to the
    first token that differs from the LLM's own choice. So the result is the same as when decoding token by
    token, but takes fewer passes. If only one token is allowed, it is appended without a score.

    tree (Tree): The tree of the request.
    parent (Node): The node to decode after. Without a prompt, its last token must have scores for
        `constraint.allowed(constraint.start)`.
    prompt (Sequence[int]): Tokens to add first.
    constraint (Constraint): The allowed tokens.
    guess (Sequence[int]): Drafted tokens for the start of the answer.
    draft (int): Maximum number of tokens in a row that the constraint drafts.
    raw (bool): Fill `raw_log_probs`, for which every token is scored. The engine must be `raw` too.
    max_tokens (int): Maximum number of tokens of the answer.
    on_choice (Optional[Callable]): Called with the state and the scores before each token is chosen.
    first (Optional[int]): The first token, instead of the most likely one. Can't be used with a prompt.
    n_read (Optional[int]): Number of tokens of `parent` to decode after; None for all. The other tokens of
        `parent` are drafted tokens that already have scores.
    RETURNS (Answer): The answer, as the result of `yield from`.
    """
    answer = Answer([], [], [], constraint.start)
    node, read = parent, len(parent.ids) if n_read is None else n_read
    unread = list(prompt)

    def write(token: int, log_prob: float, raw_log_prob: float) -> None:
        nonlocal read
        answer.ids.append(token)
        answer.log_probs.append(log_prob)
        answer.raw_log_probs.append(raw_log_prob)
        answer.state = constraint.advance(answer.state, token)
        if not unread and read < len(node.ids) and node.ids[read] == token:
            read += 1  # the drafted token is accepted
        else:
            unread.append(token)

    if first is not None:
        scores = node.scores(read - 1)
        log_prob = scores.of(first)
        write(first, log_prob, scores.raw(log_prob))
    while True:
        allowed = constraint.allowed(answer.state)
        if not len(allowed):
            return answer
        if len(answer.ids) == max_tokens:
            answer.complete = False
            return answer
        if len(allowed) == 1 and not raw:
            write(int(allowed[0]), 0.0, float("nan"))
            continue
        if unread:
            asks, drafted = look_ahead(constraint, answer.state, guess, draft, raw)
            left = max_tokens - len(answer.ids)  # the LLM can lack positions for more tokens
            asks, drafted = asks[:left], drafted[: left - 1]
            last = len(unread) - 1
            ask = {last + k: tokens for k, tokens in enumerate(asks)}
            node, read = tree.add(node.truncated(read), [*unread, *drafted], ask), len(unread)
            unread, guess = [], ()
            yield
        scores = node.scores(read - 1)
        if on_choice is not None:
            on_choice(answer.state, scores)
        token, log_prob = scores.best()
        write(token, log_prob, scores.raw(log_prob))


def look_ahead(
    constraint: Constraint, state: Any, guess: Sequence[int], draft: int, raw: bool
) -> Tuple[List[np.ndarray], List[int]]:
    """Draft tokens from a state: guesses, and tokens without an alternative.

    constraint (Constraint): The allowed tokens.
    state (Any): The state to start from.
    guess (Sequence[int]): The tokens to draft first.
    draft (int): Maximum number of tokens that the constraint drafts.
    raw (bool): Score every token, even if there is no alternative.
    RETURNS (Tuple[List[ndarray], List[int]]): The tokens to score before each drafted token and after the
        last one, and the drafted tokens.
    """
    asks = [constraint.allowed(state)]
    ids: List[int] = []
    guesses = list(guess)
    if state is constraint.start and not guesses:
        return asks, ids  # a substring can start anywhere in the text
    while True:
        if len(asks[-1]) == 1:
            token = int(asks[-1][0])
            guesses = guesses[1:]
        elif guesses:
            token = guesses.pop(0)
        elif draft:
            token = constraint.guess(state)
            draft -= 1
        else:
            break
        if token not in asks[-1]:
            break
        state = constraint.advance(state, token)
        allowed = constraint.allowed(state)
        if not len(allowed):
            break
        ids.append(token)
        asks.append(allowed)
    while ids and len(asks[-1]) == 1 and not raw:
        asks.pop()
        ids.pop()
    return asks, ids


def run_parallel(tree: Tree, branches: Iterable[Branch]) -> Generator[None, None, List[Any]]:
    """Run several branches concurrently, so that their tokens share forward passes.

    When a branch ends, the slots of the nodes that it added are released, so it must not return nodes.
    While the budget of slots is used up, only the first branch continues, and the others wait.

    tree (Tree): The tree of the request.
    branches (Iterable[Branch]): Generators that add nodes to the tree.
    RETURNS (List[Any]): The result of each branch, as the result of `yield from`.
    """
    running: List[Tuple[int, Branch, List[Node]]] = [(i, b, []) for i, b in enumerate(branches)]
    results: List[Any] = [None] * len(running)
    try:
        while running:
            remaining: List[Tuple[int, Branch, List[Node]]] = []
            for i, branch, added in running:
                if remaining and tree.slots.full:
                    remaining.append((i, branch, added))
                    continue
                try:
                    with tree.collect(added):
                        next(branch)
                    remaining.append((i, branch, added))
                except StopIteration as stop:
                    results[i] = stop.value
                    tree.drop(added)
            running = remaining
            if running:
                yield
    finally:
        # After an error, or if the request is closed early.
        for _, branch, added in running:
            branch.close()
            tree.drop(added)
    return results


def common_prefix(sequences: Sequence[Sequence[int]]) -> int:
    """RETURNS (int): Length of the longest common prefix that leaves each sequence at least one token."""
    n = 0
    shortest = min(len(s) for s in sequences) - 1
    while n < shortest and len({s[n] for s in sequences}) == 1:
        n += 1
    return n
