"""The session of an LLM voter: demonstrations and text are read once, and every question is a branch."""

import math
import sys
from functools import partial
from typing import (
    Any,
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
from ...decoding.engine import DecodingEngine
from ...decoding.generate import common_prefix, decode
from ...decoding.json_lists import TextLists
from ...decoding.tree import Node, Request, Tree
from ...pipeline.spans import assign_occurrences
from ...util import CharSpan
from ..interfaces import Claim, Task
from .prompt_tokens import VoterPromptEncoder

# Maximum number of tokens in a list that the LLM writes, the end token included. It is lower if the LLM has
# too few positions. A longer list is cut off, and the names that are complete by then are used.
MAX_LIST_TOKENS = 256


class LLMSession:
    """A session of an LLM voter. See `Session`.

    engine (DecodingEngine): Runs the requests. It must not be used for anything else until the session is
        closed.
    prompt_encoder (VoterPromptEncoder): Encodes the prompts.
    tasks (Sequence[Task]): The tasks.
    keep (bool): Keep the prompts of all tasks in memory from one stage to the next. If False, each stage
        reads them again, for as many tasks at the same time as the engine's token budget allows. The
        answers are the same.
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

    def extract(self) -> List[List[CharSpan]]:
        return self._run([task_session.extract for task_session in self.task_sessions])

    def classify(self, spans: Sequence[Sequence[CharSpan]]) -> List[List[Dict[str, float]]]:
        jobs = [
            partial(task_session.classify, spans=of_task)
            for task_session, of_task in zip(self.task_sessions, spans)
        ]
        return self._run(jobs)

    def verify(
        self, spans: Sequence[Sequence[CharSpan]], claims: Sequence[Sequence[Claim]]
    ) -> List[List[float]]:
        jobs = [
            partial(task_session.verify, spans=of_task, claims=claims_of_task)
            for task_session, of_task, claims_of_task in zip(self.task_sessions, spans, claims)
        ]
        return self._run(jobs)

    def close(self) -> None:
        if self._steps is not None:
            self._steps.close()  # type: ignore[attr-defined]
            self._steps = None

    def _run(self, jobs: Sequence[Request]) -> List[Any]:
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
    """One task of a session.

    If the demonstrations don't leave enough positions for the questions, the least similar ones are left
    out first.

    prompt_encoder (VoterPromptEncoder): Encodes the prompts.
    task (Task): The task.
    max_length (int): Number of positions of the LLM.
    ids (List[int]): The part of the prompt that all questions share, and the question for the list without
        its last token.
    job (Optional[Request]): The next job of the request.
    answer (Any): The result of the last job.
    """

    def __init__(self, prompt_encoder: VoterPromptEncoder, task: Task, max_length: int) -> None:
        self.prompt_encoder = prompt_encoder
        self.task = task
        self.max_length = max_length
        self.lists = TextLists(
            prompt_encoder.tokenizer, task.text, task.words, prompt_encoder.end, ordered=True
        )
        demonstrations = list(task.demonstrations)
        shared = prompt_encoder.shared_prompt(task.window_text, demonstrations)
        while demonstrations and len(shared) > self._max_shared():
            del demonstrations[0]
            shared = prompt_encoder.shared_prompt(task.window_text, demonstrations)
        # The question for the list is shared too, except its last token: the list is decoded after it.
        *begin, self._last = prompt_encoder.list_question
        self.ids = [*shared, *begin]
        self.job: Optional[Request] = None
        self.answer: Any = None
        self._shared: Optional[Node] = None
        self._lists: Dict[Tuple[CharSpan, ...], Node] = {}

    def _max_shared(self) -> int:
        """RETURNS (int): The maximum number of tokens in the shared prompt. It must leave enough positions
        for a list with each word as an item, and for a question about the whole text."""
        every_word = [(k, k + 1) for k in range(len(self.task.words))]
        listed = min(len(self.lists.spell(every_word)), MAX_LIST_TOKENS)
        return (
            self.max_length
            - self.prompt_encoder.tokens_after_text
            - listed
            - len(self.lists.words.ids)
        )

    def request(self, tree: Tree) -> Generator[None, None, None]:
        """A request that runs one job after another and waits in between, until it is closed."""
        while True:
            if self.job is not None:
                self.answer = yield from self.job(tree)
                self.job = None
            yield

    def once(self, tree: Tree) -> Generator[None, None, Any]:
        """A request that runs one job."""
        assert self.job is not None
        self._shared, self._lists = None, {}
        return (yield from self.job(tree))

    def extract(self, tree: Tree) -> Generator[None, None, List[CharSpan]]:
        """RETURNS (List[CharSpan]): The spans of the names that the LLM lists."""
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
        listed = [_ListedString(occurrences) for occurrences in rule.spans(answer.state)]
        return [span for span in assign_occurrences(listed) if span[0] >= 0]

    def classify(
        self, tree: Tree, spans: Sequence[CharSpan]
    ) -> Generator[None, None, List[Dict[str, float]]]:
        """RETURNS (List[Dict[str, float]]): For each span, the probability of each label."""
        if not spans:
            return []
        # The question contains the string of a span, so spans with the same string share one answer.
        strings = [self.task.text[slice(*span)] for span in spans]
        unique = list(dict.fromkeys(strings))
        found = yield from self.classify_strings(tree, spans, unique)
        by_string = dict(zip(unique, found))
        return [by_string[string] for string in strings]

    def classify_strings(
        self, tree: Tree, spans: Sequence[CharSpan], strings: Sequence[str]
    ) -> Generator[None, None, List[Dict[str, float]]]:
        """Ask for the types of strings, after the list of all spans.

        tree (Tree): The tree of the request.
        spans (Sequence[CharSpan]): All spans to classify.
        strings (Sequence[str]): The strings.
        RETURNS (List[Dict[str, float]]): For each string, the probability of each label.
        """
        after = self._after_list(tree, spans)
        choices = self.prompt_encoder.choices
        questions = [self.prompt_encoder.type_question(string) for string in strings]
        asked = [
            _score_choices(tree, parent, question, choices)
            for parent, question in _share_beginning(tree, after, questions)
        ]
        yield
        labels = self.prompt_encoder.labels
        return [dict(zip(labels, _choice_probabilities(nodes, choices))) for nodes in asked]

    def verify(
        self, tree: Tree, spans: Sequence[CharSpan], claims: Sequence[Claim]
    ) -> Generator[None, None, List[float]]:
        """RETURNS (List[float]): For each claim, the probability that it is true."""
        if not claims:
            return []
        after = self._after_list(tree, spans)
        # As in `classify`, claims with the same string and label share one answer.
        named = [(self.task.text[start:end], label) for start, end, label in claims]
        truth = self.prompt_encoder.truth
        unique = list(dict.fromkeys(named))
        questions = [self.prompt_encoder.check_question(*claim) for claim in unique]
        true_or_false = {-1: np.array(sorted(truth))}
        asked = [
            tree.add(parent, question, true_or_false)
            for parent, question in _share_beginning(tree, after, questions)
        ]
        yield
        found = {}
        for claim, node in zip(unique, asked):
            scores = node.scores(-1)
            true = scores.log_probs[list(scores.ids).index(truth[0])]
            found[claim] = math.exp(true)
        return [found[claim] for claim in named]

    def _text(self, tree: Tree) -> Node:
        """RETURNS (Node): The node of the shared prompt, which is added to the tree at first use."""
        if self._shared is None:
            self._shared = tree.root(self.ids)
        return self._shared

    def _after_list(self, tree: Tree, spans: Sequence[CharSpan]) -> Node:
        """RETURNS (Node): The node of the list of spans. Questions about the spans are added after it."""
        key = tuple(spans)
        if key not in self._lists:
            ids = [self._last, *self.prompt_encoder.after_list(self._list_tokens(spans))]
            self._lists[key] = tree.add(self._text(tree), ids)
        return self._lists[key]

    def _list_tokens(self, spans: Sequence[CharSpan]) -> List[int]:
        """Encode the list of spans. If it leaves too few positions for a question about one of the spans,
        the last spans are left out of it."""
        first = {start: k for k, (start, _) in enumerate(self.task.words)}
        last = {end: k + 1 for k, (_, end) in enumerate(self.task.words)}
        words = [(first[start], last[end]) for start, end in spans]
        ids = self.lists.spell(words)
        free = self.max_length - len(self.ids)
        # Usually there are enough positions for any question, so the longest one need not be computed. A
        # span quoted in a question takes fewer than twice the tokens of the text.
        most_after = self.prompt_encoder.tokens_after_text + 2 * len(self.lists.words.ids)
        if len(ids) + most_after > free:
            strings = {self.task.text[slice(*span)] for span in spans}
            free -= max(self.prompt_encoder.longest_question(string) for string in strings)
            while words and len(ids) > free:
                words.pop()
                ids = self.lists.spell(words)
        return ids


class _ListedString:
    """A string of a decoded list, with its occurrences in the text."""

    def __init__(self, occurrences: List[CharSpan]) -> None:
        self.occurrences = occurrences


def _share_beginning(
    tree: Tree, parent: Node, questions: Sequence[Sequence[int]]
) -> List[Tuple[Node, Sequence[int]]]:
    """Add the common beginning of several questions to the tree.

    RETURNS (List[Tuple[Node, Sequence[int]]]): For each question, the node to add it to, and the tokens
        that are still missing.
    """
    shared = common_prefix(questions)
    if len(questions) == 1 or not shared:
        return [(parent, question) for question in questions]
    begin = tree.add(parent, questions[0][:shared])
    return [(begin, question[shared:]) for question in questions]


def _score_choices(
    tree: Tree, parent: Node, question: Sequence[int], choices: Choices
) -> Dict[Tuple[int, ...], Node]:
    """Add a question with all its possible answers to the tree, so that one pass scores them all. Next
    tokens are scored at the end of the question, and after each beginning that several answers share.

    RETURNS (Dict[Tuple[int, ...], Node]): The nodes with scores, by the beginning of the answer.
    """
    nodes: Dict[Tuple[int, ...], Node] = {}
    nodes[()] = tree.add(parent, question, {-1: choices.allowed(())})
    for begin in sorted(_shared_beginnings(choices)):
        nodes[begin] = tree.add(nodes[()], begin, {-1: choices.allowed(begin)})
    return nodes


def _shared_beginnings(choices: Choices) -> List[Tuple[int, ...]]:
    """RETURNS (List[Tuple[int, ...]]): The beginnings after which more than one token is possible."""
    begins = {s[:k] for s in choices.sequences for k in range(1, len(s))}
    return [begin for begin in begins if len(choices.allowed(begin)) > 1]


def _choice_probabilities(
    nodes: Mapping[Tuple[int, ...], Node], choices: Choices
) -> Iterator[float]:
    """YIELDS (float): The probability of each choice. They add up to 1."""
    for sequence in choices.sequences:
        total = 0.0
        for k, token in enumerate(sequence):
            if sequence[:k] in nodes:
                scores = nodes[sequence[:k]].scores(-1)
                total += float(scores.log_probs[list(scores.ids).index(token)])
        yield math.exp(total)
