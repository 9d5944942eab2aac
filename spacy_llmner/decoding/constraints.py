"""Constraints on generation: one of several strings, a substring of the text, a JSON list of
substrings.

A constraint gives the allowed next tokens in a state, and the state after each of them. States are
immutable, so that guesses can be tried and discarded.
"""

from dataclasses import dataclass, field
from typing import Any, Dict, Iterable, List, Optional, Protocol, Sequence, Tuple

import numpy as np

NO_TOKENS = np.zeros(0, dtype=np.int64)
# The guess of a constraint that can't predict the next token.
NO_GUESS = -1


class Constraint(Protocol):
    """The interface that `decode` needs.

    start (Any): The state before the first token.
    """

    start: Any

    def allowed(self, state: Any) -> np.ndarray:
        """RETURNS (ndarray): int64, ascending: the allowed next tokens. Empty if the answer is complete."""

    def advance(self, state: Any, token: int) -> Any:
        """RETURNS (Any): The state after one of the allowed tokens."""

    def guess(self, state: Any) -> int:
        """RETURNS (int): The allowed token that is likely to come next, or NO_GUESS. It affects only the
        speed of decoding, not the result."""


def allowed_along(rule: Any, ids: Iterable[int]) -> List[np.ndarray]:
    """RETURNS (List[ndarray]): For each token of an answer, the tokens that the constraint allows there."""
    out, state = [], rule.start
    for token in ids:
        out.append(rule.allowed(state))
        state = rule.advance(state, token)
    return out


class Choices:
    """One of several token sequences. The state is the tokens written so far.

    sequences (Sequence[Sequence[int]]): The sequences. None may start with another one; if necessary, add
        an end token to each.
    RAISES (ValueError): If a sequence is the beginning of another one.
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
    """All occurrences in the text of a substring written so far.

    starts (ndarray): int64, shape (occurrences,): first character of each occurrence.
    last (ndarray): int64, same shape: index of its last token so far; -1 - w if nothing was written yet and
        the occurrence starts with word w.
    ended (bool): Whether the end token was written.
    """

    starts: np.ndarray
    last: np.ndarray
    ended: bool = False
    # The allowed tokens and the next states that are known already: the answers about a text, and the
    # drafts of their tokens, pass the same states many times.
    _allowed: List[np.ndarray] = field(default_factory=list, repr=False, compare=False)
    _next: Dict[int, "SubstringState"] = field(default_factory=dict, repr=False, compare=False)


class Substrings:
    """A substring of a text that starts at the start of a word and ends at the end of a word.

    The state contains all occurrences of the substring in the text, so its offsets are known when it ends.

    tokens (ndarray): int64, shape (tokens,): the tokens of the text. After them, the tokens of each word
        that is encoded differently as the first word of a mention (without the space before it).
    follow (ndarray): int64, same shape: index of the token after each token; -1 after the last.
    ends (ndarray): int64, same shape: one past the last character of the word that ends with a token;
        -1 for other tokens.
    first (ndarray): int64, shape (words,): index of each word's first token when a mention starts there.
    starts (ndarray): int64, same shape: the first character of each word.
    end (int): The token that ends the answer.
    likely_ends (Optional[ndarray]): bool, shape (tokens,): the tokens after which `guess` ends the answer.
        With None, it always guesses that the answer goes on.
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
        # By `last` of a state: negative indices count from the end, so that of word w is at -1 - w.
        self._following = np.concatenate([follow, first[::-1]])
        self._can_end = np.concatenate([ends >= 0, np.zeros(len(first), dtype=bool)])

    def allowed(self, state: SubstringState) -> np.ndarray:
        if state.ended:
            return NO_TOKENS
        if not state._allowed:
            state._allowed.append(self._find_allowed(state))
        return state._allowed[0]

    def advance(self, state: SubstringState, token: int) -> SubstringState:
        if token not in state._next:
            state._next[token] = self._find_next(state, token)
        return state._next[token]

    def _find_allowed(self, state: SubstringState) -> np.ndarray:
        following = self._following[state.last]
        tokens = self.tokens[following[following >= 0]]
        if self._can_end[state.last].any():
            tokens = np.append(tokens, self.end)
        return np.unique(tokens) if len(tokens) > 1 else tokens

    def _find_next(self, state: SubstringState, token: int) -> SubstringState:
        if token == self.end:
            keep = self._can_end[state.last]
            return SubstringState(state.starts[keep], state.last[keep], ended=True)
        following = self._following[state.last]
        keep = (following >= 0) & (self.tokens[following] == token)
        return SubstringState(state.starts[keep], following[keep])

    def guess(self, state: SubstringState) -> int:
        last = state.last[0]
        following = self._following[last]
        if following < 0 or (last >= 0 and self.likely_ends[last]):
            return self.end
        return int(self.tokens[following])

    def spans(self, state: SubstringState) -> List[Tuple[int, int]]:
        """RETURNS (List[Tuple[int, int]]): Character offsets (start, end) of all occurrences of a finished
        answer, in the order of the text."""
        return [(int(s), int(self.ends[k])) for s, k in zip(state.starts, state.last)]


@dataclass(frozen=True)
class ListState:
    """State of a JSON list.

    literal (Tuple[int, ...]): Tokens of brackets, quotes and commas written since the last item.
    item (Optional[SubstringState]): State of the item being written; None between items.
    done (Tuple[SubstringState, ...]): States of the finished items.
    ended (bool): Whether the list is complete.
    """

    literal: Tuple[int, ...]
    item: Any = None
    done: Tuple[SubstringState, ...] = ()
    ended: bool = False


class Unconstrained:
    """Any tokens up to the end token. The state is whether the end token was written.

    vocab (int): Size of the LLM's vocabulary.
    end (int): The token that ends the answer.
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
    """A JSON list of substrings of a text.

    items (Substrings): The allowed items, in the text as it is escaped inside JSON quotes.
    empty (Sequence[int]): Tokens of an empty list, including the end token.
    opening (Sequence[int]): Tokens of `["`.
    comma (Sequence[int]): Tokens of `", "`.
    closing (Sequence[int]): Tokens of `"]` and the end token.
    ordered (bool): Items must be in the order of the text: each item is located at its first occurrence
        after the start of the previous item. So no list is endless.
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
        # False if the text has no words. Then only the empty list is possible.
        self.can_list = len(items.first) > 0
        beginnings = [tuple(empty)] + ([tuple(opening)] if self.can_list else [])
        self.empty, self.opening, self.comma = tuple(empty), tuple(opening), tuple(comma)
        self._beginnings = Choices(beginnings)
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
                return ListState((), self._item_start(state.done), state.done)
            ended = not len(self._literals(state.done).allowed(literal))
            return ListState(literal, None, state.done, ended)
        if token in self.items.allowed(state.item) and token != self.items.end:
            return ListState((), self.items.advance(state.item, token), state.done)
        done = (*state.done, self.items.advance(state.item, self.items.end))
        return self.advance(ListState((), None, done), token)

    def guess(self, state: ListState) -> int:
        if state.item is not None:
            if state.item.last[0] < 0:
                return NO_GUESS  # an item can start anywhere in the text
            token = self.items.guess(state.item)
            if token != self.items.end:
                return token
        return int(self.allowed(state)[0])

    def spans(self, state: ListState) -> List[List[Tuple[int, int]]]:
        """RETURNS (List[List[Tuple[int, int]]]): Offsets of all occurrences of each finished item."""
        return [self.items.spans(item) for item in state.done]

    def _literals(self, done: Sequence[SubstringState]) -> Choices:
        if not done:
            return self._beginnings
        return self._between if len(self._item_start(done).starts) else self._closing

    def _item_start(self, done: Sequence[SubstringState]) -> SubstringState:
        """RETURNS (SubstringState): The start state of the next item."""
        start: SubstringState = self.items.start
        if not (self.ordered and done):
            return start
        later = start.starts > done[-1].starts.min()
        return SubstringState(start.starts[later], start.last[later])
