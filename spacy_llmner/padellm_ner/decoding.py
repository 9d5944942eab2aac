"""Count the mentions of each label, then write all of them in parallel (methods.md 2a.4)."""

from dataclasses import dataclass, field, replace
from typing import Callable, Dict, Generator, List, Optional, Sequence, Tuple

import numpy as np

from ..decoding.constraints import Substrings
from ..decoding.engine import Node, Request, Tree
from ..decoding.generate import Answer, Branch, common_prefix, decode, look_ahead, run_parallel
from ..decoding.substrings import substring_constraint
from ..llm.word_tokens import WordTokens
from .beginnings import Beginning, Beginnings
from .counts import Counts
from .templates import NumberTokens, TemplateEncoder


@dataclass
class DecodedMention:
    """A mention as the LLM wrote it.

    label (str): Its label.
    index (int): Its number among the mentions of the label, from 1.
    occurrences (List[Tuple[int, int]]): Where in the text its string stands: (start, end) in characters. None
        if it was not written to its end.
    log_probs (List[float]): Of its tokens, the end left out, renormalised over what was allowed. With
        `count_threshold`, the first says how likely any mention of the label begins so.
    raw_log_probs (List[float]): The same over the whole vocabulary; NaN unless asked for.
    """

    label: str
    index: int
    occurrences: List[Tuple[int, int]]
    log_probs: List[float]
    raw_log_probs: List[float]


@dataclass(frozen=True)
class MentionDecodingSettings:
    """How mentions are counted and decoded.

    count_threshold (Optional[float]): Write what is more likely than this to begin a mention; None takes
        the likeliest count and the likeliest mention for each number, as published.
    nested (bool): Several mentions of a label may begin with the same word.
    raw (bool): Ask for log-probabilities over the whole vocabulary.
    draft (int): Tokens that are guessed ahead; 0 writes token by token.
    max_tokens (int): Tokens of a mention at most.
    look_ahead (bool): Ask for the first mention along with the count, and guess how the others begin.
    """

    count_threshold: Optional[float] = None
    nested: bool = False
    raw: bool = False
    draft: int = 4
    max_tokens: int = 64
    look_ahead: bool = True


OnLabel = Callable[[str, List[DecodedMention]], None]


def find_mentions(
    prompt_encoder: TemplateEncoder,
    words: WordTokens,
    text: str,
    labels: Sequence[str],
    settings: MentionDecodingSettings,
    on_label: Optional[OnLabel] = None,
) -> Request:
    """Make the program that finds the mentions of a text.

    on_label (Optional[Callable]): Told the mentions of a label as soon as they are all written.
    RETURNS (Request): Returns Dict[str, List[DecodedMention]].
    """

    def request(tree: Tree) -> Generator[None, None, Dict[str, List[DecodedMention]]]:
        search = _Search(tree, prompt_encoder, words, text, settings)
        return (yield from search.run(labels, on_label))

    return request


@dataclass
class _LabelPrompt:
    """The places in the tree at which a label is asked about."""

    label: str
    prompt: Node
    count: Node
    first: Optional[Node] = None


@dataclass
class _Search:
    tree: Tree
    prompt_encoder: TemplateEncoder
    words: WordTokens
    text: str
    settings: MentionDecodingSettings
    mentions: Substrings = field(init=False)
    numbers: NumberTokens = field(init=False)

    def __post_init__(self) -> None:
        tokenizer = self.prompt_encoder.tokenizer if self.prompt_encoder.template.bare else None
        self.mentions = substring_constraint(
            self.words, self.prompt_encoder.end, tokenizer, self.text
        )
        self.numbers = self.prompt_encoder.numbers(len(self.mentions.first))

    def run(
        self, labels: Sequence[str], on_label: Optional[OnLabel]
    ) -> Generator[None, None, Dict[str, List[DecodedMention]]]:
        prompts = [self.prompt_encoder.label(label) for label in labels]
        shared = common_prefix(prompts)
        text = self.tree.add(
            None, [*self.prompt_encoder.before, *self.words.ids.tolist(), *prompts[0][:shared]]
        )
        branches = [
            self._of_label(text, label, p[shared:], on_label) for label, p in zip(labels, prompts)
        ]
        found = yield from run_parallel(self.tree, branches)
        return dict(zip(labels, found))

    def _ask(self, text: Node, label: str, ids: Sequence[int]) -> _LabelPrompt:
        count = {-1: self.numbers.allowed(self.numbers.start)}
        before = self.prompt_encoder.count()
        if self.prompt_encoder.count_first or not before:
            node = self.tree.add(text, [*ids, *before], count)
            asked = _LabelPrompt(label, node, node)
        else:
            node = self.tree.add(text, ids)
            asked = _LabelPrompt(label, node, self.tree.add(node, before, count))
        if self.settings.look_ahead and not self.prompt_encoder.count_first:
            first = {-1: self.mentions.allowed(self.mentions.start)}
            asked.first = self.tree.add(node, self.prompt_encoder.mention(1, 1), first)
        return asked

    def _of_label(
        self, text: Node, label: str, ids: Sequence[int], on_label: Optional[OnLabel]
    ) -> Generator[None, None, List[DecodedMention]]:
        asked = self._ask(text, label, ids)
        yield
        counts = Counts(self.numbers)
        counts.tell_apart(self.numbers.start, asked.count.scores(-1))
        counting = decode(
            self.tree, asked.count, [], self.numbers, draft=0, on_choice=counts.tell_apart
        )
        if self.settings.count_threshold is None:
            answers = yield from self._by_number(asked, counts, counting)
        else:
            answers = yield from self._by_place(asked, counts, counting)
        out = self._in_order(label, answers)
        if on_label is not None:
            on_label(label, out)
        return out

    def _by_number(
        self, asked: _LabelPrompt, counts: Counts, counting: Branch
    ) -> Generator[None, None, List[Answer]]:
        """Write the likeliest mention for each number up to the likeliest count, as published."""
        # While the rest of a long number is read, the mentions that its first digit promises are
        # written already.
        likely = counts.likeliest()
        both = yield from run_parallel(
            self.tree, [counting, self._write(asked, likely, range(1, likely + 1))]
        )
        n = self.numbers.sequences.index(tuple(both[0].ids))
        answers: List[Answer] = both[1]
        if n > likely:
            kept = 0 if self.prompt_encoder.count_first else likely
            rest = yield from self._write(asked, n, range(kept + 1, n + 1))
            answers = answers[:kept] + rest
        return answers[:n]

    def _by_place(
        self, asked: _LabelPrompt, counts: Counts, counting: Branch
    ) -> Generator[None, None, List[Answer]]:
        """Write what is likely enough to begin a mention, whatever its number is (`begins.py`)."""
        threshold = self.settings.count_threshold
        assert threshold is not None
        beginnings = Beginnings(self._first_tokens(), threshold, self.settings.nested)
        firsts = [] if asked.first is None else [(asked.first, len(asked.first.ids))]
        still = [True]

        def count() -> Branch:
            yield from counting
            still.clear()

        def likely(rows: List[Tuple[Node, int]]) -> List[Beginning]:
            scores = [node.scores(read - 1) for node, read in rows]
            there = [counts.at_least(k) for k in range(1, len(rows) + 1)]
            return beginnings.likely(scores, there)

        def write(rows: List[Tuple[Node, int]], begins: Sequence[Beginning]) -> Branch:
            branches = [self._go_on(*rows[b.row], b.token) for b in begins]
            answers = yield from run_parallel(self.tree, branches)
            return {(b.token, b.rank): answer for b, answer in zip(begins, answers)}

        def write_others(before: Sequence[Beginning]) -> Branch:
            rows, asked_for = list(firsts), 0
            while True:
                n = counts.more_likely_than(threshold)
                if n > asked_for:
                    rows = [] if self.prompt_encoder.count_first else rows
                    guesses = self._guesses(asked, n)
                    for k in range(len(rows) + 1, n + 1):
                        rows.append(self._ask_mention(asked, n, k, guesses[k - 1 : k]))
                    asked_for = n
                elif not still:
                    break
                yield
            final = likely(rows)
            known = {(b.token, b.rank) for b in before}
            new = [b for b in final if (b.token, b.rank) not in known]
            return final, (yield from write(rows, new))

        # What the first mention promises is written while the others are asked for.
        first = likely(firsts)
        _, answers, (final, others) = yield from run_parallel(
            self.tree, [count(), write(firsts, first), write_others(first)]
        )
        answers.update(others)
        out = []
        for b in final:
            answer = answers[b.token, b.rank]
            more = b.log_prob - answer.log_probs[0]
            answer.log_probs[0] += more
            answer.raw_log_probs[0] += more
            out.append(answer)
        return out

    def _in_order(self, label: str, answers: Sequence[Answer]) -> List[DecodedMention]:
        """RETURNS (List[DecodedMention]): What was written by place in the order of the text, where a string that
        was written twice stands twice; what was written by number in that order."""
        out = []
        times: Dict[Tuple[Tuple[int, int], ...], int] = {}
        for k, answer in enumerate(answers, 1):
            occurrences = self.mentions.spans(answer.state) if answer.complete else []
            out.append(
                DecodedMention(
                    label, k, occurrences, answer.log_probs[:-1], answer.raw_log_probs[:-1]
                )
            )
        if self.settings.count_threshold is None:
            return out
        at = []
        for written in out:
            key = tuple(written.occurrences)
            times[key] = times.get(key, -1) + 1
            at.append(key[min(times[key], len(key) - 1)] if key else (0, 0))
        order = sorted(range(len(out)), key=lambda i: at[i])
        return [replace(out[i], index=k) for k, i in enumerate(order, 1)]

    def _ask_mention(
        self, asked: _LabelPrompt, n: int, k: int, guess: Sequence[int]
    ) -> Tuple[Node, int]:
        """RETURNS (Tuple[Node, int]): Where mention k is asked for, with guesses of it behind, and how many
        of its tokens are the question."""
        prompt = self.prompt_encoder.mention(n, k)
        asks, guessed = look_ahead(
            self.mentions, self.mentions.start, guess, self.settings.draft, self.settings.raw
        )
        last = len(prompt) - 1
        ask = {last + i: tokens for i, tokens in enumerate(asks)}
        return self.tree.add(asked.prompt, [*prompt, *guessed], ask), len(prompt)

    def _go_on(self, node: Node, read: int, first: Optional[int] = None) -> Branch:
        """Write a mention behind the question for it."""
        settings = self.settings
        return decode(
            self.tree,
            node,
            [],
            self.mentions,
            draft=settings.draft,
            raw=settings.raw,
            max_tokens=settings.max_tokens,
            first=first,
            n_read=read,
        )

    def _write(
        self, asked: _LabelPrompt, n: int, indices: Sequence[int]
    ) -> Generator[None, None, List[Answer]]:
        guesses = self._guesses(asked, n)
        settings = self.settings
        branches = []
        for k in indices:
            node, prompt, guess = (
                asked.prompt,
                self.prompt_encoder.mention(n, k),
                guesses[k - 1 : k],
            )
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
        return (yield from run_parallel(self.tree, branches))

    def _guesses(self, asked: _LabelPrompt, n: int) -> List[int]:
        """RETURNS (List[int]): How the mentions may begin: as what else could be the first one."""
        if asked.first is None or n < 2 or not self.settings.draft:
            return []
        scores = asked.first.scores(-1)
        likely = [int(scores.ids[k]) for k in np.argsort(-scores.log_probs, kind="stable")[:n]]
        at = {int(t): k for k, t in reversed(list(enumerate(self._first_tokens())))}
        return sorted(likely, key=lambda token: at[token])

    def _first_tokens(self) -> np.ndarray:
        return self.mentions.tokens[self.mentions.first]
