"""Choose the demonstrations for a text (stage 1 of EL4NER, arXiv 2505.23038)."""

from hashlib import blake2b
from typing import Any, Dict, List, Mapping, Sequence

import numpy as np

from ...retrieval.examples import LabelledText
from ...util import CharSpan
from ..interfaces import Demonstration
from ..task_windows import DocTasks
from .pool import DemonstrationPool
from .span_similarity import span_similarity

RETRIEVAL = ("span", "sentence", "random", "none")
# Similarities are rounded before they are compared, because the last bits of a vector depend on its batch.
DECIMALS = 5


class Demonstrator:
    """Chooses demonstrations from a pool.

    pool (DemonstrationPool): The pool.
    how (str): How to rank the labelled texts. "span": by SpanSim (see `span_similarity`) or, if this is
        equal, by the similarity of the whole texts. "sentence": by the similarity of the whole texts.
        "random": in a random order that depends only on the text. "none": no demonstrations.
    k (int): Maximum number of demonstrations.
    labels (Sequence[str]): The requested labels.
    """

    def __init__(self, pool: DemonstrationPool, how: str, k: int, labels: Sequence[str]) -> None:
        self.pool = pool
        self.how = how
        self.k = k
        self.usable = pool.usable(labels)
        self.labels = list(labels)
        self._cache: Dict[int, Demonstration] = {}

    @property
    def by_spans(self) -> bool:
        """RETURNS (bool): Whether `choose` needs the spans of the texts, so that stage 1 has to run."""
        return self.how == "span" and self.is_active

    @property
    def is_active(self) -> bool:
        """RETURNS (bool): Whether there are any demonstrations."""
        return self.how != "none" and self.k > 0 and bool(self.usable.any())

    def choose(
        self,
        queries: Sequence[LabelledText],
        spans: Sequence[Sequence[CharSpan]] = (),
        weights: Sequence[Sequence[float]] = (),
    ) -> List[List[Demonstration]]:
        """Choose demonstrations for texts. A text or a near duplicate is never its own demonstration.

        queries (Sequence[LabelledText]): The texts.
        spans (Sequence[Sequence[CharSpan]]): The spans of each text. Only needed if `by_spans` is true.
        weights (Sequence[Sequence[float]]): The weights of these spans.
        RETURNS (List[List[Demonstration]]): The demonstrations for each text, the most similar one last.
        """
        if not self.is_active or not queries:
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
        return [[self._get(n) for n in reversed(numbers[: self.k])] for numbers in ranked]

    def _ranked(self, queries: Sequence[LabelledText]) -> List[List[int]]:
        """RETURNS (List[List[int]]): For each query, the usable texts, the most similar first."""
        index, numbers = self.pool.index, np.flatnonzero(self.usable).tolist()
        return [
            [hit.number for hit in index.compare(query, vector, numbers)] if vector.any() else []
            for query, vector in zip(queries, index.encode(queries))
        ]

    def _get(self, number: int) -> Demonstration:
        if number not in self._cache:
            self._cache[number] = self.pool.demonstration(number, self.labels)
        return self._cache[number]


def add_demonstrations(
    demonstrator: Demonstrator,
    docs_tasks: Sequence[DocTasks],
    spans: Sequence[List[CharSpan]],
    pos_weights: Mapping[str, Any],
) -> None:
    """Choose demonstrations for the tasks of Docs, and add them to the tasks.

    demonstrator (Demonstrator): Chooses the demonstrations.
    docs_tasks (Sequence[DocTasks]): The tasks of each Doc.
    spans (Sequence[List[CharSpan]]): The spans that were found in each task without demonstrations.
    pos_weights (Mapping[str, Any]): The weights from `check_weights`.
    """
    tasks = [(doc_tasks, task) for doc_tasks in docs_tasks for task in doc_tasks.tasks]
    queries = [doc_tasks.query(task) for doc_tasks, task in tasks]
    inside = [
        [(start - task.start, end - task.start) for start, end in of_task]
        for (_, task), of_task in zip(tasks, spans)
    ]
    weights = [
        doc_tasks.weights(of_task, pos_weights) for (doc_tasks, _), of_task in zip(tasks, spans)
    ]
    for (_, task), chosen in zip(tasks, demonstrator.choose(queries, inside, weights)):
        task.demonstrations = chosen


def _shuffled(seed: str, numbers: Sequence[int]) -> List[int]:
    """RETURNS (List[int]): The numbers in a pseudorandom order that depends only on the seed."""
    return sorted(numbers, key=lambda n: blake2b(f"{seed} {n}".encode(), digest_size=8).digest())
