"""What may be generated: one of some strings, a substring of the text, a JSON list of substrings.

A constraint says what may come next, and is told what came. States are values: advancing one leaves
it as it was, so that guesses can be tried and dropped.
"""

from dataclasses import dataclass
from typing import Any, Dict, Iterable, List, Optional, Protocol, Sequence, Tuple

import numpy as np

NO_TOKENS = np.zeros(0, dtype=np.int64)
# What a constraint says that has no idea what may come next.
NO_GUESS = -1


class Constraint(Protocol):
    """What `decode` needs to know.

    start (Any): The state before the first token.
    """

    start: Any

    def allowed(self, state: Any) -> np.ndarray:
        """RETURNS (ndarray): int64, ascending: the tokens that may come next. Empty if the answer is
        complete."""

    def advance(self, state: Any, token: int) -> Any:
        """RETURNS (Any): The state behind one of the allowed tokens."""

    def guess(self, state: Any) -> int:
        """RETURNS (int): The allowed token that is likely to come next; no more than a hint. NO_GUESS
        for none."""


def allowed_along(rule: Any, ids: Iterable[int]) -> List[np.ndarray]:
    """RETURNS (List[ndarray]): What a constraint allows at each token of an answer."""
    out, state = [], rule.start
    for token in ids:
        out.append(rule.allowed(state))
        state = rule.advance(state, token)
    return out


class Choices:
    """One of some token sequences.

    sequences (Sequence[Sequence[int]]): None may begin with another one: give each an end, if need be.
    The state is what was written so far.
    """

    start: Tuple[int, ...] = ()

    def __init__(self, sequences: Sequence[Sequence[int]]) -> None:
        self.sequences = [tuple(s) for s in sequences]
        known = set(self.sequences)
        following: Dict[Tuple[int, ...], set] = {}
        for sequence in known:
            for k in range(len(sequence)):
                if sequence[:k] in known:
                    raise ValueError(f"the choice {sequence[:k]} is the beginning of {sequence}")
                following.setdefault(sequence[:k], set()).add(sequence[k])
        self._allowed = {k: np.array(sorted(v), dtype=np.int64) for k, v in following.items()}

    def allowed(self, state: Tuple[int, ...]) -> np.ndarray:
        return self._allowed.get(state, NO_TOKENS)

    def advance(self, state: Tuple[int, ...], token: int) -> Tuple[int, ...]:
        return (*state, token)

    def guess(self, state: Tuple[int, ...]) -> int:
        return int(self._allowed[state][0])


@dataclass(frozen=True)
class SubstringState:
    """Where a substring may stand.

    starts (ndarray): First character of each possible beginning.
    last (ndarray): Same shape: the number of the last token read; -1 - w before the first one of word w.
    ended (bool): Whether the end was read.
    """

    starts: np.ndarray
    last: np.ndarray
    ended: bool = False


class Substrings:
    """A substring of a text that begins where a word begins and ends where a word ends.

    tokens (ndarray): int64: the text's tokens; behind them, if a mention's first word is spelt in
        another way than in the text (without the space in front), those spellings.
    follow (ndarray): int64, same shape: the token that continues each of them; -1 behind the last.
    ends (ndarray): int64, same shape: one past the last character of the word that ends with a token;
        -1 inside of words.
    first (ndarray): int64, shape (words,): where each word's spelling begins.
    starts (ndarray): int64, same shape: the first character of each word.
    end (int): The token that ends the answer.
    likely_ends (Optional[ndarray]): bool, shape (tokens,): where an answer is guessed to end; None
        guesses that it goes on.

    The state keeps all places in the text that the answer still fits, so it comes with its offsets.
    """

    def __init__(
        self,
        tokens: np.ndarray,
        follow: np.ndarray,
        ends: np.ndarray,
        first: np.ndarray,
        starts: np.ndarray,
        end: int,
        likely_ends: Optional[np.ndarray] = None,
    ) -> None:
        self.tokens = tokens
        self.follow = follow
        self.ends = ends
        self.first = first
        self.end = end
        self.likely_ends = np.zeros(len(tokens), bool) if likely_ends is None else likely_ends
        self.start = SubstringState(starts, -1 - np.arange(len(starts)))

    def allowed(self, state: SubstringState) -> np.ndarray:
        if state.ended:
            return NO_TOKENS
        following = self._next(state.last)
        found = self.tokens[following[following >= 0]]
        if self._may_end(state.last).any():
            found = np.append(found, self.end)
        return np.unique(found)

    def advance(self, state: SubstringState, token: int) -> SubstringState:
        if token == self.end:
            keep = self._may_end(state.last)
            return SubstringState(state.starts[keep], state.last[keep], ended=True)
        following = self._next(state.last)
        keep = (following >= 0) & (self.tokens[following] == token)
        return SubstringState(state.starts[keep], following[keep])

    def guess(self, state: SubstringState) -> int:
        last = state.last[0]
        following = self._next(state.last[:1])[0]
        if following < 0 or (last >= 0 and self.likely_ends[last]):
            return self.end
        return int(self.tokens[following])

    def spans(self, state: SubstringState) -> List[Tuple[int, int]]:
        """RETURNS (List[Tuple[int, int]]): Characters (start, end) of all places of a finished
        answer, in the order of the text."""
        return [(int(s), int(self.ends[k])) for s, k in zip(state.starts, state.last)]

    def _next(self, last: np.ndarray) -> np.ndarray:
        before = last < 0
        out = np.empty_like(last)
        out[before] = self.first[-1 - last[before]]
        out[~before] = self.follow[last[~before]]
        return out

    def _may_end(self, last: np.ndarray) -> np.ndarray:
        return (last >= 0) & (self.ends[last] >= 0)


@dataclass(frozen=True)
class ListState:
    """literal (Tuple[int, ...]): Written of the brackets and commas since the last item.
    item (Optional[SubstringState]): Of the item being written; None between items.
    done (Tuple[SubstringState, ...]): Of the finished items."""

    literal: Tuple[int, ...]
    item: Any = None
    done: Tuple[SubstringState, ...] = ()
    ended: bool = False


class Unconstrained:
    """Any tokens, up to the end.

    vocab (int): Number of tokens of the LLM.
    end (int): The token that ends the answer.
    The state is whether it was read.
    """

    start = False

    def __init__(self, vocab: int, end: int) -> None:
        self.end = end
        self._all = np.arange(vocab, dtype=np.int64)

    def allowed(self, state: bool) -> np.ndarray:
        return NO_TOKENS if state else self._all

    def advance(self, state: bool, token: int) -> bool:
        return token == self.end

    def guess(self, state: bool) -> int:
        return NO_GUESS


class JsonList:
    """A JSON list of substrings.

    items (Substrings): Spelt as they are inside of JSON quotes.
    empty (Sequence[int]): Tokens of the whole answer without an item, its end included.
    opening (Sequence[int]): Tokens of `["`.
    comma (Sequence[int]): Tokens of `", "`.
    closing (Sequence[int]): Tokens of `"]` and of the answer's end.
    ordered (bool): Items stand in the order of the text: each at its first place that begins behind the
        beginning of the one before. So no list is endless.
    """

    def __init__(
        self,
        items: Substrings,
        empty: Sequence[int],
        opening: Sequence[int],
        comma: Sequence[int],
        closing: Sequence[int],
        ordered: bool = False,
    ) -> None:
        self.items = items
        self.ordered = ordered
        # Whether there is anything to list.
        self.can_list = len(items.first) > 0
        begin = [tuple(empty)] + ([tuple(opening)] if self.can_list else [])
        self.empty, self.opening, self.comma = tuple(empty), tuple(opening), tuple(comma)
        self._begin = Choices(begin)
        self._between = Choices([self.comma, tuple(closing)])
        self._closing = Choices([tuple(closing)])
        self.start = ListState(())

    def allowed(self, state: ListState) -> np.ndarray:
        if state.ended:
            return NO_TOKENS
        if state.item is None:
            return self._literals(state.done).allowed(state.literal)
        inside = self.items.allowed(state.item)
        if self.items.end in inside:
            inside = inside[inside != self.items.end]
            done = (*state.done, self.items.advance(state.item, self.items.end))
            return np.unique(np.append(inside, self._literals(done).allowed(())))
        return inside

    def advance(self, state: ListState, token: int) -> ListState:
        if state.item is None:
            literal = (*state.literal, token)
            if literal == (self.comma if state.done else self.opening):
                return ListState((), self._rest(state.done), state.done)
            ended = not len(self._literals(state.done).allowed(literal))
            return ListState(literal, None, state.done, ended)
        if token in self.items.allowed(state.item) and token != self.items.end:
            return ListState((), self.items.advance(state.item, token), state.done)
        done = (*state.done, self.items.advance(state.item, self.items.end))
        return self.advance(ListState((), None, done), token)

    def guess(self, state: ListState) -> int:
        if state.item is not None:
            if state.item.last[0] < 0:
                return NO_GUESS  # any place in the text is as good as another
            token = self.items.guess(state.item)
            if token != self.items.end:
                return token
        return int(self.allowed(state)[0])

    def spans(self, state: ListState) -> List[List[Tuple[int, int]]]:
        """RETURNS (List[List[Tuple[int, int]]]): All places of each finished item."""
        return [self.items.spans(item) for item in state.done]

    def _literals(self, done: Sequence[SubstringState]) -> Choices:
        if not done:
            return self._begin
        return self._between if len(self._rest(done).starts) else self._closing

    def _rest(self, done: Sequence[SubstringState]) -> SubstringState:
        """RETURNS (SubstringState): Where the next item may stand."""
        start: SubstringState = self.items.start
        if not (self.ordered and done):
            return start
        keep = start.starts > done[-1].starts.min()
        return SubstringState(start.starts[keep], start.last[keep])
