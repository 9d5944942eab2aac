"""Count the mentions of each label, then write all of them in parallel (methods.md 2a.4)."""

from dataclasses import dataclass, field
from typing import Callable, Dict, Generator, List, Optional, Sequence, Tuple

import numpy as np

from ..llm.branches import Answer, common_prefix, decode, together
from ..llm.constraints import Substrings
from ..llm.decoding import Node, Program, Tree
from ..llm.words import WordTokens, substrings
from .counts import Counts
from .templates import Numbers, Wording


@dataclass
class Written:
    """A mention as the LLM wrote it.

    label (str): Its label.
    index (int): Its number among the mentions of the label, from 1.
    places (List[Tuple[int, int]]): Where in the text its string stands: (start, end) in characters. None
        if it was not written to its end.
    log_probs (List[float]): Of its tokens, the end left out, renormalised over what was allowed.
    raw_log_probs (List[float]): The same over the whole vocabulary; NaN unless asked for.
    p_there (float): How likely there are so many mentions of the label.
    """

    label: str
    index: int
    places: List[Tuple[int, int]]
    log_probs: List[float]
    raw_log_probs: List[float]
    p_there: float


@dataclass(frozen=True)
class FindSettings:
    """How mentions are counted and decoded.

    count_threshold (Optional[float]): Write mention k if it is more likely than this that there are k;
        None takes the likeliest count, as published.
    raw (bool): Ask for log-probabilities over the whole vocabulary.
    draft (int): Tokens that are guessed ahead; 0 writes token by token.
    max_tokens (int): Tokens of a mention at most.
    look_ahead (bool): Ask for the first mention along with the count, and guess how the others begin.
    """

    count_threshold: Optional[float] = None
    raw: bool = False
    draft: int = 4
    max_tokens: int = 64
    look_ahead: bool = True


OnLabel = Callable[[str, List[Written]], None]


def finder(
    wording: Wording,
    words: WordTokens,
    text: str,
    labels: Sequence[str],
    settings: FindSettings,
    on_label: Optional[OnLabel] = None,
) -> Program:
    """Make the program that finds the mentions of a text.

    on_label (Optional[Callable]): Told the mentions of a label as soon as they are all written.
    RETURNS (Program): Returns Dict[str, List[Written]].
    """

    def program(tree: Tree) -> Generator[None, None, Dict[str, List[Written]]]:
        search = _Search(tree, wording, words, text, settings)
        return (yield from search.run(labels, on_label))

    return program


@dataclass
class _Asked:
    """The places in the tree at which a label is asked about."""

    label: str
    prompt: Node
    count: Node
    first: Optional[Node] = None


@dataclass
class _Search:
    tree: Tree
    wording: Wording
    words: WordTokens
    text: str
    settings: FindSettings
    mentions: Substrings = field(init=False)
    numbers: Numbers = field(init=False)

    def __post_init__(self) -> None:
        tokenizer = self.wording.tokenizer if self.wording.template.bare else None
        self.mentions = substrings(self.words, self.wording.end, tokenizer, self.text)
        self.numbers = self.wording.numbers(len(self.mentions.first))

    def run(
        self, labels: Sequence[str], on_label: Optional[OnLabel]
    ) -> Generator[None, None, Dict[str, List[Written]]]:
        prompts = [self.wording.label(label) for label in labels]
        shared = common_prefix(prompts)
        text = self.tree.add(
            None, [*self.wording.before, *self.words.ids.tolist(), *prompts[0][:shared]]
        )
        branches = [
            self._of_label(text, label, p[shared:], on_label) for label, p in zip(labels, prompts)
        ]
        found = yield from together(self.tree, branches)
        return dict(zip(labels, found))

    def _ask(self, text: Node, label: str, ids: Sequence[int]) -> _Asked:
        count = {-1: self.numbers.allowed(self.numbers.start)}
        if self.wording.count_first:
            node = self.tree.add(text, [*ids, *self.wording.count()], count)
            return _Asked(label, node, node)
        node = self.tree.add(text, ids)
        asked = _Asked(label, node, self.tree.add(node, self.wording.count(), count))
        if self.settings.look_ahead:
            first = {-1: self.mentions.allowed(self.mentions.start)}
            asked.first = self.tree.add(node, self.wording.mention(1, 1), first)
        return asked

    def _of_label(
        self, text: Node, label: str, ids: Sequence[int], on_label: Optional[OnLabel]
    ) -> Generator[None, None, List[Written]]:
        asked = self._ask(text, label, ids)
        yield
        counts = Counts(self.numbers)
        counts.tell_apart(self.numbers.start, asked.count.scores(-1))
        # While the rest of a long number is read, the mentions that its first digit promises are
        # written already.
        likely = self._wanted(counts)
        counting = decode(
            self.tree, asked.count, [], self.numbers, draft=0, on_choice=counts.tell_apart
        )
        both = yield from together(
            self.tree, [counting, self._write(asked, likely, range(1, likely + 1))]
        )
        exact = self.numbers.sequences.index(tuple(both[0].ids))
        n = self._wanted(counts, exact)
        answers: List[Answer] = both[1]
        if n > likely:
            kept = 0 if self.wording.count_first else likely
            rest = yield from self._write(asked, n, range(kept + 1, n + 1))
            answers = answers[:kept] + rest
        out = []
        for k, answer in enumerate(answers[:n], 1):
            places = self.mentions.spans(answer.state) if answer.complete else []
            raw = answer.raw_log_probs[:-1]
            there = counts.at_least(k)
            out.append(Written(asked.label, k, places, answer.log_probs[:-1], raw, there))
        if on_label is not None:
            on_label(asked.label, out)
        return out

    def _wanted(self, counts: Counts, exact: Optional[int] = None) -> int:
        """RETURNS (int): How many mentions to write.

        exact (Optional[int]): The number that was written, if it was already.
        """
        threshold = self.settings.count_threshold
        if threshold is not None:
            return counts.more_likely_than(threshold)
        return counts.likeliest() if exact is None else exact

    def _write(
        self, asked: _Asked, n: int, indices: Sequence[int]
    ) -> Generator[None, None, List[Answer]]:
        guesses = self._guesses(asked, n)
        settings = self.settings
        branches = []
        for k in indices:
            node, prompt, guess = asked.prompt, self.wording.mention(n, k), guesses[k - 1 : k]
            if k == 1 and asked.first is not None:
                node, prompt, guess = asked.first, [], []
            branches.append(
                decode(
                    self.tree,
                    node,
                    prompt,
                    self.mentions,
                    guess=guess,
                    draft=settings.draft,
                    raw=settings.raw,
                    max_tokens=settings.max_tokens,
                )
            )
        return (yield from together(self.tree, branches))

    def _guesses(self, asked: _Asked, n: int) -> List[int]:
        """RETURNS (List[int]): How the mentions may begin: as what else could be the first one."""
        if asked.first is None or n < 2 or not self.settings.draft:
            return []
        scores = asked.first.scores(-1)
        likely = [int(scores.ids[k]) for k in np.argsort(-scores.log_probs, kind="stable")[:n]]
        at = {int(t): k for k, t in reversed(list(enumerate(self._first_tokens())))}
        return sorted(likely, key=lambda token: at[token])

    def _first_tokens(self) -> np.ndarray:
        return self.mentions.tokens[self.mentions.first]
