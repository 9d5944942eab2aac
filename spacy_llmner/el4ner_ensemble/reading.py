"""What is read: windows of Docs that every voter can read, and labelled texts that can be shown."""

import warnings
from typing import Any, Dict, List, Sequence

from spacy.tokens import Doc, Token

from ..errors import Warnings
from ..retrieval.examples import LabelledText
from ..windows import may_begin
from .pool import PoolText
from .pos import span_weight
from .tasks import Asked, Chars, Task, Voter
from .voters import Turns


def read_tasks(
    doc: Doc, voters: Sequence[Voter], turns: Turns, asked: Asked, size: int
) -> List[Task]:
    """Cut a Doc into windows, as windows.read_windows does, but so that they fit into each LLM.

    size (int): Tokens of a window at most, in the tokens of the voter that needs most for it; fewer if an
        LLM has no room for so many.
    RETURNS (List[Task]): They cover every word once, but for those that are too long by themselves.
    """
    tokens = [token for token in doc if not token.is_space]
    words = [(token.idx, token.idx + len(token)) for token in tokens]
    if not words:
        return []
    # What share of a voter's window each word takes, where it takes most.
    shares = [0.0] * len(words)
    for voter in voters:
        turns.meet(voter)
        most = min(size, voter.room(asked))
        lengths = voter.lengths(doc.text, words)
        shares = [max(share, length / most) for share, length in zip(shares, lengths)]
    known = doc.has_annotation("SENT_START")
    return [Task(doc.text, words[start:end]) for start, end in _cut(tokens, shares, known)]


def _cut(tokens: List[Token], shares: Sequence[float], known: bool) -> List[Chars]:
    """RETURNS (List[Tuple[int, int]]): First word of each window, and one past its last."""
    out = []
    start = 0
    while start < len(tokens):
        end, used = start, 0.0
        while end < len(tokens) and used + shares[end] <= 1.0:
            used += shares[end]
            end += 1
        if end == start:
            start += 1  # a single word that can't be read at once is no name
            continue
        if end < len(tokens):
            breaks = (k for k in range(end, start, -1) if may_begin(tokens, k, known))
            end = next(breaks, end)
        out.append((start, end))
        start = end
    return out


class Reading:
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

    def weights(self, spans: Sequence[Chars], weights: Dict[str, Any]) -> List[float]:
        """RETURNS (List[float]): See span_weight."""
        return [
            span_weight(self.doc, self.starts[start], self.ends[end], weights)
            for start, end in spans
        ]


def texts_about(texts: Sequence[PoolText], labels: Sequence[str], name: str) -> List[PoolText]:
    """RETURNS (List[PoolText]): Those with an entity of these labels, or with none at all. It warns if
    others are left out."""
    known = set(labels)
    out = []
    for text in texts:
        entities = text.example.entities
        if not entities or any(label in known for _, _, label in entities):
            out.append(text)
    if len(out) < len(texts):
        counts = {"n": len(texts) - len(out), "total": len(texts)}
        message = Warnings.W011.format(name=name, labels=", ".join(labels), **counts)
        warnings.warn(message, stacklevel=3)
    return out


def short_texts(
    texts: Sequence[PoolText], voters: Sequence[Voter], turns: Turns, asked: Asked, size: int
) -> List[PoolText]:
    """RETURNS (List[PoolText]): Those that every voter can read at once. See read_tasks."""
    out = list(texts)
    for voter in voters:
        turns.meet(voter)
        most = min(size, voter.room(asked))
        out = [t for t in out if sum(voter.lengths(t.example.text, t.words)) <= most]
    return out
