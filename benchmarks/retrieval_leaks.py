"""Nothing retrieves itself, a copy or a text nearly like it: all texts of all sets, asked of all of them.

    python benchmarks/retrieval_leaks.py DATA

The guards don't depend on what the vectors mean, so a hash of character trigrams stands in for the
encoder, which would take hours. A query knows nothing but its text: no id, and case and white space are
changed.
"""

from collections import Counter
from pathlib import Path
from typing import Any, Dict, List, Sequence
from zlib import crc32

import faiss
import numpy as np
import torch
import typer
from common import save
from retrieval_quality import read_sets
from tqdm import tqdm

from spacy_llmner.retrieval.examples import LabelledText
from spacy_llmner.retrieval.index import ExampleIndex
from spacy_llmner.retrieval.strategies import Retriever, Strategy

# What is closer to a query than this is nearly the same text (methods.md 3a.2).
NEAR = 0.98
BATCH = 512


class Trigrams:
    """An encoder: counts of the hashes of character trigrams."""

    name, width, options, fingerprint = "trigrams", 128, "", "trigrams"

    def encode(self, texts: Sequence[str], *, progress: bool = False) -> np.ndarray:
        out = np.zeros((len(texts), self.width), dtype=np.float32)
        for row, text in zip(out, texts):
            folded = f" {' '.join(text.lower().split())} "
            hashes = [crc32(folded[i : i + 3].encode()) for i in range(max(len(folded) - 2, 1))]
            for h, n in Counter(hashes).items():
                row[h % self.width] += n if h & 256 else -n
        return out / np.maximum(np.linalg.norm(out, axis=1, keepdims=True), 1e-9)


def main(data: Path) -> None:
    texts: List[LabelledText] = []
    files: Dict[str, int] = {}
    for name, examples, asked in read_sets(data):
        texts += [*examples, *asked]
        files[name] = len(examples) + len(asked)
    index = ExampleIndex(Trigrams())
    index.add(texts)
    retriever = Retriever(index, Strategy("nearest"))
    found: Counter[str] = Counter()
    for start in tqdm(range(0, len(texts), BATCH)):
        queries = [changed(text, i) for i, text in enumerate(texts[start : start + BATCH])]
        vectors = index.encoder.encode([query.text for query in queries])
        for query, vector, hits in zip(queries, vectors, retriever.find(queries)):
            found["examples found"] += len(hits)
            for hit in hits:
                own = index.encoder.encode([hit.example.text])[0] @ vector
                found["copies"] += hit.example.hash == query.hash
                found["near-duplicates"] += bool(own > NEAR)
    result: Dict[str, Any] = {"texts": len(texts), "examples": len(index), "sets": files}
    save("retrieval_leaks", {**result, **{k: found[k] for k in ("examples found", *LEAKS)}})
    print(found)


LEAKS = ("copies", "near-duplicates")


def changed(text: LabelledText, i: int) -> LabelledText:
    """RETURNS (LabelledText): Nothing but its text, every second one in capitals."""
    return LabelledText(f" {text.text.upper() if i % 2 else text.text}\n", text.entities)


if __name__ == "__main__":
    torch.set_num_threads(1)
    faiss.omp_set_num_threads(1)
    typer.run(main)
