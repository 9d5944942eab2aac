"""Nothing retrieves itself, a copy or a text nearly like it: all texts of all files, asked of all of them.

    python benchmarks/retrieval_leaks.py DATA

The guards don't depend on what the vectors mean, so a hash of character trigrams stands in for the
encoder, which would take hours. A query knows nothing but its text: no id, and case and white space are
changed. All of them are asked by the strategy "nearest", some by the others.
"""

import zipfile
from collections import Counter
from pathlib import Path
from typing import Dict, Iterator, List, Sequence, Tuple
from zlib import crc32

import faiss
import numpy as np
import torch
import typer
from common import save
from retrieval_quality import STRATEGIES, from_json, from_strings, json_lines, read_columns
from tqdm import tqdm

from spacy_llmner.retrieval.examples import LabelledText
from spacy_llmner.retrieval.index import ExampleIndex
from spacy_llmner.retrieval.strategies import Retriever

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


def main(
    data: Path,
    others: int = typer.Option(5000, help="Texts asked by each strategy but the nearest"),
) -> None:
    files = dict(read_all(data))
    texts = [text for of_file in files.values() for text in of_file]
    index = ExampleIndex(Trigrams())
    index.add(texts)
    order = np.random.default_rng(0).permutation(len(texts))[:others].tolist()
    found: Dict[str, Counter[str]] = {}
    for name, strategy in STRATEGIES.items():
        asked = list(range(len(texts))) if name == "nearest" else order
        found[name] = leaks(Retriever(index, strategy), [changed(texts[i], i) for i in asked])
        print(name, found[name], flush=True)
    sets = {name: len(of_file) for name, of_file in files.items()}
    counts = {
        name: {k: of[k] for k in ("asked", "examples found", *LEAKS)} for name, of in found.items()
    }
    save(
        "retrieval_leaks",
        {"texts": len(texts), "examples": len(index), "files": sets, "found": counts},
    )


def leaks(retriever: Retriever, queries: List[LabelledText]) -> "Counter[str]":
    """RETURNS (Counter[str]): How many examples are found, and how many of them should not be."""
    found: Counter[str] = Counter(asked=len(queries))
    encode = retriever.index.encoder.encode
    for start in tqdm(range(0, len(queries), BATCH)):
        batch = queries[start : start + BATCH]
        vectors = encode([query.text for query in batch])
        for query, vector, hits in zip(batch, vectors, retriever.find(batch)):
            found["examples found"] += len(hits)
            found["the same twice"] += len(hits) - len({hit.example.hash for hit in hits})
            for hit in hits:
                found["copies"] += hit.example.hash == query.hash
                found["near-duplicates"] += bool(encode([hit.example.text])[0] @ vector > NEAR)
    return found


def read_all(data: Path) -> Iterator[Tuple[str, List[LabelledText]]]:
    """YIELDS (Tuple[str, List[LabelledText]]): Every file of annotated texts; some sets are in several
    formats."""
    for path in sorted(data.rglob("*")):
        name = str(path.relative_to(data))
        if path.suffix == ".zip":
            with zipfile.ZipFile(path) as archive:
                for file in sorted(f for f in archive.namelist() if f.endswith(".iob2")):
                    yield f"{name}/{file}", read_columns(archive.read(file).decode("utf8"))
        elif path.suffix == ".jsonl":
            yield name, [from_strings(line) for line in json_lines(path)]
        elif path.suffix == ".json" and path.parent.name == "padellm":
            yield name, [from_json(*line) for line in json_lines(path)]
        elif path.suffix in COLUMN_FILES and name not in NO_TEXTS:
            yield name, read_columns(path.read_text(encoding="utf8"))


LEAKS = ("copies", "near-duplicates", "the same twice")
COLUMN_FILES = (".txt", ".conll", ".annotated", ".data", ".tsv", ".iob2", ".train", ".dev", ".test")
NO_TEXTS = ("MANIFEST.tsv", "fewnerd/labels-fewnerd.txt")


def changed(text: LabelledText, i: int) -> LabelledText:
    """RETURNS (LabelledText): Nothing but its text, every second one in capitals."""
    return LabelledText(f" {text.text.upper() if i % 2 else text.text}\n", text.entities)


if __name__ == "__main__":
    torch.set_num_threads(1)
    faiss.omp_set_num_threads(1)
    typer.run(main)
