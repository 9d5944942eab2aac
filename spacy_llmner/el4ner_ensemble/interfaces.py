"""The interface between the ensemble and its voters, in plain values, so that any model can vote."""

import logging
from dataclasses import dataclass, field
from typing import Any, Dict, List, Mapping, Protocol, Sequence, Tuple

from ..util import CharSpan

logger = logging.getLogger("spacy_llmner")

# A span with a label: "this span is an entity of this type".
Claim = Tuple[int, int, str]
# The label that a voter gives to a span that is not an entity.
NONE = ""


@dataclass(frozen=True)
class Demonstration:
    """A labelled text that is shown to the LLMs in the prompt.

    text (str): The text.
    entities (Tuple[Claim, ...]): Its entities, in the order of the text.
    others (Tuple[CharSpan, ...]): Spans of the text that are not entities.
    """

    text: str
    entities: Tuple[Claim, ...]
    others: Tuple[CharSpan, ...] = ()


@dataclass
class Task:
    """A text, or a window of a longer text, in which the voters find entities.

    text (str): The whole text of the Doc. All character offsets refer to it.
    words (List[CharSpan]): The words of the window. Spans start and end at word boundaries only.
    demonstrations (List[Demonstration]): The demonstrations in the prompt, the most similar one last.
    failed (Dict[str, str]): The voters that failed on this task, by name, with the reason.
    calls (int): The number of LLM calls so far. See CallCounts.
    """

    text: str
    words: List[CharSpan]
    demonstrations: List[Demonstration] = field(default_factory=list)
    failed: Dict[str, str] = field(default_factory=dict)
    calls: int = 0

    @property
    def start(self) -> int:
        """RETURNS (int): The first character of the window."""
        return self.words[0][0]

    @property
    def window_text(self) -> str:
        """RETURNS (str): The text of the window, as it appears in the prompt."""
        return self.text[self.start : self.words[-1][1]]

    def leave_out(self, name: str, stage: str, error: Exception) -> None:
        """Exclude a voter from the rest of this task, because it failed in a stage."""
        self.failed[name] = f"{stage}: {type(error).__name__}: {error}"
        text, reason = self.window_text[:40], self.failed[name]
        logger.warning("voter '%s' is left out for the text %r (%s)", name, text, reason)


@dataclass(frozen=True)
class LabelSet:
    """The requested labels.

    types (Mapping[str, str]): The labels, each with its name in the prompts.
    lang (str): Language code of the pipeline. It decides which of the package's prompts are used.
    """

    types: Mapping[str, str]
    lang: str = "en"


class Session(Protocol):
    """A voter's work on a list of tasks. Each method returns the answers for all tasks, in order.

    passes (int): Forward passes of the LLM so far.
    tokens (int): Tokens that the LLM has read so far.
    """

    passes: int
    tokens: int

    def extract(self) -> Sequence[Sequence[CharSpan]]:
        """List the entities (stages 1 and 2).

        RETURNS (Sequence[Sequence[CharSpan]]): For each task, the spans that the voter considers entities.
        """

    def classify(
        self, spans: Sequence[Sequence[CharSpan]]
    ) -> Sequence[Sequence[Mapping[str, float]]]:
        """Classify spans (stage 3).

        spans (Sequence[Sequence[CharSpan]]): For each task, the spans that any voter found.
        RETURNS (Sequence[Sequence[Mapping[str, float]]]): For each span, the probability of each label.
            NONE stands for "no entity".
        """

    def verify(
        self, spans: Sequence[Sequence[CharSpan]], claims: Sequence[Sequence[Claim]]
    ) -> Sequence[Sequence[float]]:
        """Verify claims (stage 4).

        spans (Sequence[Sequence[CharSpan]]): For each task, the spans that were classified.
        claims (Sequence[Sequence[Claim]]): For each task, claims about some of these spans.
        RETURNS (Sequence[Sequence[float]]): For each claim, the probability that it is true.
        """

    def close(self) -> None:
        """Free the memory of the session."""


class Voter(Protocol):
    """A member of the ensemble. Any object with these attributes and methods can be a voter.

    The ensemble first calls `register`. At initialization it calls `prepare`, and `restore` when a saved
    pipeline is loaded. It then reads all texts in sessions, several texts in one session.

    name (str): The voter's name in the config.
    weight (float): The weight of its vote, above 0.
    """

    name: str
    weight: float

    @property
    def llm_key(self) -> Any:
        """RETURNS (Any): A hashable key of the LLM. Voters with equal keys share one LLM in memory. None
        for a voter without an LLM in memory."""

    @property
    def identity(self) -> Any:
        """RETURNS (Any): A hashable value for everything that the answers depend on: the LLM, its prompts
        and so on. Two voters of an ensemble can't have equal identities, because they would always give
        the same answers."""

    def register(self, name: str, max_batch_tokens: int, component: str) -> None:
        """Join an ensemble.

        name (str): The voter's name in the config.
        max_batch_tokens (int): Maximum number of tokens to keep in memory.
        component (str): The name of the ensemble, for messages.
        """

    def prepare(self, label_set: LabelSet) -> Dict[str, Any]:
        """Prepare for a label set, when the ensemble is initialized.

        label_set (LabelSet): The requested labels.
        RETURNS (Dict[str, Any]): Plain values to save with the pipeline, such as the LLM's fingerprint.
        """

    def restore(self, saved: Mapping[str, Any]) -> None:
        """Restore the values that `prepare` returned, when a saved pipeline is loaded. If the voter has
        another LLM, its next use raises an LLMMismatchError.

        saved (Mapping[str, Any]): The saved values.
        """

    def word_lengths(self, text: str, words: Sequence[CharSpan]) -> Sequence[int]:
        """Measure words, in the unit of `capacity`.

        text (str): The text of a Doc.
        words (Sequence[CharSpan]): Its words.
        RETURNS (Sequence[int]): The length of each word in tokens.
        """

    def capacity(self, label_set: LabelSet) -> int:
        """Compute how long a window can be.

        label_set (LabelSet): The requested labels.
        RETURNS (int): The maximum length of a window in tokens, see `word_lengths`.
        RAISES (LLMNERError): If the prompt leaves no room for a text.
        """

    def count_tokens(self, task: Task, label_set: LabelSet) -> int:
        """Estimate the memory that a task takes.

        task (Task): The task, with its demonstrations.
        label_set (LabelSet): The requested labels.
        RETURNS (int): About how many tokens a session keeps in memory for the task.
        """

    def session(self, tasks: Sequence[Task], label_set: LabelSet, *, keep: bool) -> Session:
        """Open a session. For stage 1, the tasks have no demonstrations yet.

        tasks (Sequence[Task]): The tasks.
        label_set (LabelSet): The requested labels.
        keep (bool): Keep the demonstrations and texts in memory from one stage to the next.
        RETURNS (Session): The session.
        """

    def unload(self) -> None:
        """Free the LLM's weights. The next use loads them again."""
