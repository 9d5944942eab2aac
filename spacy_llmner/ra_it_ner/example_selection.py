"""Decide when examples are put before a text (always, never, or if they are likely to help), and which
ones (RA-IT, arXiv 2406.17305).
"""

from dataclasses import dataclass, field, replace
from typing import Any, Dict, List, Mapping, Optional, Sequence, Set, Tuple

from ..pipeline.predictions import Prediction
from ..retrieval.examples import LabelledText
from ..retrieval.index import ExampleIndex
from ..retrieval.strategies import Retrieved, Retriever, Strategy

POLICIES = ("auto", "always", "never")
# As published: examples of another domain must have at least this BM25 score.
PUBLISHED_GATE = 20.0


@dataclass(frozen=True)
class SelectedExamples:
    """The examples that are put before one text.

    examples (Tuple[LabelledText, ...]): The examples, the most similar first. Empty for a
        conversation without examples.
    similarities (Tuple[float, ...]): The cosine similarity of each example to the text.
    reason (str): Why these examples were selected: "never", "always", "no examples", "in-domain" (at
        least half of the requested labels occur in the examples), "out-of-domain" (fewer of them occur,
        so the examples had to pass a gate) or "threshold". ", cut" is appended if examples were left
        out to fit the token budget.
    """

    examples: Tuple[LabelledText, ...] = ()
    similarities: Tuple[float, ...] = ()
    reason: str = "no examples"

    def without_last(self) -> "SelectedExamples":
        """RETURNS (SelectedExamples): The same without the least similar example."""
        reason = self.reason if self.reason.endswith(", cut") else f"{self.reason}, cut"
        return SelectedExamples(self.examples[:-1], self.similarities[:-1], reason)

    def summary(self) -> Dict[str, Any]:
        """RETURNS (Dict[str, Any]): The reason, and the IDs, hashes and similarities of the examples, as
        recorded on a Doc. The texts are not included.
        """
        found = zip(self.examples, self.similarities)
        shown = [{"doc_id": e.doc_id, "hash": e.hash, "similarity": s} for e, s in found]
        return {"reason": self.reason, "examples": shown}


@dataclass
class PredictionWithExamples(Prediction):
    """The prediction for one Doc, and the examples that it is based on.

    selections (List[SelectedExamples]): The examples before each window of the text.
    starts (List[int]): The first character of each window.
    """

    selections: List[SelectedExamples] = field(default_factory=list)
    starts: List[int] = field(default_factory=list)


class ExampleSelector:
    """Selects the examples that are put before texts.

    index (ExampleIndex): The examples to select from.
    strategy (Strategy): How they are retrieved.
    label_words (Mapping[str, str]): The words that stand for labels. A label without an entry stands
        for itself.
    """

    def __init__(
        self, index: ExampleIndex, strategy: Strategy, label_words: Mapping[str, str]
    ) -> None:
        self.index = index
        self.strategy = strategy
        self.label_words = label_words
        self._retrievers: Dict[Strategy, Retriever] = {}
        self._words: Set[str] = set()
        self._counted = -1

    def choose(
        self,
        policy: str,
        threshold: Optional[float],
        queries: Sequence[LabelledText],
        labels: Sequence[Sequence[str]],
    ) -> List[SelectedExamples]:
        """Select the examples for some texts.

        policy (str): "always", "never", or "auto": only if they are similar enough.
        threshold (Optional[float]): With "auto", the cosine similarity that the most similar example
            must have. If it is less similar, no examples are shown. None uses the published rule: if
            at least half of the requested labels occur in the index, its examples are in-domain and
            are used. Otherwise, each example must have a BM25 score of at least 20, or pass the
            strategy's own gate if it has one.
        queries (Sequence[LabelledText]): The texts.
        labels (Sequence[Sequence[str]]): The requested labels of each text.
        RETURNS (List[SelectedExamples]): The examples for each text, which don't depend on the other
            texts.
        """
        if policy == "never" or not self.strategy.k or not len(self.index):
            reason = "never" if policy == "never" else "no examples"
            return [SelectedExamples(reason=reason) for _ in queries]
        rules = [self._rule(policy, threshold, requested) for requested in labels]
        out = [SelectedExamples()] * len(queries)
        for reason, strategy in dict.fromkeys(rules):
            rows = [i for i, rule in enumerate(rules) if rule == (reason, strategy)]
            found = self.find([queries[i] for i in rows], strategy)
            for i, retrieved in zip(rows, found):
                out[i] = _select(retrieved, reason, threshold)
        return out

    def _rule(
        self, policy: str, threshold: Optional[float], requested: Sequence[str]
    ) -> Tuple[str, Strategy]:
        """RETURNS (Tuple[str, Strategy]): The reason, and the retrieval strategy that it leads to."""
        strategy = self.strategy
        if policy == "always":
            return "always", strategy
        if threshold is not None:
            return "threshold", strategy
        if self._is_in_domain(requested):
            return "in-domain", strategy
        if strategy.gate != "none":
            return "out-of-domain", strategy
        return "out-of-domain", replace(strategy, gate="bm25", threshold=PUBLISHED_GATE)

    def _is_in_domain(self, requested: Sequence[str]) -> bool:
        """RETURNS (bool): Whether at least half of the requested labels occur in the index."""
        words = self.label_words
        if self._counted != len(self.index):
            self._words = {words.get(label, label) for label in self.index.labels()}
            self._counted = len(self.index)
        known = [label for label in requested if words.get(label, label) in self._words]
        return 2 * len(known) >= len(requested)

    def find(
        self, queries: Sequence[LabelledText], strategy: Optional[Strategy] = None
    ) -> List[List[Retrieved]]:
        """Retrieve examples.

        queries (Sequence[LabelledText]): The texts.
        strategy (Optional[Strategy]): How examples are retrieved; None for the selector's own
            strategy.
        RETURNS (List[List[Retrieved]]): The examples for each text.
        """
        strategy = strategy or self.strategy
        if strategy not in self._retrievers:
            self._retrievers[strategy] = Retriever(self.index, strategy)
        return self._retrievers[strategy].find(queries)


def _select(
    retrieved: Sequence[Retrieved], reason: str, threshold: Optional[float]
) -> SelectedExamples:
    similarities = tuple(r.similarity for r in retrieved)
    if reason == "threshold" and max(similarities, default=-1.0) < (threshold or 0.0):
        return SelectedExamples(reason=reason)
    return SelectedExamples(tuple(r.example for r in retrieved), similarities, reason)
