"""A voter's LLM at work: demonstrations and text are read once, every question is a branch behind them."""

import math
import sys
from functools import partial
from typing import (
    Any,
    Callable,
    Dict,
    Generator,
    Iterator,
    List,
    Mapping,
    Optional,
    Sequence,
    Tuple,
)

import numpy as np

from ...decoding.constraints import Choices
from ...decoding.engine import DecodingEngine, Node, Tree
from ...decoding.generate import common_prefix, decode
from ...decoding.json_lists import TextLists
from ...pipeline.spans import assign_occurrences
from ..interfaces import Chars, Claim, Task
from .prompt_tokens import VoterPromptEncoder

Job = Callable[[Tree], Generator[None, None, Any]]
# What has not ended after so many tokens, or where the LLM's positions end, is cut; what was listed before
# counts.
MAX_LIST_TOKENS = 256


class LLMSession:
    """Some tasks in the memory of one LLM.

    engine (DecodingEngine): Runs the programs; not used for anything else meanwhile.
    prompt_encoder (VoterPromptEncoder): The prompts.
    tasks (Sequence[Task]): What is read.
    keep (bool): Keep what was read from one stage to the next, for all tasks at once. Else each stage reads
        it again, for as many tasks at once as the decoder's budget allows. Answers are the same.
    """

    def __init__(
        self,
        engine: DecodingEngine,
        prompt_encoder: VoterPromptEncoder,
        tasks: Sequence[Task],
        *,
        keep: bool,
    ) -> None:
        if keep:
            engine.slots.budget = sys.maxsize
        self.engine = engine
        self.keep = keep
        self.task_sessions = [
            TaskSession(prompt_encoder, task, engine.llm.max_length) for task in tasks
        ]
        self._steps: Optional[Iterator[Any]] = None

    @property
    def passes(self) -> int:
        return self.engine.passes

    @property
    def tokens(self) -> int:
        return self.engine.tokens

    def extract(self) -> List[List[Chars]]:
        return self._each([task_session.extract for task_session in self.task_sessions])

    def classify(self, spans: Sequence[Sequence[Chars]]) -> List[List[Dict[str, float]]]:
        jobs = [
            partial(task_session.classify, spans=asked)
            for task_session, asked in zip(self.task_sessions, spans)
        ]
        return self._each(jobs)

    def verify(
        self, spans: Sequence[Sequence[Chars]], claims: Sequence[Sequence[Claim]]
    ) -> List[List[float]]:
        said = zip(self.task_sessions, spans, claims)
        return self._each([partial(d.verify, spans=asked, claims=c) for d, asked, c in said])

    def close(self) -> None:
        if self._steps is not None:
            self._steps.close()  # type: ignore[attr-defined]
            self._steps = None

    def _each(self, jobs: Sequence[Job]) -> List[Any]:
        for task_session, job in zip(self.task_sessions, jobs):
            task_session.job = job
        if not self.keep:
            return self.engine.run([task_session.once for task_session in self.task_sessions])
        if self._steps is None:
            self._steps = self.engine.steps(
                [task_session.request for task_session in self.task_sessions]
            )
        while any(task_session.job is not None for task_session in self.task_sessions):
            next(self._steps)
        return [task_session.answer for task_session in self.task_sessions]


class TaskSession:
    """One task in the memory of one LLM.

    max_length (int): Positions of the LLM. Demonstrations that leave no room for what is asked are left
        out, the least similar ones first.
    """

    def __init__(self, prompt_encoder: VoterPromptEncoder, task: Task, max_length: int) -> None:
        self.prompt_encoder = prompt_encoder
        self.task = task
        self.max_length = max_length
        self.lists = TextLists(
            prompt_encoder.tokenizer, task.text, task.words, prompt_encoder.end, ordered=True
        )
        shown = list(task.demonstrations)
        stem = prompt_encoder.stem(task.shown, shown)
        while shown and len(stem) > self._most():
            del shown[0]
            stem = prompt_encoder.stem(task.shown, shown)
        # The question for the list is part of what is shared, but for the token behind which it is written.
        *begin, self._last = prompt_encoder.list_question
        self.ids = [*stem, *begin]
        self.job: Optional[Job] = None
        self.answer: Any = None
        self._stem: Optional[Node] = None
        self._listed: Dict[Tuple[Chars, ...], Node] = {}

    def _most(self) -> int:
        """RETURNS (int): Tokens that text and demonstrations may have: behind them a list of all words,
        each for itself, and a question about all of the text fit."""
        every_word = [(k, k + 1) for k in range(len(self.task.words))]
        listed = min(len(self.lists.spell(every_word)), MAX_LIST_TOKENS)
        return self.max_length - self.prompt_encoder.after - listed - len(self.lists.words.ids)

    def request(self, tree: Tree) -> Generator[None, None, None]:
        """Do job after job, and wait in between, until it is closed."""
        while True:
            if self.job is not None:
                self.answer = yield from self.job(tree)
                self.job = None
            yield

    def once(self, tree: Tree) -> Generator[None, None, Any]:
        """Do one job."""
        assert self.job is not None
        self._stem, self._listed = None, {}
        return (yield from self.job(tree))

    def extract(self, tree: Tree) -> Generator[None, None, List[Chars]]:
        rule = self.lists.rule
        if not rule.can_list:
            return []
        answer = yield from decode(
            tree,
            self._text(tree),
            [self._last],
            rule,
            guess=rule.opening,
            max_tokens=max(min(MAX_LIST_TOKENS, self.max_length - len(self.ids) - 1), 1),
        )
        listed = [_SpanList(occurrences) for occurrences in rule.spans(answer.state)]
        return [span for span in assign_occurrences(listed) if span[0] >= 0]

    def classify(
        self, tree: Tree, spans: Sequence[Chars]
    ) -> Generator[None, None, List[Dict[str, float]]]:
        if not spans:
            return []
        # What is asked about a span is its string: once for all places of it.
        strings = [self.task.text[slice(*span)] for span in spans]
        different = list(dict.fromkeys(strings))
        found = yield from self.types(tree, spans, different)
        types = dict(zip(different, found))
        return [types[string] for string in strings]

    def types(
        self, tree: Tree, spans: Sequence[Chars], strings: Sequence[str]
    ) -> Generator[None, None, List[Dict[str, float]]]:
        """Ask for the types of strings, behind the list of all spans."""
        after = self._after_list(tree, spans)
        choices = self.prompt_encoder.choices
        questions = [self.prompt_encoder.type_question(string) for string in strings]
        asked = [_ask(tree, *ends, choices) for ends in _apart(tree, after, questions)]
        yield
        return [dict(zip(self.prompt_encoder.labels, _answered(nodes, choices))) for nodes in asked]

    def verify(
        self, tree: Tree, spans: Sequence[Chars], claims: Sequence[Claim]
    ) -> Generator[None, None, List[float]]:
        if not claims:
            return []
        after = self._after_list(tree, spans)
        said = [(self.task.text[start:end], label) for start, end, label in claims]
        truth = self.prompt_encoder.truth
        different = list(dict.fromkeys(said))
        questions = [self.prompt_encoder.check_question(*claim) for claim in different]
        either = {-1: np.array(sorted(truth))}
        asked = [tree.add(*ends, either) for ends in _apart(tree, after, questions)]
        yield
        found = {}
        for claim, node in zip(different, asked):
            scores = node.scores(-1)
            true = scores.log_probs[list(scores.ids).index(truth[0])]
            found[claim] = math.exp(true)
        return [found[claim] for claim in said]

    def _text(self, tree: Tree) -> Node:
        """RETURNS (Node): The end of what is shared. It goes through the LLM when it is first asked for."""
        if self._stem is None:
            self._stem = tree.root(self.ids)
        return self._stem

    def _after_list(self, tree: Tree, spans: Sequence[Chars]) -> Node:
        """RETURNS (Node): The end of the text and of the list of all spans that are asked about."""
        key = tuple(spans)
        if key not in self._listed:
            ids = [self._last, *self.prompt_encoder.after_list(self._spelt(spans))]
            self._listed[key] = tree.add(self._text(tree), ids)
        return self._listed[key]

    def _spelt(self, spans: Sequence[Chars]) -> List[int]:
        """RETURNS (List[int]): The list of the spans, or of the first ones, so that every question about
        one of them has room behind it."""
        first = {start: k for k, (start, _) in enumerate(self.task.words)}
        last = {end: k + 1 for k, (_, end) in enumerate(self.task.words)}
        words = [(first[start], last[end]) for start, end in spans]
        listed = self.lists.spell(words)
        room = self.max_length - len(self.ids)
        # Most often there is room for anything that could be asked.
        if len(listed) + self.prompt_encoder.after + 2 * len(self.lists.words.ids) > room:
            strings = {self.task.text[slice(*span)] for span in spans}
            room -= max(self.prompt_encoder.longest_question(string) for string in strings)
            while words and len(listed) > room:
                words.pop()
                listed = self.lists.spell(words)
        return listed


class _SpanList:
    """A string of a list: where in the text it stands."""

    def __init__(self, occurrences: List[Chars]) -> None:
        self.occurrences = occurrences


def _apart(
    tree: Tree, parent: Node, questions: Sequence[Sequence[int]]
) -> List[Tuple[Node, Sequence[int]]]:
    """RETURNS (List[Tuple[Node, Sequence[int]]]): For each question, the end of what all of them
    begin with, and what follows."""
    shared = common_prefix(questions)
    if len(questions) == 1 or not shared:
        return [(parent, question) for question in questions]
    begin = tree.add(parent, questions[0][:shared])
    return [(begin, question[shared:]) for question in questions]


def _ask(
    tree: Tree, parent: Node, question: Sequence[int], choices: Choices
) -> Dict[Tuple[int, ...], Node]:
    """Ask which of some choices is the answer, in one pass: at the question's end, and behind every
    beginning that several of them share.

    RETURNS (Dict[Tuple[int, ...], Node]): By what was written of the answer.
    """
    asked: Dict[Tuple[int, ...], Node] = {}
    asked[()] = tree.add(parent, question, {-1: choices.allowed(())})
    for begin in sorted(_forks(choices)):
        asked[begin] = tree.add(asked[()], begin, {-1: choices.allowed(begin)})
    return asked


def _forks(choices: Choices) -> List[Tuple[int, ...]]:
    """RETURNS (List[Tuple[int, ...]]): What is not the beginning of one choice alone."""
    begins = {s[:k] for s in choices.sequences for k in range(1, len(s))}
    return [begin for begin in begins if len(choices.allowed(begin)) > 1]


def _answered(asked: Mapping[Tuple[int, ...], Node], choices: Choices) -> Iterator[float]:
    """YIELDS (float): The probability of each choice; they add up to 1."""
    for sequence in choices.sequences:
        total = 0.0
        for k, token in enumerate(sequence):
            if sequence[:k] in asked:
                scores = asked[sequence[:k]].scores(-1)
                total += float(scores.log_probs[list(scores.ids).index(token)])
        yield math.exp(total)
