"""Which examples stand in front of a text: always, never, or when they help (methods.md 3a.3)."""

from dataclasses import dataclass, field, replace
from typing import Any, Dict, List, Mapping, Optional, Sequence, Set, Tuple

from ..pipeline.predictions import Prediction
from ..retrieval.examples import LabelledText
from ..retrieval.index import ExampleIndex
from ..retrieval.strategies import Retrieved, Retriever, Strategy

POLICIES = ("auto", "always", "never")
# Published: an example of another domain has to reach this BM25 score.
PUBLISHED_GATE = 20.0


@dataclass(frozen=True)
class SelectedExamples:
    """What stands in front of one text.

    examples (Tuple[LabelledText, ...]): The most similar first; none for a conversation without.
    similarities (Tuple[float, ...]): Their cosine to the text.
    reason (str): Why these: "never", "always", "no examples", "in-domain" (half of the labels asked for
        or more occur among the examples), "out-of-domain" (they don't, so examples had to pass the
        published gate), "threshold"; with ", cut" if there was no room for all of them.
    """

    examples: Tuple[LabelledText, ...] = ()
    similarities: Tuple[float, ...] = ()
    reason: str = "no examples"

    def without_last(self) -> "SelectedExamples":
        reason = self.reason if self.reason.endswith(", cut") else f"{self.reason}, cut"
        return SelectedExamples(self.examples[:-1], self.similarities[:-1], reason)

    def summary(self) -> Dict[str, Any]:
        """RETURNS (Dict[str, Any]): What is noted on a Doc: no texts, but which they are."""
        found = zip(self.examples, self.similarities)
        shown = [{"doc_id": e.doc_id, "hash": e.hash, "similarity": s} for e, s in found]
        return {"reason": self.reason, "examples": shown}


@dataclass
class PredictionWithExamples(Prediction):
    """selections (List[SelectedExamples]): What stood in front of each window of the text.
    starts (List[int]): First character of each.
    """

    selections: List[SelectedExamples] = field(default_factory=list)
    starts: List[int] = field(default_factory=list)


class ExampleSelector:
    """Chooses the examples of texts.

    index (ExampleIndex): What there is.
    strategy (Strategy): How they are retrieved.
    label_words (Mapping[str, str]): What labels are called, as far as not by their own name.
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
        """Choose the examples of some texts.

        policy (str): "always", "never", or "auto": only if they are similar enough.
        threshold (Optional[float]): With "auto": cosine that the most similar example has to reach, else
            none is shown. None goes by the published rule: examples that have half of the labels asked for
            are in-domain and taken; others have to reach a BM25 score of 20.
        queries (Sequence[LabelledText]): The texts.
        labels (Sequence[Sequence[str]]): What each of them is asked for.
        RETURNS (List[SelectedExamples]): For each text. It does not depend on the others.
        """
        if policy == "never" or not self.strategy.k or not len(self.index):
            reason = "never" if policy == "never" else "no examples"
            return [SelectedExamples(reason=reason) for _ in queries]
        rules = [self._rule(policy, threshold, asked) for asked in labels]
        out = [SelectedExamples()] * len(queries)
        for reason, strategy in dict.fromkeys(rules):
            rows = [i for i, rule in enumerate(rules) if rule == (reason, strategy)]
            found = self.find([queries[i] for i in rows], strategy)
            for i, retrieved in zip(rows, found):
                out[i] = _select(retrieved, reason, threshold)
        return out

    def _rule(
        self, policy: str, threshold: Optional[float], asked: Sequence[str]
    ) -> Tuple[str, Strategy]:
        """RETURNS (Tuple[str, Strategy]): Which rule holds, and how examples are retrieved by it."""
        strategy = self.strategy
        if policy == "always":
            return "always", strategy
        if threshold is not None:
            return "threshold", strategy
        if self._knows(asked):
            return "in-domain", strategy
        if strategy.gate != "none":  # one that was chosen
            return "out-of-domain", strategy
        return "out-of-domain", replace(strategy, gate="bm25", threshold=PUBLISHED_GATE)

    def _knows(self, asked: Sequence[str]) -> bool:
        """RETURNS (bool): Whether half of the labels or more occur among the examples."""
        words = self.label_words
        if self._counted != len(self.index):
            self._words = {words.get(label, label) for label in self.index.labels()}
            self._counted = len(self.index)
        known = [label for label in asked if words.get(label, label) in self._words]
        return 2 * len(known) >= len(asked)

    def find(
        self, queries: Sequence[LabelledText], strategy: Optional[Strategy] = None
    ) -> List[List[Retrieved]]:
        """RETURNS (List[List[Retrieved]]): Examples by a strategy, None for its own."""
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
