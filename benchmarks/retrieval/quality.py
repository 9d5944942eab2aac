"""Quality of retrieval: how many retrieved examples share a label with the query, compared with random
examples; how many pass the gates; and whether a text retrieves itself or a duplicate.

    python -m benchmarks.retrieval.quality DATA

DATA contains the public data sets as their publishers wrote them. No text of them is stored.
"""

import json
from pathlib import Path
from time import perf_counter
from typing import Any, Dict, Iterable, List, Sequence

import faiss
import numpy as np
import torch
import typer

from benchmarks.lib.common import save
from benchmarks.retrieval.data_sets import read_sets
from spacy_llmner.retrieval import vectors as settings
from spacy_llmner.retrieval.encoder import SentenceEncoder, make_sentence_encoder
from spacy_llmner.retrieval.examples import LabelledText
from spacy_llmner.retrieval.index import ExampleIndex
from spacy_llmner.retrieval.strategies import Retriever, Strategy
from spacy_llmner.retrieval.vectors import VectorStore

STRATEGIES = {
    "nearest": Strategy("nearest"),
    "random": Strategy("random"),
    "mix_0.8": Strategy("mixed"),
    "diverse": Strategy("diverse"),
    "bm25 rank": Strategy("bm25_rank"),
}
GATES = {
    "bm25 >= 20": ("bm25", 20.0),
    **{f"relative >= {x}": ("bm25_relative", x) for x in (0.1, 0.2, 0.3)},
    **{f"cosine >= {x}": ("cosine", x) for x in (0.4, 0.5, 0.55, 0.6)},
}


def main(data: Path, pool: int = 300, queries: int = 60) -> None:
    encoder = CachingEncoder(make_sentence_encoder())
    results: Dict[str, Any] = {}
    everything = ExampleIndex(encoder)
    for name, examples, query_texts in read_sets(data):
        examples, query_texts = (
            sample(examples, pool),
            sample([a for a in query_texts if a.entities], queries),
        )
        start = perf_counter()
        index = ExampleIndex(encoder)
        index.add(examples)
        seconds = perf_counter() - start
        found = measure(index, query_texts)
        found["texts_per_second"] = round(len(index) / seconds, 1)
        found["leaks"] = leaks(index)
        results[name] = {"pool": len(index), "queries": len(query_texts), **found}
        print(name, json.dumps(results[name]), flush=True)
        everything.add(index.examples)
    means = {
        key: round(float(np.mean([r["same_label"][key] for r in results.values()])), 4)
        for key in STRATEGIES
    }
    approximate = approximate_recall(everything)
    print(means, approximate)
    save(
        "retrieval_quality",
        {
            "encoder": encoder.name,
            "mean": means,
            "recall_real_vectors": approximate,
            "sets": results,
        },
    )


class CachingEncoder:
    """An encoder that encodes each text only once, since all strategies get the same queries.

    encoder (SentenceEncoder): The encoder.
    """

    def __init__(self, encoder: SentenceEncoder) -> None:
        self.encoder = encoder
        self.name, self.width, self.fingerprint = encoder.name, encoder.width, encoder.fingerprint
        self.options = encoder.options
        self.cached: Dict[str, np.ndarray] = {}

    def encode(self, texts: Sequence[str], *, progress: bool = False) -> np.ndarray:
        new = [text for text in dict.fromkeys(texts) if text not in self.cached]
        self.cached.update(zip(new, self.encoder.encode(new)))
        return np.stack([self.cached[text] for text in texts])


def measure(index: ExampleIndex, query_texts: List[LabelledText]) -> Dict[str, Any]:
    """RETURNS (Dict[str, Any]): By strategy, the share of retrieved examples that have a label of the
    query; by gate, the share of examples that pass, and of these with a label of the query."""
    same: Dict[str, float] = {}
    for name, strategy in STRATEGIES.items():
        found = Retriever(index, strategy).find(query_texts)
        same[name] = share(
            shares_label(q, r.example) for q, rs in zip(query_texts, found) for r in rs
        )
    gates = {}
    for name, (gate, threshold) in GATES.items():
        found = Retriever(index, Strategy(gate=gate, threshold=threshold)).find(query_texts)
        passed = [(q, r.example) for q, rs in zip(query_texts, found) for r in rs]
        gates[name] = {
            "passed": round(len(passed) / (2 * len(query_texts)), 4),
            "same_label": share(shares_label(q, e) for q, e in passed),
        }
    return {"same_label": same, "gates": gates}


def leaks(index: ExampleIndex) -> int:
    """Query each text of the pool, to which copies with other case, white space or entities are added.

    RETURNS (int): How often a query retrieved itself, a copy or a near-duplicate.
    """
    own = list(index.examples)
    twice = ExampleIndex(index.encoder)
    twice.add(own)
    twice.add([LabelledText("  " + e.text.upper() + "\n") for e in own[:50]])
    twice.add([LabelledText(e.text, ((0, 1, "COPY"),)) for e in own[:50]])
    n = 0
    for strategy in STRATEGIES.values():
        # Without doc_id, so that only the texts can be compared.
        query_texts = [LabelledText(e.text, e.entities) for e in own]
        for query, found in zip(query_texts, Retriever(twice, strategy).find(query_texts)):
            n += sum(r.example.hash == query.hash or r.similarity > 0.98 for r in found)
    return n


def approximate_recall(index: ExampleIndex) -> Dict[str, Any]:
    """RETURNS (Dict[str, Any]): Recall of the ten nearest neighbors in the vectors of all data sets, by
    kind of index."""
    vectors = np.array(index.vectors)
    order = np.random.default_rng(0).permutation(len(vectors))
    queries, stored = vectors[order[:500]], vectors[order[500:]]
    exact = VectorStore("exact", vectors.shape[1])
    exact.add(stored)
    truth = exact.search(queries, 10)[1]
    out: Dict[str, Any] = {"n": len(stored)}
    smallest, settings.IVF_SMALLEST = settings.IVF_SMALLEST, 1
    for kind in ("hnsw", "ivf"):
        store = VectorStore(kind, vectors.shape[1])
        store.add(stored)
        found = store.search(queries, 10)[1]
        out[kind] = round(
            float(np.mean([len(set(a) & set(b)) / 10 for a, b in zip(truth, found)])), 4
        )
    settings.IVF_SMALLEST = smallest
    return out


def shares_label(one: LabelledText, other: LabelledText) -> bool:
    return bool({e[2] for e in one.entities} & {e[2] for e in other.entities})


def share(values: Iterable[bool]) -> float:
    found = list(values)
    return round(sum(found) / len(found), 4) if found else 0.0


def sample(examples: List[LabelledText], n: int) -> List[LabelledText]:
    order = np.random.default_rng(0).permutation(len(examples))
    return [examples[i] for i in order[:n]]


if __name__ == "__main__":
    torch.set_num_threads(1)
    faiss.omp_set_num_threads(1)
    typer.run(main)
