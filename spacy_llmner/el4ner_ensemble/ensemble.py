"""The stages one after another: what all voters say about some texts (methods.md 4a)."""

import logging
import math
from dataclasses import dataclass, field, fields, replace
from typing import Any, Callable, Dict, Iterator, List, Mapping, Optional, Sequence, Tuple

import torch

from ..errors import Errors, LLMNERError
from .tasks import NONE, Asked, Chars, Session, Task, Voter
from .voters import Turns
from .votes import Ballot, count_votes

logger = logging.getLogger("spacy_llmner")


@dataclass(frozen=True)
class EnsembleSettings:
    """How the voters decide.

    vote (str): "majority" or "probability", see count_votes.
    verifier (Optional[str]): The voter that verifies; None to keep all that is voted for.
    verify_threshold (float): What is less likely to be true is dropped.
    skip_unanimous (bool): What all voters agree about is not verified.
    """

    vote: str
    verifier: Optional[str]
    verify_threshold: float
    skip_unanimous: bool


@dataclass
class Work:
    """LLM calls as the paper counts them, and what went through the LLMs.

    One call is one voter with one text in one of the first three stages, and one claim in the fourth.
    """

    pre_extraction: int = 0
    extraction: int = 0
    classification: int = 0
    verification: int = 0
    passes: int = 0
    tokens: int = 0
    dropped: int = 0

    @property
    def calls(self) -> int:
        return self.pre_extraction + self.extraction + self.classification + self.verification

    def add(self, other: "Work") -> None:
        for one in fields(self):
            setattr(self, one.name, getattr(self, one.name) + getattr(other, one.name))


@dataclass
class Decision:
    """A span that was voted to be an entity and not found to be wrong.

    voted (float): Mean probability of its type over the voters.
    proposed (List[str]): The voters that found it.
    votes (Dict[str, Tuple[str, float]]): Each voter's type and its probability.
    verified (Optional[float]): How likely the verifier took it; None if it was not asked.
    """

    start: int
    end: int
    label: str
    voted: float
    proposed: List[str]
    votes: Dict[str, Tuple[str, float]]
    verified: Optional[float] = None
    failed: Dict[str, str] = field(default_factory=dict)

    @property
    def score(self) -> float:
        return self.voted * (1.0 if self.verified is None else self.verified)


class Ensemble:
    """Runs the stages.

    voters (Sequence[Voter]): The members, in the order of their names.
    turns (Turns): Which LLMs are in memory.
    asked (Asked): What is asked for.
    settings (EnsembleSettings): How they decide.
    max_batch_tokens (int): Tokens of texts that are kept in memory at once.

    work (Work): What was done so far.
    """

    def __init__(
        self,
        voters: Sequence[Voter],
        turns: Turns,
        asked: Asked,
        settings: EnsembleSettings,
        max_batch_tokens: int,
    ) -> None:
        self.voters = list(voters)
        self.turns = turns
        self.asked = asked
        self.settings = settings
        self.max_batch_tokens = max_batch_tokens
        self.work = Work()

    def pre_extract(self, tasks: Sequence[Task]) -> List[Dict[str, List[Chars]]]:
        """Stage 1: what each voter takes for entities without demonstrations.

        RETURNS (List[Dict[str, List[Chars]]]): For each task, by voter.
        """
        bare = [replace(task, demonstrations=[]) for task in tasks]
        return self._extract(_Panel(self, bare, keep=False), "pre_extraction")

    def decide(self, tasks: Sequence[Task]) -> List[List[Decision]]:
        """Stages 2 to 4.

        tasks (Sequence[Task]): The texts with their demonstrations.
        RETURNS (List[List[Decision]]): For each task, in the order of the text.
        RAISES (LLMNERError): If all voters failed on a task, or one can't be used at all.
        """
        out: List[List[Decision]] = []
        for chunk in self._chunks(tasks):
            panel = _Panel(self, chunk, keep=self.turns.all_fit)
            try:
                out.extend(self._stages(panel))
            finally:
                panel.close()
        return out

    def _chunks(self, tasks: Sequence[Task]) -> Iterator[List[Task]]:
        """Keep together what is in memory at the same time. LLMs that take turns read all texts, stage by
        stage, before the next one is loaded."""
        chunk: List[Task] = []
        held = 0
        for task in tasks:
            size = 0
            if self.turns.all_fit:
                size = max(voter.size(task, self.asked) for voter in self.voters)
            if chunk and held + size > self.max_batch_tokens:
                yield chunk
                chunk, held = [], 0
            chunk.append(task)
            held += size
        if chunk:
            yield chunk

    def _stages(self, panel: "_Panel") -> List[List[Decision]]:
        tasks = panel.tasks
        proposed = self._extract(panel, "extraction")
        unions = [sorted({s for spans in by.values() for s in spans}) for by in proposed]
        ballots = self._classify(panel, unions)
        claims = [
            [
                (*span, ballot.label)
                for span, ballot in zip(union, of_task)
                if ballot.label != NONE and not (self.settings.skip_unanimous and ballot.unanimous)
            ]
            for union, of_task in zip(unions, ballots)
        ]
        truths = self._verify(panel, unions, claims)
        out = []
        for task, union, of_task, by_voter, true in zip(tasks, unions, ballots, proposed, truths):
            decisions = []
            for span, ballot in zip(union, of_task):
                verified = true.get((*span, ballot.label))
                if ballot.label == NONE:
                    continue
                if verified is not None and verified < self.settings.verify_threshold:
                    continue
                names = [name for name, spans in by_voter.items() if span in spans]
                said = ballot.label, ballot.score, names, ballot.votes
                decisions.append(Decision(*span, *said, verified, dict(task.failed)))
            out.append(decisions)
        return out

    def _extract(self, panel: "_Panel", stage: str) -> List[Dict[str, List[Chars]]]:
        out: List[Dict[str, List[Chars]]] = [{} for _ in panel.tasks]
        for voter in self.voters:
            answers = panel.ask(voter, stage, lambda session, rows: session.extract())
            for row, spans in enumerate(answers):
                if spans is not None:
                    out[row][voter.name] = self._inside(panel.tasks[row], spans)
        panel.check_any_left()
        return out

    def _inside(self, task: Task, spans: Sequence[Chars]) -> List[Chars]:
        """Drop what does not begin and end with words of the text, and the punctuation around the rest."""
        starts = {start: k for k, (start, _) in enumerate(task.words)}
        ends = {end: k for k, (_, end) in enumerate(task.words)}
        out = set()
        for start, end in spans:
            first, last = starts.get(start, 0), ends.get(end, -1)
            if start not in starts:
                last = -1
            while first <= last and not _has_letter(task, first):
                first += 1
            while first <= last and not _has_letter(task, last):
                last -= 1
            if first <= last:
                out.add((task.words[first][0], task.words[last][1]))
            else:
                self.work.dropped += 1
        return sorted(out)

    def _classify(self, panel: "_Panel", unions: Sequence[Sequence[Chars]]) -> List[List[Ballot]]:
        said: List[List[Dict[str, Mapping[str, float]]]] = [[{} for _ in u] for u in unions]
        for voter in self.voters:
            answers = panel.ask(
                voter,
                "classification",
                lambda session, rows: session.classify([unions[row] for row in rows]),
                sizes=[len(union) for union in unions],
                check=_distributions,
            )
            for row, answer in enumerate(answers):
                for k, types in enumerate(answer or ()):
                    known = {x: p for x, p in types.items() if x == NONE or x in self.asked.types}
                    self.work.dropped += len(types) - len(known)
                    if known:
                        said[row][k][voter.name] = known
        panel.check_any_left()
        weights = {voter.name: voter.weight for voter in self.voters}
        labels = list(self.asked.types)
        return [
            [count_votes(answers, weights, labels, self.settings.vote) for answers in of_task]
            for of_task in said
        ]

    def _verify(
        self, panel: "_Panel", unions: Sequence[Sequence[Chars]], claims: Sequence[Sequence[Any]]
    ) -> List[Dict[Any, float]]:
        out: List[Dict[Any, float]] = [{} for _ in panel.tasks]
        if self.settings.verifier is None:
            return out
        voter = next(v for v in self.voters if v.name == self.settings.verifier)
        answers = panel.ask(
            voter,
            "verification",
            lambda session, rows: session.verify(
                [unions[row] for row in rows], [claims[row] for row in rows]
            ),
            sizes=[len(said) for said in claims],
            check=_probabilities,
        )
        for row, answer in enumerate(answers):
            if answer is not None:
                out[row] = dict(zip(claims[row], answer))
        return out


class _Panel:
    """The voters with some tasks before them. A voter that fails on one is left out there, and only there.

    keep (bool): A voter keeps what it read from one stage to the next.
    """

    def __init__(self, ensemble: Ensemble, tasks: Sequence[Task], *, keep: bool) -> None:
        self.ensemble = ensemble
        self.tasks = list(tasks)
        self.keep = keep
        self._sessions: Dict[str, Tuple[List[int], Session]] = {}

    def ask(
        self,
        voter: Voter,
        stage: str,
        question: Callable[[Session, List[int]], Sequence[Any]],
        sizes: Optional[Sequence[int]] = None,
        check: Callable[[Sequence[Any]], None] = lambda answer: None,
    ) -> List[Optional[Any]]:
        """Ask a voter about all tasks on which it has not failed.

        question (Callable): Asks a session for the tasks of these numbers.
        sizes (Optional[Sequence[int]]): How many answers each task needs; tasks that need none are not
            asked about.
        check (Callable): Raises if an answer is nonsense.
        RETURNS (List[Optional[Any]]): By task; None where the voter is left out.
        """
        out: List[Optional[Any]] = [None] * len(self.tasks)
        rows = [row for row, task in enumerate(self.tasks) if voter.name not in task.failed]
        if sizes is not None and not any(sizes[row] for row in rows):
            return out
        self.ensemble.turns.take(voter)
        self._ask(voter, stage, rows, question, sizes, check, out)
        work = self.ensemble.work
        answered = [row for row in rows if out[row] is not None]
        if stage == "verification":
            calls = sum(sizes[row] for row in answered) if sizes else 0
        else:
            calls = sum(sizes is None or sizes[row] > 0 for row in answered)
        setattr(work, stage, getattr(work, stage) + calls)
        return out

    def _ask(
        self,
        voter: Voter,
        stage: str,
        rows: List[int],
        question: Callable[[Session, List[int]], Sequence[Any]],
        sizes: Optional[Sequence[int]],
        check: Callable[[Sequence[Any]], None],
        out: List[Optional[Any]],
    ) -> None:
        work = self.ensemble.work
        try:
            session = self._session(voter, rows)
            passes, tokens = session.passes, session.tokens
            try:
                answers = question(session, rows)
            finally:
                work.passes += session.passes - passes
                work.tokens += session.tokens - tokens
            _check_number(voter, len(answers), len(rows))
            for row, answer in zip(rows, answers):
                if sizes is not None:
                    _check_number(voter, len(answer), sizes[row])
                check(answer)
            for row, answer in zip(rows, answers):
                out[row] = answer
            if not self.keep:
                self._close(voter)
            return
        except LLMNERError:
            raise  # about the voter as such, no text's fault
        except Exception as e:
            self._close(voter)
            if len(rows) == 1:
                reason = f"{stage}: {type(e).__name__}: {e}"
                self.tasks[rows[0]].failed[voter.name] = reason
                logger.warning(
                    "voter '%s' is left out for the text %r (%s)",
                    voter.name,
                    self.tasks[rows[0]].shown[:40],
                    reason,
                )
                return
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        half = len(rows) // 2
        for part in (rows[:half], rows[half:]):
            self._ask(voter, stage, part, question, sizes, check, out)

    def check_any_left(self) -> None:
        """RAISES (LLMNERError): If no voter is left for a task."""
        for task in self.tasks:
            if len(task.failed) == len(self.ensemble.voters):
                failed = "; ".join(f"{name}: {why}" for name, why in task.failed.items())
                raise LLMNERError(Errors.E069.format(failed=failed))

    def close(self) -> None:
        for voter in self.ensemble.voters:
            self._close(voter)

    def _session(self, voter: Voter, rows: List[int]) -> Session:
        """RETURNS (Session): On these tasks: the one that is open, if it is."""
        if voter.name in self._sessions:
            if self._sessions[voter.name][0] == rows:
                return self._sessions[voter.name][1]
            self._close(voter)
        tasks = [self.tasks[row] for row in rows]
        session = voter.session(tasks, self.ensemble.asked, keep=self.keep)
        self._sessions[voter.name] = rows, session
        return session

    def _close(self, voter: Voter) -> None:
        if voter.name in self._sessions:
            self._sessions.pop(voter.name)[1].close()


def _has_letter(task: Task, word: int) -> bool:
    start, end = task.words[word]
    return any(c.isalnum() for c in task.text[start:end])


def _check_number(voter: Voter, given: int, asked: int) -> None:
    if given != asked:
        raise ValueError(Errors.E070.format(name=voter.name, given=given, asked=asked))


def _distributions(answer: Sequence[Mapping[str, float]]) -> None:
    for types in answer:
        _probabilities(list(types.values()))


def _probabilities(answer: Sequence[float]) -> None:
    for p in answer:
        if not (math.isfinite(p) and -1e-6 <= p <= 1 + 1e-6):
            raise ValueError(f"{p} is no probability")
