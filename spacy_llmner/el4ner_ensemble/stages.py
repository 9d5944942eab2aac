"""The stages one after another: what all voters say about some texts (methods.md 4a)."""

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
from .call_counts import CallCounts
from .interfaces import NONE, Chars, LabelSet, Task, Voter
from .polling import VoterPoll
from .vote_calibration import corrected
from .voter.llm_voter import ModelResidency
from .voting import Ballot, count_votes

# Per voter, how likely each type is.
Said = Dict[str, Dict[str, float]]


@dataclass(frozen=True)
class EnsembleSettings:
    """How the voters decide.

    vote (str): "majority" or "probability", see count_votes.
    verifier (Optional[str]): The voter that verifies; None to keep all that is voted for.
    verify_threshold (float): What is less likely to be true is dropped.
    skip_unanimous (bool): What all voters agree about is not verified.
    factors (Mapping[str, Mapping[str, float]]): Correct what each voter says about each type, see
        calibration.
    weights (Mapping[str, float]): Voters' weights are multiplied by these, see calibration.
    """

    vote: str
    verifier: Optional[str]
    verify_threshold: float
    skip_unanimous: bool
    factors: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    weights: Mapping[str, float] = field(default_factory=dict)


@dataclass
class Decision:
    """What became of a span that a voter found.

    label (str): The type that it was voted to be; NONE if no entity.
    kept (bool): It was voted to be an entity, and not found to be wrong.
    voted (float): Mean probability of its type over the voters.
    proposed (List[str]): The voters that found it.
    votes (Dict[str, Tuple[str, float]]): Each voter's type and its probability.
    verified (Optional[float]): How likely the verifier took it; None if it was not asked.
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
        return self.voted * (1.0 if self.verified is None else self.verified)


class Ensemble:
    """Runs the stages.

    voters (Sequence[Voter]): The members, in the order of their names.
    residency (ModelResidency): Which LLMs are in memory.
    label_set (LabelSet): What is asked for.
    settings (EnsembleSettings): How they decide.
    max_batch_tokens (int): Tokens of texts that are kept in memory at once.
    name (str): Of the component, for messages.

    call_counts (CallCounts): What was done so far.
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
        self, tasks: Sequence[Task], tell: Optional[Callable[[int], Any]] = None
    ) -> List[Dict[str, List[Chars]]]:
        """Stage 1: what each voter takes for entities without demonstrations.

        tasks (Sequence[Task]): The texts, before they get demonstrations.
        tell (Optional[Callable[[int], Any]]): Is told how many further texts a voter has read.
        RETURNS (List[Dict[str, List[Chars]]]): For each task, by voter, without those that failed on it.
        """
        return self._extract(self._poll(tasks, keep=False, tell=tell), "pre_extraction")

    def decide(self, tasks: Sequence[Task]) -> List[List[Decision]]:
        """Stages 2 to 4.

        tasks (Sequence[Task]): The texts with their demonstrations.
        RETURNS (List[List[Decision]]): For each task, about all spans that were found, in the order of
            the text.
        RAISES (LLMNERError): If all voters failed on a task (DocumentError), or one can't be used at all.
        """
        with closing(self._polls(tasks)) as polls:
            return [decisions for poll in polls for decisions in self._stages(poll)]

    def poll(self, tasks: Sequence[Task]) -> List[Dict[Chars, Said]]:
        """Stages 2 and 3, without deciding.

        tasks (Sequence[Task]): The texts with their demonstrations.
        RETURNS (List[Dict[Chars, Said]]): For each task and span, what the voters say, uncorrected.
        RAISES (LLMNERError): See decide.
        """
        out: List[Dict[Chars, Said]] = []
        with closing(self._polls(tasks)) as polls:
            for poll in polls:
                unions = [union_of(by_voter) for by_voter in self._propose(poll)]
                said = self._classify(poll, unions)
                out += [dict(zip(*of_task)) for of_task in zip(unions, said)]
        return out

    def _polls(self, tasks: Sequence[Task]) -> Generator[VoterPoll, None, None]:
        self.check_any_left(tasks)
        for chunk in self._chunks(tasks):
            poll = self._poll(chunk, keep=self.residency.all_fit)
            try:
                yield poll
            finally:
                poll.close()

    def _poll(self, tasks: Sequence[Task], *, keep: bool, tell: Any = None) -> VoterPoll:
        return VoterPoll(
            self.voters,
            self.residency,
            self.label_set,
            self.call_counts,
            tasks,
            keep=keep,
            tell=tell,
        )

    def all_failed(self, task: Task) -> bool:
        return len(task.failed) == len(self.voters)

    def check_any_left(self, tasks: Sequence[Task]) -> None:
        """RAISES (DocumentError): If no voter is left for a task."""
        for task in tasks:
            if self.all_failed(task):
                failed = "; ".join(f"{name}: {why}" for name, why in task.failed.items())
                raise DocumentError(Errors.E069.format(name=self.name, failed=failed))

    def _chunks(self, tasks: Sequence[Task]) -> Iterator[List[Task]]:
        """Keep together what is in memory at the same time. LLMs that take turns read all texts, stage by
        stage, before the next one is loaded."""
        chunk: List[Task] = []
        held = 0
        for task in tasks:
            size = self._size(task) if self.residency.all_fit else 0
            if chunk and held + size > self.max_batch_tokens:
                yield chunk
                chunk, held = [], 0
            chunk.append(task)
            held += size
        if chunk:
            yield chunk

    def _size(self, task: Task) -> int:
        """RETURNS (int): Tokens that the voter with the most of them keeps for a task."""
        size = 0
        for voter in self.voters:
            if voter.name not in task.failed:
                try:
                    size = max(size, voter.size(task, self.label_set))
                except LLMNERError:
                    raise
                except Exception as e:
                    task.leave_out(voter.name, "reading", e)
        return size

    def _stages(self, poll: VoterPoll) -> List[List[Decision]]:
        tasks = poll.tasks
        proposed = self._propose(poll)
        unions = [union_of(by_voter) for by_voter in proposed]
        ballots = [self._ballots(said) for said in self._classify(poll, unions)]
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

    def _propose(self, poll: VoterPoll) -> List[Dict[str, List[Chars]]]:
        proposed = self._extract(poll, "extraction")
        self.check_any_left(poll.tasks)
        return proposed

    def _extract(self, poll: VoterPoll, stage: str) -> List[Dict[str, List[Chars]]]:
        out: List[Dict[str, List[Chars]]] = [{} for _ in poll.tasks]
        answers = poll.ask_all(stage, lambda session, rows: session.extract(), check=_check_spans)
        for name, of_voter in answers.items():
            for row, spans in enumerate(of_voter):
                if spans is not None:
                    out[row][name] = self._inside(poll.tasks[row], spans)
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
                self.call_counts.dropped += 1
        return sorted(out)

    def _classify(self, poll: VoterPoll, unions: Sequence[Sequence[Chars]]) -> List[List[Said]]:
        said: List[List[Said]] = [[{} for _ in u] for u in unions]
        answers = poll.ask_all(
            "classification",
            lambda session, rows: session.classify([unions[row] for row in rows]),
            sizes=[len(union) for union in unions],
            check=_check_distributions,
        )
        for name, of_voter in answers.items():
            for row, answer in enumerate(of_voter):
                for k, types in enumerate(() if answer is None else answer):
                    # Plain numbers, whatever a voter computes with: what is decided may be saved.
                    known = {
                        label: float(p)
                        for label, p in types.items()
                        if label == NONE or label in self.label_set.types
                    }
                    self.call_counts.dropped += len(types) - len(known)
                    if known:
                        said[row][k][name] = known
        self.check_any_left(poll.tasks)
        return said

    def _ballots(self, said: Sequence[Said]) -> List[Ballot]:
        fitted = self.settings.weights
        weights = {voter.name: voter.weight * fitted.get(voter.name, 1.0) for voter in self.voters}
        factors, labels = self.settings.factors, list(self.label_set.types)
        out = []
        for answers in said:
            answers = {name: corrected(p, factors.get(name, {})) for name, p in answers.items()}
            out.append(count_votes(answers, weights, labels, self.settings.vote))
        return out

    def _verify(
        self, poll: VoterPoll, unions: Sequence[Sequence[Chars]], claims: Sequence[Sequence[Any]]
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
            sizes=[len(said) for said in claims],
            check=_check_probabilities,
        )
        for row, answer in enumerate(answers):
            if answer is not None:
                out[row] = dict(zip(claims[row], map(float, answer)))
        return out


def union_of(proposed: Mapping[str, Sequence[Chars]]) -> List[Chars]:
    """RETURNS (List[Chars]): The spans that any voter found, in the order of the text."""
    return sorted({span for spans in proposed.values() for span in spans})


def _has_letter(task: Task, word: int) -> bool:
    start, end = task.words[word]
    return any(c.isalnum() for c in task.text[start:end])


def _check_spans(answer: Sequence[Chars]) -> None:
    for start, end in answer:
        # They raise if it is no number of a character.
        index(start)
        index(end)


def _check_distributions(answer: Sequence[Mapping[str, float]]) -> None:
    for types in answer:
        _check_probabilities(list(types.values()))


def _check_probabilities(answer: Sequence[float]) -> None:
    for p in answer:
        if not (math.isfinite(p) and -1e-6 <= p <= 1 + 1e-6):
            raise ValueError(f"{p} is no probability")
