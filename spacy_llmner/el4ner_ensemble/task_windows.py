"""Split Docs into windows that every voter can read."""

from functools import partial
from typing import Any, Dict, List, Mapping, Sequence, Tuple

from spacy.tokens import Doc

from ..errors import LLMNERError
from ..pipeline.windows import cut_into_windows, may_start_sentence
from ..retrieval.examples import LabelledText
from ..util import CharSpan, is_blank
from .interfaces import LabelSet, Task, Voter
from .pos_weights import span_weight
from .voter.llm_voter import ModelResidency


def read_tasks(
    doc: Doc, voters: Sequence[Voter], residency: ModelResidency, label_set: LabelSet, size: int
) -> List[Task]:
    """Split a Doc into windows that fit into each LLM.

    Windows end at sentence boundaries where possible. See `windows.cut_into_windows`.

    doc (Doc): The Doc.
    voters (Sequence[Voter]): The voters.
    residency (ModelResidency): Decides which LLMs are in memory.
    label_set (LabelSet): The requested labels.
    size (int): Maximum number of LLM tokens in a window, for every voter. The maximum is lower for a voter
        with a lower capacity.
    RETURNS (List[Task]): One task for each window. Every word is in exactly one of them, except words that
        are longer than a window. Voters that failed to measure the Doc are left out of its tasks.
    RAISES (LLMNERError): If a voter can't be used for any text.
    """
    tokens = [token for token in doc if not is_blank(token.text)]
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
    words: Sequence[CharSpan],
    voters: Sequence[Voter],
    residency: ModelResidency,
    label_set: LabelSet,
    size: int,
) -> Tuple[List[float], Dict[str, Exception]]:
    """Compute the fraction of a window that each word fills, for the voter for which it is largest.

    text (str): The text.
    words (Sequence[CharSpan]): Its words.
    voters (Sequence[Voter]): The voters.
    residency (ModelResidency): Decides which LLMs are in memory.
    label_set (LabelSet): The requested labels.
    size (int): See `read_tasks`.
    RETURNS (Tuple[List[float], Dict[str, Exception]]): The fraction for each word, and the voters that
        failed.
    RAISES (LLMNERError): If a voter can't be used for any text.
    """
    shares = [0.0] * len(words)
    failed: Dict[str, Exception] = {}
    for voter in voters:
        try:
            residency.reserve_once(voter)
            most = min(size, voter.capacity(label_set))
            of_voter = [length / most for length in voter.word_lengths(text, words)]
            shares = [max(pair) for pair in zip(shares, of_voter, strict=True)]
        except LLMNERError:
            raise
        except Exception as e:
            residency.forget(voter)
            failed[voter.name] = e
    return shares, failed


class DocTasks:
    """The tasks of a Doc, with methods for retrieval.

    doc (Doc): The Doc.
    tasks (List[Task]): The tasks, one for each window.
    """

    def __init__(self, doc: Doc, tasks: List[Task]) -> None:
        self.doc = doc
        self.tasks = tasks
        self.doc_id = LabelledText(doc.text).hash
        self.starts = {token.idx: token.i for token in doc}
        self.ends = {token.idx + len(token): token.i + 1 for token in doc}

    def query(self, task: Task) -> LabelledText:
        """RETURNS (LabelledText): The query for demonstrations of a task."""
        return LabelledText(task.window_text, doc_id=self.doc_id)

    def weights(self, spans: Sequence[CharSpan], weights: Mapping[str, Any]) -> List[float]:
        """Weigh spans by the part of speech of their head, see `span_weight`.

        spans (Sequence[CharSpan]): Spans of the Doc.
        weights (Mapping[str, Any]): The weights from `check_weights`.
        RETURNS (List[float]): The weight of each span.
        """
        return [
            span_weight(self.doc, self.starts[start], self.ends[end], weights)
            for start, end in spans
        ]


def tasks_of(docs_tasks: Sequence[DocTasks]) -> List[Task]:
    """RETURNS (List[Task]): The tasks of all Docs."""
    return [task for doc_tasks in docs_tasks for task in doc_tasks.tasks]
