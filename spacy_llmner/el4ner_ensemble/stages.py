"""Run the four stages of EL4NER (arXiv 2505.23038) on a list of tasks."""

import math
from contextlib import closing
from dataclasses import dataclass, field
from operator import index
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

from ..errors import DocumentError, Errors, LLMNERError
from ..util import CharSpan
from .call_counts import CallCounts
from .interfaces import NONE, LabelSet, Task, Voter
from .polling import VoterPoll
from .vote_calibration import corrected
from .voter.llm_voter import ModelResidency
from .voting import Ballot, count_votes

# The votes about a span: for each voter, the probability of each label.
SpanVotes = Dict[str, Dict[str, float]]


@dataclass(frozen=True)
class EnsembleSettings:
    """How the ensemble decides.

    vote (str): "majority" or "probability". See `count_votes`.
    verifier (Optional[str]): The voter that verifies entities. None skips the verification.
    verify_threshold (float): Entities with a lower probability from the verifier are dropped.
    skip_unanimous (bool): Don't verify spans that all voters agree on.
    factors (Mapping[str, Mapping[str, float]]): For each voter and label, a factor for the probability. See
        `vote_calibration`.
    weights (Mapping[str, float]): For each voter, a factor for its weight. See `vote_calibration`.
    """

    vote: str
    verifier: Optional[str]
    verify_threshold: float
    skip_unanimous: bool
    factors: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    weights: Mapping[str, float] = field(default_factory=dict)


@dataclass
class Decision:
    """The decision about a span that a voter found.

    start (int): The first character of the span.
    end (int): One past its last character.
    label (str): The result of the vote, or NONE if the vote was that the span is not an entity.
    kept (bool): Whether the vote was that the span is an entity, and the verifier did not reject it.
    voted (float): The mean probability of the label over the voters.
    proposed (List[str]): The voters that found the span.
    votes (Dict[str, Tuple[str, float]]): The vote of each voter: a label and its probability.
    verified (Optional[float]): The probability from the verifier, or None if the span was not verified.
    failed (Dict[str, str]): The voters that failed on the task, with the reason.
    """

    start: int
    end: int
    label: str
    kept: bool
    voted: float
    proposed: List[str]
    votes: Dict[str, Tuple[str, float]]
    verified: Optional[float] = None
    failed: Dict[str, str] = field(default_factory=dict)

    @property
    def score(self) -> float:
        """RETURNS (float): The score of the entity: `voted` times `verified`."""
        return self.voted * (1.0 if self.verified is None else self.verified)


class Ensemble:
    """Runs the stages.

    voters (Sequence[Voter]): The voters, in the order of their names.
    residency (ModelResidency): Decides which LLMs are in memory.
    label_set (LabelSet): The requested labels.
    settings (EnsembleSettings): How the ensemble decides.
    max_batch_tokens (int): Maximum number of tokens of tasks in memory, for each LLM.
    name (str): The name of the component, for messages.
    call_counts (CallCounts): The number of LLM calls so far.
    """

    def __init__(
        self,
        voters: Sequence[Voter],
        residency: ModelResidency,
        label_set: LabelSet,
        settings: EnsembleSettings,
        max_batch_tokens: int,
        name: str = "el4ner_ensemble",
    ) -> None:
        self.name = name
        self.voters = list(voters)
        self.residency = residency
        self.label_set = label_set
        self.settings = settings
        self.max_batch_tokens = max_batch_tokens
        self.call_counts = CallCounts()

    def pre_extract(
        self, tasks: Sequence[Task], progress: Optional[Callable[[int], Any]] = None
    ) -> List[Dict[str, List[CharSpan]]]:
        """Run stage 1: find spans without demonstrations.

        tasks (Sequence[Task]): The tasks, which have no demonstrations yet.
        progress (Optional[Callable[[int], Any]]): Called with the number of tasks that a voter has read
            since the last call.
        RETURNS (List[Dict[str, List[CharSpan]]]): For each task, the spans found by each voter. Voters that
            failed on the task are missing.
        """
        return self._extract(self._poll(tasks, keep=False, progress=progress), "pre_extraction")

    def decide(self, tasks: Sequence[Task]) -> List[List[Decision]]:
        """Run stages 2 to 4.

        tasks (Sequence[Task]): The tasks with their demonstrations.
        RETURNS (List[List[Decision]]): For each task, the decision about each span that was found, in the
            order of the text.
        RAISES (LLMNERError): If all voters failed on a task (DocumentError), or if a voter can't be used
            for any task.
        """
        with closing(self._polls(tasks)) as polls:
            return [decisions for poll in polls for decisions in self._stages(poll)]

    def poll(self, tasks: Sequence[Task]) -> List[Dict[CharSpan, SpanVotes]]:
        """Run stages 2 and 3, without counting the votes.

        tasks (Sequence[Task]): The tasks with their demonstrations.
        RETURNS (List[Dict[CharSpan, SpanVotes]]): For each task, the votes about each span that was found.
            The factors in `settings` are not applied.
        RAISES (LLMNERError): See `decide`.
        """
        out: List[Dict[CharSpan, SpanVotes]] = []
        with closing(self._polls(tasks)) as polls:
            for poll in polls:
                unions = [union_of(by_voter) for by_voter in self._propose(poll)]
                votes = self._classify(poll, unions)
                out += [dict(zip(*of_task)) for of_task in zip(unions, votes)]
        return out

    def _polls(self, tasks: Sequence[Task]) -> Generator[VoterPoll, None, None]:
        self.check_any_left(tasks)
        for chunk in self._chunks(tasks):
            poll = self._poll(chunk, keep=self.residency.all_fit)
            try:
                yield poll
            finally:
                poll.close()

    def _poll(self, tasks: Sequence[Task], *, keep: bool, progress: Any = None) -> VoterPoll:
        return VoterPoll(
            self.voters,
            self.residency,
            self.label_set,
            self.call_counts,
            tasks,
            keep=keep,
            progress=progress,
        )

    def all_failed(self, task: Task) -> bool:
        """RETURNS (bool): Whether all voters failed on a task."""
        return len(task.failed) == len(self.voters)

    def check_any_left(self, tasks: Sequence[Task]) -> None:
        """RAISES (DocumentError): If all voters failed on one of the tasks."""
        for task in tasks:
            if self.all_failed(task):
                failed = "; ".join(f"{name}: {why}" for name, why in task.failed.items())
                raise DocumentError(Errors.E069.format(name=self.name, failed=failed))

    def _chunks(self, tasks: Sequence[Task]) -> Iterator[List[Task]]:
        """Split tasks into chunks that fit into memory. If not all LLMs fit into memory, there is only one
        chunk: each LLM reads all texts of a stage before the next LLM replaces it in memory."""
        chunk: List[Task] = []
        used = 0
        for task in tasks:
            size = self._size(task) if self.residency.all_fit else 0
            if chunk and used + size > self.max_batch_tokens:
                yield chunk
                chunk, used = [], 0
            chunk.append(task)
            used += size
        if chunk:
            yield chunk

    def _size(self, task: Task) -> int:
        """RETURNS (int): The maximum number of tokens that any voter keeps in memory for a task."""
        size = 0
        for voter in self.voters:
            if voter.name not in task.failed:
                try:
                    size = max(size, voter.count_tokens(task, self.label_set))
                except LLMNERError:
                    raise
                except Exception as e:
                    task.leave_out(voter.name, "reading", e)
        return size

    def _stages(self, poll: VoterPoll) -> List[List[Decision]]:
        tasks = poll.tasks
        proposed = self._propose(poll)
        unions = [union_of(by_voter) for by_voter in proposed]
        ballots = [self._ballots(votes) for votes in self._classify(poll, unions)]
        claims = [
            [
                (*span, ballot.label)
                for span, ballot in zip(union, of_task)
                if ballot.label != NONE and not (self.settings.skip_unanimous and ballot.unanimous)
            ]
            for union, of_task in zip(unions, ballots)
        ]
        truths = self._verify(poll, unions, claims)
        out = []
        for task, union, of_task, by_voter, true in zip(tasks, unions, ballots, proposed, truths):
            decisions = []
            for span, ballot in zip(union, of_task):
                verified = true.get((*span, ballot.label))
                wrong = verified is not None and verified < self.settings.verify_threshold
                names = [name for name, spans in by_voter.items() if span in spans]
                decisions.append(
                    Decision(
                        *span,
                        label=ballot.label,
                        kept=ballot.label != NONE and not wrong,
                        voted=ballot.score,
                        proposed=names,
                        votes=ballot.votes,
                        verified=verified,
                        failed=dict(task.failed),
                    )
                )
            out.append(decisions)
        return out

    def _propose(self, poll: VoterPoll) -> List[Dict[str, List[CharSpan]]]:
        proposed = self._extract(poll, "extraction")
        self.check_any_left(poll.tasks)
        return proposed

    def _extract(self, poll: VoterPoll, stage: str) -> List[Dict[str, List[CharSpan]]]:
        out: List[Dict[str, List[CharSpan]]] = [{} for _ in poll.tasks]
        answers = poll.ask_all(stage, lambda session, rows: session.extract(), check=_check_spans)
        for name, of_voter in answers.items():
            for row, spans in enumerate(of_voter):
                if spans is not None:
                    out[row][name] = self._inside(poll.tasks[row], spans)
        return out

    def _inside(self, task: Task, spans: Sequence[CharSpan]) -> List[CharSpan]:
        """Drop spans that don't start and end at word boundaries, and trim punctuation."""
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
                self.call_counts.dropped += 1
        return sorted(out)

    def _classify(
        self, poll: VoterPoll, unions: Sequence[Sequence[CharSpan]]
    ) -> List[List[SpanVotes]]:
        votes: List[List[SpanVotes]] = [[{} for _ in u] for u in unions]
        answers = poll.ask_all(
            "classification",
            lambda session, rows: session.classify([unions[row] for row in rows]),
            sizes=[len(union) for union in unions],
            check=_check_distributions,
        )
        for name, of_voter in answers.items():
            for row, answer in enumerate(of_voter):
                for k, probabilities in enumerate(() if answer is None else answer):
                    # Converted to plain numbers, since decisions can be saved with the Doc.
                    known = {
                        label: float(p)
                        for label, p in probabilities.items()
                        if label == NONE or label in self.label_set.types
                    }
                    self.call_counts.dropped += len(probabilities) - len(known)
                    if known:
                        votes[row][k][name] = known
        self.check_any_left(poll.tasks)
        return votes

    def _ballots(self, votes: Sequence[SpanVotes]) -> List[Ballot]:
        fitted = self.settings.weights
        weights = {voter.name: voter.weight * fitted.get(voter.name, 1.0) for voter in self.voters}
        factors, labels = self.settings.factors, list(self.label_set.types)
        out = []
        for of_span in votes:
            answers = {name: corrected(p, factors.get(name, {})) for name, p in of_span.items()}
            out.append(count_votes(answers, weights, labels, self.settings.vote))
        return out

    def _verify(
        self, poll: VoterPoll, unions: Sequence[Sequence[CharSpan]], claims: Sequence[Sequence[Any]]
    ) -> List[Dict[Any, float]]:
        out: List[Dict[Any, float]] = [{} for _ in poll.tasks]
        if self.settings.verifier is None:
            return out
        voter = next(v for v in self.voters if v.name == self.settings.verifier)
        answers = poll.ask(
            voter,
            "verification",
            lambda session, rows: session.verify(
                [unions[row] for row in rows], [claims[row] for row in rows]
            ),
            sizes=[len(of_task) for of_task in claims],
            check=_check_probabilities,
        )
        for row, answer in enumerate(answers):
            if answer is not None:
                out[row] = dict(zip(claims[row], map(float, answer)))
        return out


def union_of(proposed: Mapping[str, Sequence[CharSpan]]) -> List[CharSpan]:
    """RETURNS (List[CharSpan]): The union of the spans that the voters found, in the order of the text."""
    return sorted({span for spans in proposed.values() for span in spans})


def _has_letter(task: Task, word: int) -> bool:
    start, end = task.words[word]
    return any(c.isalnum() for c in task.text[start:end])


def _check_spans(answer: Sequence[CharSpan]) -> None:
    for start, end in answer:
        # These raise if a boundary is not a whole number.
        index(start)
        index(end)


def _check_distributions(answer: Sequence[Mapping[str, float]]) -> None:
    for probabilities in answer:
        _check_probabilities(list(probabilities.values()))


def _check_probabilities(answer: Sequence[float]) -> None:
    for p in answer:
        if not (math.isfinite(p) and -1e-6 <= p <= 1 + 1e-6):
            raise ValueError(f"{p} is not a probability")
