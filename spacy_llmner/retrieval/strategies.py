"""Retrieval strategies: how examples are chosen, as in RA-IT (arXiv 2406.17305).

The published strategies are

    nearest                     Strategy("nearest")
    random                      Strategy("random")
    mix_0.8                     Strategy("mixed", mix=0.8)
    diverse nearest             Strategy("diverse")
    nearest + BM25 reject       Strategy("nearest", gate="bm25")
    diverse + BM25 reject       Strategy("diverse", gate="bm25")
    diverse + BM25 rank         Strategy("bm25_rank", gate="bm25")

all with k = 2, candidates = 128 and threshold = 20.
"""

from dataclasses import dataclass
from hashlib import blake2b
from typing import Any, Dict, List, Optional, Sequence

import numpy as np

from ..errors import Errors, LLMNERError
from .bm25 import BM25
from .examples import LabelledText
from .index import ExampleIndex, Hit

KINDS = ("nearest", "random", "mixed", "diverse", "bm25_rank")
# The default threshold of each gate. "none" doesn't use it. That of "bm25" is as published. The others let
# about as many of the two nearest examples pass as "bm25" does (docs/decisions.md).
THRESHOLDS: Dict[str, float] = {"none": 20.0, "bm25": 20.0, "bm25_relative": 0.2, "cosine": 0.55}


@dataclass(frozen=True)
class Strategy:
    """How examples are chosen for a query.

    kind (str): "nearest" chooses the k nearest examples. "random" chooses k random examples. With "mixed",
        each of the k examples is the next nearest with the probability `mix`, and otherwise a random one.
        "diverse" chooses k random examples among the `candidates` nearest ones, and "bm25_rank" chooses
        the k of these with the highest BM25 score.
    k (int): Number of examples.
    candidates (int): For "diverse" and "bm25_rank": number of nearest examples to choose from.
    mix (float): For "mixed": probability of the next nearest example. Between 0 and 1.
    gate (str): The score by which chosen examples are dropped: "none"; "bm25", the BM25 score, which
        depends on the length of the query; "bm25_relative", BM25(query, example) / BM25(query, query); or
        "cosine", the similarity.
    threshold (float): The gate drops examples with a lower score.
    """

    kind: str = "nearest"
    k: int = 2
    candidates: int = 128
    mix: float = 0.8
    gate: str = "none"
    threshold: float = 20.0

    def __post_init__(self) -> None:
        _check_known("kind of retrieval", self.kind, KINDS)
        _check_known("gate", self.gate, tuple(THRESHOLDS))
        _check("k", self.k, self.k >= 0, "0 or more")
        ranks = self.kind in ("diverse", "bm25_rank")
        enough = self.candidates >= max(self.k, 1) or not ranks
        _check("candidates", self.candidates, enough, f"1 or more, and at least k ({self.k})")
        _check("mix", self.mix, 0 <= self.mix <= 1, "from 0 to 1")
        _check("threshold", self.threshold, np.isfinite(self.threshold), "a number")
        if self.gate in ("bm25_relative", "cosine"):
            must = f"from -1 to 1 with the gate '{self.gate}'"
            _check("threshold", self.threshold, -1 <= self.threshold <= 1, must)


@dataclass(frozen=True)
class Retrieved:
    """An example that was chosen for a query.

    example (LabelledText): The example.
    similarity (float): The cosine similarity to the query.
    gate_score (float): The score that the gate compared with its threshold. Without a gate, it is the BM25
        score for "bm25_rank", and the similarity for other kinds.
    """

    example: LabelledText
    similarity: float
    gate_score: float


class Retriever:
    """Chooses examples from an index. Examples can be added to the index at any time.

    index (ExampleIndex): The index.
    strategy (Strategy): How examples are chosen.
    """

    def __init__(self, index: ExampleIndex, strategy: Strategy) -> None:
        self.index = index
        self.strategy = strategy
        self._bm25 = BM25()
        self._bm25_of = index.examples

    def find(self, queries: Sequence[LabelledText], *, seed: int = 0) -> List[List[Retrieved]]:
        """Choose examples. Random choices depend only on the seed and the text of the query, not on other
        queries.

        queries (Sequence[LabelledText]): The queries.
        seed (int): Seed of the random choices.
        RETURNS (List[List[Retrieved]]): For each query, up to k examples, the most similar first (the
            highest BM25 score first for "bm25_rank"). The query itself is excluded. See
            `ExampleIndex.search`.
        """
        strategy = self.strategy
        n = strategy.candidates if strategy.kind in ("diverse", "bm25_rank") else strategy.k
        if strategy.kind == "random":
            n = 0
        with self.index.lock:
            nearest = self.index.search(queries, n)
            vectors: Any = [None] * len(queries)
            if len(self.index) and strategy.k and strategy.kind in ("random", "mixed"):
                vectors = self.index.encode(queries)
            out = []
            for query, hits, vector in zip(queries, nearest, vectors):
                chosen = self._choose(query, hits, vector, seed)
                out.append(self._gate(query, chosen))
            return out

    def _choose(self, query: LabelledText, hits: List[Hit], vector: Any, seed: int) -> List[Hit]:
        strategy = self.strategy
        if strategy.kind == "nearest" or not len(self.index) or not strategy.k:
            return hits[: strategy.k]
        if strategy.kind == "bm25_rank":
            scores = self._scores(query, hits)
            order = sorted(range(len(hits)), key=lambda i: -scores[i])
            return [hits[i] for i in order[: strategy.k]]
        rng = _generator(seed, query.text)
        if strategy.kind == "diverse":
            k = min(strategy.k, len(hits))
            # Keep the order in which they were found: the most similar first.
            return [hits[i] for i in sorted(rng.choice(len(hits), k, replace=False))] if k else []
        n_nearest = 0
        if strategy.kind == "mixed":
            n_nearest = int((rng.random(strategy.k) < strategy.mix).sum())
        chosen = hits[:n_nearest]
        chosen += self._draw(query, vector, rng, strategy.k - len(chosen), chosen)
        return sorted(chosen, key=lambda hit: (-hit.similarity, hit.number))

    def _draw(
        self, query: LabelledText, vector: Any, rng: np.random.Generator, k: int, but: List[Hit]
    ) -> List[Hit]:
        """RETURNS (List[Hit]): Up to k random examples, except for the query and the examples in `but`."""
        n = len(self.index)
        taken = {self.index.examples[hit.number].hash for hit in but}
        # A few draws are nearly always enough.
        for size in (min(n, 4 * k + 16), n):
            drawn = rng.choice(n, size, replace=False).tolist() if k else []
            allowed = {hit.number: hit for hit in self.index.compare(query, vector, drawn)}
            new = [i for i in drawn if i in allowed and self.index.examples[i].hash not in taken]
            hits = [allowed[i] for i in new[:k]]
            if len(hits) == k:
                break
        return hits

    def _gate(self, query: LabelledText, hits: List[Hit]) -> List[Retrieved]:
        strategy = self.strategy
        if strategy.gate in ("bm25", "bm25_relative") or strategy.kind == "bm25_rank":
            scores = self._scores(query, hits)
        else:
            scores = np.array([hit.similarity for hit in hits])
        if strategy.gate == "cosine":
            scores = np.array([hit.similarity for hit in hits])
        elif strategy.gate == "bm25_relative":
            scores = scores / max(self._corpus().self_score(query.text), 1e-9)
        passed = scores >= strategy.threshold if strategy.gate != "none" else scores == scores
        return [
            Retrieved(self.index.examples[hit.number], hit.similarity, float(score))
            for hit, score, ok in zip(hits, scores, passed)
            if ok
        ]

    def _scores(self, query: LabelledText, hits: List[Hit]) -> np.ndarray:
        return self._corpus().score(query.text, [hit.number for hit in hits])

    def _corpus(self) -> BM25:
        examples = self.index.examples
        if self._bm25_of is not examples:  # the content of the index was replaced
            self._bm25, self._bm25_of = BM25(), examples
        if len(self._bm25) < len(examples):
            self._bm25.add(example.text for example in examples[len(self._bm25) :])
        return self._bm25


def make_strategy(
    kind: str = "nearest",
    k: int = 2,
    candidates: int = 128,
    mix: float = 0.8,
    gate: str = "none",
    threshold: Optional[float] = None,
) -> Strategy:
    """Create a retrieval strategy. Registered as `spacy_llmner.Retrieval.v1` in `@misc`.

    kind (str): How examples are chosen: "nearest" (default), "random", "mixed", "diverse" or "bm25_rank",
        see `Strategy`.
    k (int): Number of examples. Default 2.
    candidates (int): For "diverse" and "bm25_rank": number of nearest examples to choose from. Default 128.
    mix (float): For "mixed": probability of the next nearest example. Between 0 and 1, default 0.8.
    gate (str): The score by which chosen examples are dropped: "none" (default), "bm25", "bm25_relative" or
        "cosine", see `Strategy`.
    threshold (Optional[float]): The gate drops examples with a lower score. None (default) for the gate's
        default: 20 for "bm25", as published, 0.2 for "bm25_relative", 0.55 for "cosine".
    RETURNS (Strategy): The strategy.
    RAISES (LLMNERError): If a setting is not valid.
    """
    _check_known("gate", gate, tuple(THRESHOLDS))
    default = THRESHOLDS[gate]
    return Strategy(kind, k, candidates, mix, gate, default if threshold is None else threshold)


def _generator(seed: int, text: str) -> np.random.Generator:
    digest = blake2b(f"{seed}\n{text}".encode("utf8", "surrogatepass"), digest_size=16).digest()
    return np.random.default_rng(int.from_bytes(digest, "little"))


def _check_known(what: str, value: str, known: Sequence[str]) -> None:
    if value not in known:
        raise LLMNERError(Errors.E006.format(value=value, what=what, known=", ".join(known)))


def _check(setting: str, value: Any, ok: bool, must: str) -> None:
    if not ok:
        raise LLMNERError(Errors.E054.format(setting=setting, value=value, must=must))
