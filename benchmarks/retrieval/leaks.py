"""Check that no text retrieves itself, a copy or a near-duplicate: all texts of all files are queries.

    python -m benchmarks.retrieval.leaks DATA

The filters don't depend on the meaning of the vectors, so a hash of character trigrams replaces the
encoder, which would take hours. A query has only a text, without the id of a Doc, and with changed case and
white space. The strategy "nearest" is run on all texts, the other strategies on a sample.
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
from tqdm import tqdm

from benchmarks.lib.common import save
from benchmarks.retrieval.data_sets import from_json, from_strings, json_lines, read_columns
from benchmarks.retrieval.quality import STRATEGIES
from spacy_llmner.retrieval.examples import LabelledText
from spacy_llmner.retrieval.index import ExampleIndex
from spacy_llmner.retrieval.strategies import Retriever

# Texts with a higher cosine similarity are near-duplicates.
NEAR = 0.98
BATCH = 512


class Trigrams:
    """An encoder that counts the hashes of character trigrams."""

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
    others: int = typer.Option(5000, help="Number of queries for each strategy except nearest"),
) -> None:
    files = dict(read_all(data))
    texts = [text for of_file in files.values() for text in of_file]
    index = ExampleIndex(Trigrams())
    index.add(texts)
    order = np.random.default_rng(0).permutation(len(texts))[:others].tolist()
    found: Dict[str, Counter[str]] = {}
    for name, strategy in STRATEGIES.items():
        chosen = list(range(len(texts))) if name == "nearest" else order
        queries = [make_query(texts[i], i) for i in chosen]
        found[name] = leaks(Retriever(index, strategy), queries)
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
    """RETURNS (Counter[str]): Number of queries, of retrieved examples, and of leaks of each kind."""
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
    """Read all files of annotated texts. Some data sets have several formats.

    YIELDS (Tuple[str, List[LabelledText]]): Name and texts of each file.
    """
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


def make_query(text: LabelledText, i: int) -> LabelledText:
    """RETURNS (LabelledText): The text with other white space, in capitals if `i` is odd, without an id."""
    return LabelledText(f" {text.text.upper() if i % 2 else text.text}\n", text.entities)


if __name__ == "__main__":
    torch.set_num_threads(1)
    faiss.omp_set_num_threads(1)
    typer.run(main)
