"""Ask the voters. A voter that fails on a text is left out for that text only."""

from typing import Any, Callable, Dict, List, Optional, Sequence, Tuple

import torch

from ..errors import Errors, LLMNERError
from .call_counts import CallCounts
from .interfaces import LabelSet, Session, Task, Voter
from .voter.llm_voter import ModelResidency

# Number of tasks between two updates of a progress bar: enough for full batches of short texts.
TASKS_PER_UPDATE = 16


class VoterPoll:
    """Asks all voters about a list of tasks, stage by stage.

    voters (Sequence[Voter]): The voters, in the order of their names.
    residency (ModelResidency): Decides which LLMs are in memory.
    label_set (LabelSet): The requested labels.
    call_counts (CallCounts): Counts the calls.
    tasks (Sequence[Task]): The tasks.
    keep (bool): Keep each voter's session open from one stage to the next. Otherwise it is closed after
        each stage.
    progress (Optional[Callable[[int], Any]]): If given, a voter is asked about a few tasks at a time, and
        this function is called with their number each time.
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
        progress: Optional[Callable[[int], Any]] = None,
    ) -> None:
        self.voters = voters
        self.residency = residency
        self.label_set = label_set
        self.call_counts = call_counts
        self.tasks = list(tasks)
        self.keep = keep
        self.progress = progress
        self._sessions: Dict[str, Tuple[List[int], Session]] = {}

    def ask_all(
        self,
        stage: str,
        question: Callable[[Session, List[int]], Sequence[Any]],
        sizes: Optional[Sequence[int]] = None,
        check: Callable[[Any], None] = lambda answer: None,
    ) -> Dict[str, List[Optional[Any]]]:
        """Ask all voters, beginning with those whose LLM is in memory. For the arguments, see `ask`.

        RETURNS (Dict[str, List[Optional[Any]]]): The answers of each voter, in the order of the voters.
        """
        answers = {
            voter.name: self.ask(voter, stage, question, sizes, check)
            for voter in self.residency.loaded_first()
        }
        return {voter.name: answers[voter.name] for voter in self.voters}

    def ask(
        self,
        voter: Voter,
        stage: str,
        question: Callable[[Session, List[int]], Sequence[Any]],
        sizes: Optional[Sequence[int]] = None,
        check: Callable[[Any], None] = lambda answer: None,
    ) -> List[Optional[Any]]:
        """Ask a voter about all tasks on which it has not failed.

        voter (Voter): The voter.
        stage (str): The name of the stage, as in CallCounts.
        question (Callable[[Session, List[int]], Sequence[Any]]): Asks a session. Takes the session and the
            indices of its tasks, and returns an answer for each task.
        sizes (Optional[Sequence[int]]): The number of questions about each task. If all are 0, the voter
            is not asked. None if there is one question about each task.
        check (Callable[[Any], None]): Raises an error if the answer for a task is not valid.
        RETURNS (List[Optional[Any]]): The answer for each task, or None if the voter failed on it.
        """
        out: List[Optional[Any]] = [None] * len(self.tasks)
        rows = [row for row, task in enumerate(self.tasks) if voter.name not in task.failed]
        if not rows or (sizes is not None and not any(sizes[row] for row in rows)):
            return out
        self.residency.reserve(voter)
        size = len(rows) if self.progress is None else TASKS_PER_UPDATE
        for first in range(0, len(rows), size):
            some = rows[first : first + size]
            self._ask(voter, stage, some, question, sizes, check, out)
            if self.progress is not None:
                self.progress(len(some))
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
            raise  # the voter can't be used for any text
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
        """Close all sessions."""
        for voter in self.voters:
            self._close(voter)

    def _session(self, voter: Voter, rows: List[int]) -> Session:
        """RETURNS (Session): The open session if it has these tasks, or a new one."""
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
