"""Stage 1: which labelled texts are shown in front of a text (methods.md 4a)."""

from hashlib import blake2b
from typing import Any, Dict, List, Mapping, Sequence

import numpy as np

from ...retrieval.examples import LabelledText
from ..interfaces import Chars, Demonstration
from ..task_windows import DocTasks
from .pool import DemonstrationPool
from .span_similarity import span_similarity

RETRIEVAL = ("span", "sentence", "random", "none")
# Similarities that differ by less are equal: a vector's last bits depend on the batch it was in.
DECIMALS = 5


class Demonstrator:
    """Chooses demonstrations.

    pool (DemonstrationPool): What there is.
    how (str): "span": by SpanSim, equals by the similarity of the whole texts; "sentence": by that alone;
        "random": by a draw that depends on the text only; "none".
    k (int): How many at most.
    labels (Sequence[str]): What is asked for.
    """

    def __init__(self, pool: DemonstrationPool, how: str, k: int, labels: Sequence[str]) -> None:
        self.pool = pool
        self.how = how
        self.k = k
        self.usable = pool.usable(labels)
        self.labels = list(labels)
        self._shown: Dict[int, Demonstration] = {}

    @property
    def by_spans(self) -> bool:
        """Whether spans of the texts are needed."""
        return self.how == "span" and self.shows

    @property
    def shows(self) -> bool:
        """Whether there is anything to show."""
        return self.how != "none" and self.k > 0 and bool(self.usable.any())

    def choose(
        self,
        queries: Sequence[LabelledText],
        spans: Sequence[Sequence[Chars]] = (),
        weights: Sequence[Sequence[float]] = (),
    ) -> List[List[Demonstration]]:
        """Choose for some texts. A text is never shown to itself, nor to a text nearly like it.

        queries (Sequence[LabelledText]): The texts.
        spans (Sequence[Sequence[Chars]]): The spans of each, if they are needed.
        weights (Sequence[Sequence[float]]): Their weights.
        RETURNS (List[List[Demonstration]]): For each text, the most similar one last.
        """
        if not self.shows or not queries:
            return [[] for _ in queries]
        ranked = self._ranked(queries)
        if self.how == "random":
            ranked = [_shuffled(query.hash, numbers) for query, numbers in zip(queries, ranked)]
        if self.by_spans:
            vectors = self.pool.encoder.encode_spans([q.text for q in queries], spans)
            for row, numbers in enumerate(ranked):
                if len(spans[row]):
                    similar = span_similarity(
                        vectors[row], np.array(weights[row]), self.pool.vectors, self.pool.sizes
                    ).round(DECIMALS)
                    numbers.sort(key=lambda n: -similar[n])  # noqa: B023
        return [[self._show(n) for n in reversed(numbers[: self.k])] for numbers in ranked]

    def _ranked(self, queries: Sequence[LabelledText]) -> List[List[int]]:
        """RETURNS (List[List[int]]): All texts that may be shown to each query, the most similar first."""
        index, numbers = self.pool.index, np.flatnonzero(self.usable).tolist()
        return [
            [hit.number for hit in index.compare(query, vector, numbers)] if vector.any() else []
            for query, vector in zip(queries, index.encode(queries))
        ]

    def _show(self, number: int) -> Demonstration:
        if number not in self._shown:
            self._shown[number] = self.pool.demonstration(number, self.labels)
        return self._shown[number]


def demonstrate(
    demonstrator: Demonstrator,
    docs_tasks: Sequence[DocTasks],
    spans: Sequence[List[Chars]],
    pos_weights: Mapping[str, Any],
) -> None:
    """Put demonstrations into the tasks of some Docs.

    spans (Sequence[List[Chars]]): Of each task, what was found in it without demonstrations.
    pos_weights (Mapping[str, Any]): See span_weight.
    """
    tasks = [(doc_tasks, task) for doc_tasks in docs_tasks for task in doc_tasks.tasks]
    queries = [doc_tasks.query(task) for doc_tasks, task in tasks]
    inside = [
        [(start - task.start, end - task.start) for start, end in of_task]
        for (_, task), of_task in zip(tasks, spans)
    ]
    weights = [r.weights(s, pos_weights) for (r, _), s in zip(tasks, spans)]
    for (_, task), shown in zip(tasks, demonstrator.choose(queries, inside, weights)):
        task.demonstrations = shown


def _shuffled(seed: str, numbers: Sequence[int]) -> List[int]:
    """RETURNS (List[int]): In an order that depends on nothing but the text."""
    return sorted(numbers, key=lambda n: blake2b(f"{seed} {n}".encode(), digest_size=8).digest())
