"""What a program does with one place in its tree, or with several: write behind it under a constraint."""

from dataclasses import dataclass
from typing import Any, Callable, Generator, Iterable, List, Optional, Sequence, Tuple

import numpy as np

from .constraints import Constraint
from .engine import Node, Scores, Tree

Branch = Generator[None, None, Any]


@dataclass
class Answer:
    """What a branch wrote.

    ids (List[int]): Its tokens, the end included.
    log_probs (List[float]): Of each token, renormalised over what was allowed: 0 without a choice.
    raw_log_probs (List[float]): Of each token, over the whole vocabulary; NaN unless asked for.
    state (Any): The constraint's last state: for a substring, where it stands.
    complete (bool): False if the length ran out before the end.
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
    """Write greedily behind a node, under a constraint.

    Guessed tokens go through the LLM in the same pass as the token before them, and are kept as far as
    they are what it would have written. So the outcome is that of asking token by token, in fewer
    passes. Where only one continuation is allowed, it is appended unasked.

    parent (Node): What to write behind. Without a prompt, its last token must have been asked for
        `constraint.allowed(constraint.start)`.
    prompt (Sequence[int]): Tokens to read first.
    guess (Sequence[int]): How the answer may begin.
    draft (int): How many tokens the constraint may guess in a row.
    raw (bool): Fill `raw_log_probs`, which means asking for every token; the Decoder must have been made
        with it too.
    on_choice (Optional[Callable]): Told the state and the scores wherever one of several tokens is taken.
    first (Optional[int]): The first token, instead of the likeliest. There may be no prompt then.
    n_read (Optional[int]): How many tokens of `parent` to write behind; None for all. The
        others are guesses, about which was asked already.
    RETURNS (Answer): By `yield from`.
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
            read += 1  # guessed right
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
            asks, guessed = look_ahead(constraint, answer.state, guess, draft, raw)
            left = max_tokens - len(answer.ids)  # there may be no positions behind
            asks, guessed = asks[:left], guessed[: left - 1]
            last = len(unread) - 1
            ask = {last + k: tokens for k, tokens in enumerate(asks)}
            node, read = tree.add(node.upto(read), [*unread, *guessed], ask), len(unread)
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
    """Go on from a state along guesses and along what is without choice.

    RETURNS (Tuple[List[ndarray], List[int]]): What to ask before each guessed token and behind the
        last one, and the tokens.
    """
    asks = [constraint.allowed(state)]
    ids: List[int] = []
    guesses = list(guess)
    if state is constraint.start and not guesses:
        return asks, ids  # any place in the text is as good as another
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
    """Run several branches side by side, so that their tokens share passes.

    A branch that ends gives back the slots of what it added to the tree, so it may not return nodes. While
    the budget of slots is used up, only the first one goes on, and the others wait.

    tree (Tree): What they write into.
    RETURNS (List[Any]): What each returned, by `yield from`.
    """
    running: List[Tuple[int, Branch, List[Node]]] = [(i, b, []) for i, b in enumerate(branches)]
    results: List[Any] = [None] * len(running)
    try:
        while running:
            still: List[Tuple[int, Branch, List[Node]]] = []
            for i, branch, added in running:
                if still and tree.slots.full:
                    still.append((i, branch, added))
                    continue
                try:
                    with tree.inside(added):
                        next(branch)
                    still.append((i, branch, added))
                except StopIteration as stop:
                    results[i] = stop.value
                    tree.drop(added)
            running = still
            if running:
                yield
    finally:
        # After an error, or if the request is given up.
        for _, branch, added in running:
            branch.close()
            tree.drop(added)
    return results


def common_prefix(sequences: Sequence[Sequence[int]]) -> int:
    """RETURNS (int): Tokens that all begin with, leaving each at least one of its own."""
    n = 0
    shortest = min(len(s) for s in sequences) - 1
    while n < shortest and len({s[n] for s in sequences}) == 1:
        n += 1
    return n
