"""Asking the voters: one that fails on a text is left out there, and only there."""

from typing import Any, Callable, Dict, List, Optional, Sequence, Tuple

import torch

from ..errors import Errors, LLMNERError
from .call_counts import CallCounts
from .interfaces import LabelSet, Session, Task, Voter
from .voter.llm_voter import ModelResidency

# Tasks of which a progress bar is told together: enough for full batches of short texts.
TOLD_AFTER = 16


class VoterPoll:
    """The voters with some tasks before them.

    voters (Sequence[Voter]): In the order of their names.
    residency (ModelResidency): Which LLMs are in memory.
    label_set (LabelSet): What is asked for.
    call_counts (CallCounts): What is done is added to it.
    tasks (Sequence[Task]): The texts.
    keep (bool): A voter keeps what it read from one stage to the next.
    tell (Optional[Callable[[int], Any]]): If given, a voter is asked about a few tasks at a time, and it is
        told after each time how many they were.
    """

    def __init__(
        self,
        voters: Sequence[Voter],
        residency: ModelResidency,
        label_set: LabelSet,
        call_counts: CallCounts,
        tasks: Sequence[Task],
        *,
        keep: bool,
        tell: Optional[Callable[[int], Any]] = None,
    ) -> None:
        self.voters = voters
        self.residency = residency
        self.label_set = label_set
        self.call_counts = call_counts
        self.tasks = list(tasks)
        self.keep = keep
        self.tell = tell
        self._sessions: Dict[str, Tuple[List[int], Session]] = {}

    def ask_all(
        self,
        stage: str,
        question: Callable[[Session, List[int]], Sequence[Any]],
        sizes: Optional[Sequence[int]] = None,
        check: Callable[[Any], None] = lambda answer: None,
    ) -> Dict[str, List[Optional[Any]]]:
        """Ask all voters, first those whose LLM is in memory. See `ask`.

        RETURNS (Dict[str, List[Optional[Any]]]): By voter, in their order.
        """
        given = {
            voter.name: self.ask(voter, stage, question, sizes, check)
            for voter in self.residency.loaded_first()
        }
        return {voter.name: given[voter.name] for voter in self.voters}

    def ask(
        self,
        voter: Voter,
        stage: str,
        question: Callable[[Session, List[int]], Sequence[Any]],
        sizes: Optional[Sequence[int]] = None,
        check: Callable[[Any], None] = lambda answer: None,
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
        if not rows or (sizes is not None and not any(sizes[row] for row in rows)):
            return out
        self.residency.load(voter)
        at_once = len(rows) if self.tell is None else TOLD_AFTER
        for first in range(0, len(rows), at_once):
            some = rows[first : first + at_once]
            self._ask(voter, stage, some, question, sizes, check, out)
            if self.tell is not None:
                self.tell(len(some))
        for row in rows:
            if out[row] is not None:
                calls = 1 if sizes is None else sizes[row]
                calls = calls if stage == "verification" else min(calls, 1)
                self.tasks[row].calls += calls
                setattr(self.call_counts, stage, getattr(self.call_counts, stage) + calls)
        return out

    def _ask(
        self,
        voter: Voter,
        stage: str,
        rows: List[int],
        question: Callable[[Session, List[int]], Sequence[Any]],
        sizes: Optional[Sequence[int]],
        check: Callable[[Any], None],
        out: List[Optional[Any]],
    ) -> None:
        try:
            session = self._session(voter, rows)
            passes, tokens = session.passes, session.tokens
            try:
                answers = question(session, rows)
            finally:
                self.call_counts.passes += session.passes - passes
                self.call_counts.tokens += session.tokens - tokens
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
                self.tasks[rows[0]].leave_out(voter.name, stage, e)
                return
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        half = len(rows) // 2
        for part in (rows[:half], rows[half:]):
            self._ask(voter, stage, part, question, sizes, check, out)

    def close(self) -> None:
        for voter in self.voters:
            self._close(voter)

    def _session(self, voter: Voter, rows: List[int]) -> Session:
        """RETURNS (Session): On these tasks: the one that is open, if it is."""
        if voter.name in self._sessions:
            if self._sessions[voter.name][0] == rows:
                return self._sessions[voter.name][1]
            self._close(voter)
        tasks = [self.tasks[row] for row in rows]
        session = voter.session(tasks, self.label_set, keep=self.keep)
        self._sessions[voter.name] = rows, session
        return session

    def _close(self, voter: Voter) -> None:
        if voter.name in self._sessions:
            self._sessions.pop(voter.name)[1].close()


def _check_number(voter: Voter, given: int, asked: int) -> None:
    if given != asked:
        raise ValueError(Errors.E070.format(name=voter.name, given=given, asked=asked))
