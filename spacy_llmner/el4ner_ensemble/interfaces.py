"""What the voters are asked, and what they say: plain values, whatever stands behind a voter."""

import logging
from dataclasses import dataclass, field
from typing import Any, Dict, List, Mapping, Protocol, Sequence, Tuple

logger = logging.getLogger("spacy_llmner")

# First character of a span, and one past the last.
Chars = Tuple[int, int]
# The same with a type.
Claim = Tuple[int, int, str]
# The vote that a span is no entity.
NONE = ""


@dataclass(frozen=True)
class Demonstration:
    """A labelled text that is shown to the LLMs.

    text (str): The text.
    entities (Tuple[Claim, ...]): Its entities, in the order of the text.
    others (Tuple[Chars, ...]): Spans in it that are no entity.
    """

    text: str
    entities: Tuple[Claim, ...]
    others: Tuple[Chars, ...] = ()


@dataclass
class Task:
    """A text, or a window of it, that the voters work on.

    text (str): The whole text of the Doc; all characters are counted in it.
    words (List[Chars]): The words of the window; no span begins or ends elsewhere.
    demonstrations (List[Demonstration]): The most similar one last.
    failed (Dict[str, str]): Voters that are left out here, and why.
    calls (int): LLM calls so far, see Work.
    """

    text: str
    words: List[Chars]
    demonstrations: List[Demonstration] = field(default_factory=list)
    failed: Dict[str, str] = field(default_factory=dict)
    calls: int = 0

    @property
    def start(self) -> int:
        """First character of the window."""
        return self.words[0][0]

    @property
    def shown(self) -> str:
        """What of the text is in the prompt."""
        return self.text[self.start : self.words[-1][1]]

    def leave_out(self, name: str, stage: str, error: Exception) -> None:
        """From now on the others decide here without this voter."""
        self.failed[name] = f"{stage}: {type(error).__name__}: {error}"
        text, reason = self.shown[:40], self.failed[name]
        logger.warning("voter '%s' is left out for the text %r (%s)", name, text, reason)


@dataclass(frozen=True)
class LabelSet:
    """What is asked for.

    types (Mapping[str, str]): What each label is called in a prompt.
    lang (str): Language of the pipeline: decides which of the package's prompts are used.
    """

    types: Mapping[str, str]
    lang: str = "en"


class Session(Protocol):
    """A voter at work on some tasks. Answers are in the order of the tasks.

    passes, tokens (int): What went through its LLM.
    """

    passes: int
    tokens: int

    def extract(self) -> Sequence[Sequence[Chars]]:
        """Stage 2. RETURNS (Sequence[Sequence[Chars]]): The spans that the voter takes for entities."""

    def classify(self, spans: Sequence[Sequence[Chars]]) -> Sequence[Sequence[Mapping[str, float]]]:
        """Stage 3. RETURNS (Sequence[Sequence[Mapping[str, float]]]): For each span, how likely it is of
        each type; NONE stands for no entity."""

    def verify(
        self, spans: Sequence[Sequence[Chars]], claims: Sequence[Sequence[Claim]]
    ) -> Sequence[Sequence[float]]:
        """Stage 4.

        spans (Sequence[Sequence[Chars]]): Those that were classified.
        RETURNS (Sequence[Sequence[float]]): How likely each claim about some of them is true."""

    def close(self) -> None:
        """Give back what the session holds in memory."""


class Voter(Protocol):
    """One member of the ensemble. Anything that has these methods will do.

    name (str): How the config calls it.
    weight (float): What its vote counts.
    """

    name: str
    weight: float

    @property
    def memory(self) -> Any:
        """RETURNS (Any): Voters of equal value share an LLM. None for one that takes no memory."""

    @property
    def identity(self) -> Any:
        """RETURNS (Any): Voters of equal manner always say the same."""

    def join(self, name: str, max_batch_tokens: int, component: str) -> None:
        """Become a member of an ensemble.

        max_batch_tokens (int): Tokens to keep in memory at once.
        component (str): The ensemble's name, for messages."""

    def describe(self, label_set: LabelSet) -> Dict[str, Any]:
        """Get ready to be asked for these types.

        RETURNS (Dict[str, Any]): What is saved of the voter: plain values."""

    def restore(self, saved: Mapping[str, Any]) -> None:
        """Take what `describe` gave; from now on, use raises LLMMismatchError if it doesn't fit."""

    def lengths(self, text: str, words: Sequence[Chars]) -> Sequence[int]:
        """RETURNS (Sequence[int]): How much room each word of a text takes."""

    def capacity(self, label_set: LabelSet) -> int:
        """RETURNS (int): How much room there is for the words of a text.
        RAISES (LLMNERError): If the prompt leaves none."""

    def size(self, task: Task, label_set: LabelSet) -> int:
        """RETURNS (int): About how many tokens a session keeps in memory for a task."""

    def session(self, tasks: Sequence[Task], label_set: LabelSet, *, keep: bool) -> Session:
        """Read some tasks. Stage 1 is a session without demonstrations.

        keep (bool): Keep demonstrations and texts in memory from one stage to the next."""

    def unload(self) -> None:
        """Free the weights; they are loaded again at the next use."""
