"""What is read: windows of Docs that every voter can read."""

from functools import partial
from typing import Any, Dict, List, Mapping, Sequence, Tuple

from spacy.tokens import Doc

from ..errors import LLMNERError
from ..pipeline.windows import cut_into_windows, may_start_sentence
from ..retrieval.examples import LabelledText
from .interfaces import Chars, LabelSet, Task, Voter
from .pos_weights import span_weight
from .voter.llm_voter import ModelResidency


def read_tasks(
    doc: Doc, voters: Sequence[Voter], residency: ModelResidency, label_set: LabelSet, size: int
) -> List[Task]:
    """Cut a Doc into windows, as windows.read_windows does, but so that they fit into each LLM.

    size (int): Tokens of a window at most, in the tokens of the voter that needs most for it; fewer if an
        LLM has no room for so many.
    RETURNS (List[Task]): They cover every word once, but for those that are too long by themselves. A voter
        that can't tell how it reads the Doc is left out.
    """
    tokens = [token for token in doc if not token.is_space]
    words = [(token.idx, token.idx + len(token)) for token in tokens]
    if not words:
        return []
    shares, failed = word_shares(doc.text, words, voters, residency, label_set, size)
    begins = partial(may_start_sentence, tokens, known=doc.has_annotation("SENT_START"))
    tasks = [Task(doc.text, words[start:end]) for start, end in cut_into_windows(shares, begins)]
    for task in tasks:
        for name, error in failed.items():
            task.leave_out(name, "reading", error)
    return tasks


def word_shares(
    text: str,
    words: Sequence[Chars],
    voters: Sequence[Voter],
    residency: ModelResidency,
    label_set: LabelSet,
    size: int,
) -> Tuple[List[float], Dict[str, Exception]]:
    """Say what share of a voter's window each word takes, where it takes most.

    size (int): See read_tasks.
    RETURNS (Tuple[List[float], Dict[str, Exception]]): By word; and the voters that failed.
    RAISES (LLMNERError): If a voter can't be used at all: that is no fault of the text.
    """
    shares = [0.0] * len(words)
    failed: Dict[str, Exception] = {}
    for voter in voters:
        try:
            residency.introduce(voter)
            most = min(size, voter.capacity(label_set))
            mine = [length / most for length in voter.lengths(text, words)]
            shares = [max(share, other) for share, other in zip(shares, mine, strict=True)]
        except LLMNERError:
            raise
        except Exception as e:
            residency.forget(voter)
            failed[voter.name] = e
    return shares, failed


class DocTasks:
    """The windows of a Doc, and what retrieval has to know of them.

    doc (Doc): The Doc.
    tasks (List[Task]): Its windows.
    """

    def __init__(self, doc: Doc, tasks: List[Task]) -> None:
        self.doc = doc
        self.tasks = tasks
        self.doc_id = LabelledText(doc.text).hash
        self.starts = {token.idx: token.i for token in doc}
        self.ends = {token.idx + len(token): token.i + 1 for token in doc}

    def query(self, task: Task) -> LabelledText:
        return LabelledText(task.shown, doc_id=self.doc_id)

    def weights(self, spans: Sequence[Chars], weights: Mapping[str, Any]) -> List[float]:
        """RETURNS (List[float]): See span_weight."""
        return [
            span_weight(self.doc, self.starts[start], self.ends[end], weights)
            for start, end in spans
        ]
