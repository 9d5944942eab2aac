"""Speed, recall and memory of the kinds of index.

    python -m benchmarks.retrieval.index

The vectors are generated: clusters in a space whose dimensions have decreasing variance, as in sentence
vectors. Recall is the share of the ten nearest neighbors that are found.
"""

import gc
from time import perf_counter
from typing import Any, Dict, List

import faiss
import numpy as np
import psutil
import torch
import typer

from benchmarks.lib.common import save
from spacy_llmner.retrieval import vectors as settings
from spacy_llmner.retrieval.vectors import VectorStore

WIDTH = 384
K = 10
BATCH = 1024
# Settings that are compared with the defaults.
HNSW_LINKS, HNSW_SEARCH = (16, 32), (32, 64, 128, 256)
IVF_PROBES = (8, 16, 32, 64)


def main(
    sizes: List[int] = typer.Option([100_000, 200_000], help="Numbers of vectors"),
    queries: int = 1000,
    sweep_size: int = typer.Option(
        100_000, help="Number of vectors for which all settings are tried"
    ),
) -> None:
    runs = []
    for n in sizes:
        rng = np.random.default_rng(0)
        data = clustered(rng, n + queries, n // 100)
        query_vectors, data = data[:queries], data[queries:]
        exact = VectorStore("exact", WIDTH)
        runs.append({**build(exact, data), "n": n, **timed(exact, query_vectors, None)})
        print(runs[-1], flush=True)
        truth = exact.search(query_vectors, K)[1]
        del exact
        for links in HNSW_LINKS if n == sweep_size else (settings.HNSW_LINKS,):
            default, settings.HNSW_LINKS = settings.HNSW_LINKS, links
            store = VectorStore("hnsw", WIDTH)
            built = {**build(store, data), "n": n, "links": links}
            settings.HNSW_LINKS = default
            for effort in HNSW_SEARCH:
                default, settings.HNSW_SEARCH = settings.HNSW_SEARCH, effort
                runs.append({**built, "effort": effort, **timed(store, query_vectors, truth)})
                settings.HNSW_SEARCH = default
                print(runs[-1], flush=True)
            del store
        store = VectorStore("ivf", WIDTH)
        built = {**build(store, data), "n": n, "lists": store.lists.nlist}
        for probes in IVF_PROBES:
            default, settings.IVF_PROBES = settings.IVF_PROBES, probes
            runs.append({**built, "probes": probes, **timed(store, query_vectors, truth)})
            settings.IVF_PROBES = default
            print(runs[-1], flush=True)
        del store
    chosen = {name: getattr(settings, name) for name in ("HNSW_LINKS", "HNSW_BUILD", "HNSW_SEARCH")}
    chosen["IVF_PROBES"] = settings.IVF_PROBES
    save("retrieval_index", {"width": WIDTH, "k": K, "default": chosen, "runs": runs})


def clustered(rng: np.random.Generator, n: int, n_clusters: int) -> np.ndarray:
    """RETURNS (ndarray): Unit vectors, float32, shape (n, WIDTH)."""
    scale = np.arange(1, WIDTH + 1, dtype=np.float32) ** -0.5
    centres = rng.standard_normal((n_clusters, WIDTH), dtype=np.float32)
    out = rng.standard_normal((n, WIDTH), dtype=np.float32)
    out = (out + 1.5 * centres[rng.integers(n_clusters, size=n)]) * scale
    return out / np.linalg.norm(out, axis=1, keepdims=True)


def build(store: VectorStore, data: np.ndarray) -> Dict[str, Any]:
    """Fill a store. RETURNS (Dict[str, Any]): Its kind, the seconds, and the growth of the memory in MB."""
    gc.collect()
    before = psutil.Process().memory_info().rss
    start = perf_counter()
    for first in range(0, len(data), BATCH):
        store.add(data[first : first + BATCH])
    store.prepare()
    seconds = perf_counter() - start
    grown = (psutil.Process().memory_info().rss - before) / 2**20
    return {"kind": store.kind, "build_seconds": round(seconds, 2), "memory_mb": round(grown)}


def timed(store: VectorStore, queries: np.ndarray, truth: Any) -> Dict[str, Any]:
    """Search for some vectors, three times.

    truth (Optional[ndarray]): The numbers of the nearest neighbors. None for a recall of 1.
    RETURNS (Dict[str, Any]): Recall, and queries per second of the fastest run.
    """
    store.search(queries[:8], K)
    seconds = []
    for _ in range(3):
        start = perf_counter()
        found = store.search(queries, K)[1]
        seconds.append(perf_counter() - start)
    recall = 1.0
    if truth is not None:
        recall = float(np.mean([len(set(a) & set(b)) / K for a, b in zip(truth, found)]))
    return {"recall": round(recall, 4), "queries_per_second": round(len(queries) / min(seconds))}


if __name__ == "__main__":
    torch.set_num_threads(1)
    faiss.omp_set_num_threads(1)
    typer.run(main)
