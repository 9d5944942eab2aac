"""Whether what is retrieved helps: neighbours that share a label with the query, against random picks;
what the gates let pass; and that nothing retrieves itself or a duplicate.

python benchmarks/retrieval_quality.py DATA

DATA holds the public data sets, as their upstream repositories do. They are read as they are, and nothing
of them is written.
"""

import io
import json
import zipfile
from pathlib import Path
from time import perf_counter
from typing import Any, Dict, Iterable, Iterator, List, Sequence, Set, Tuple

import faiss
import numpy as np
import torch
import typer
from common import save

from spacy_llmner.retrieval import vectors as settings
from spacy_llmner.retrieval.encoder import SentenceEncoder, make_sentence_encoder
from spacy_llmner.retrieval.examples import LabelledText
from spacy_llmner.retrieval.index import ExampleIndex
from spacy_llmner.retrieval.strategies import Retriever, Strategy
from spacy_llmner.retrieval.vectors import VectorStore

# Pool and queries of each set; "" where both come from one file (the files of Few-NERD share no label).
COLUMNS = {
    "wnut17": ("wnut17/wnut17train.conll", "wnut17/emerging.test.annotated"),
    "conll03": ("conll03/allanj/train.txt", "conll03/allanj/test.txt"),
    **{
        f"crossner_{domain}": (f"crossner/{domain}/dev.txt", f"crossner/{domain}/test.txt")
        for domain in ("ai", "literature", "music", "politics", "science")
    },
    "fewnerd": ("fewnerd/big_test.txt", ""),
    "ncbi_disease": ("ncbi_disease/train.tsv", "ncbi_disease/test.tsv"),
    "wikigold": ("wikigold/wikigold.conll.txt", ""),
    "litbank": ("litbank/train.data", "litbank/test.data"),
    "germeval2014": ("germ.train.iob2", "germ.test.iob2"),
}
JSON_SETS = {
    "genia": ("genia/padellm/genia_dev.json", "genia/padellm/genia_test.json"),
    **{
        name: (f"{name}/padellm/{name}_train.json", f"{name}/padellm/{name}_test.json")
        for name in ("weibo", "resume", "youku", "ecommerce")
    },
}
BOSON = ("boson/train.jsonl", "boson/test.jsonl")
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
    encoder = Remembering(make_sentence_encoder())
    results: Dict[str, Any] = {}
    everything = ExampleIndex(encoder)
    for name, examples, asked in read_sets(data):
        examples, asked = some(examples, pool), some([a for a in asked if a.entities], queries)
        start = perf_counter()
        index = ExampleIndex(encoder)
        index.add(examples)
        seconds = perf_counter() - start
        found = measure(index, asked)
        found["texts_per_second"] = round(len(index) / seconds, 1)
        found["leaks"] = leaks(index)
        results[name] = {"pool": len(index), "queries": len(asked), **found}
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


class Remembering:
    """An encoder that encodes a text once, since every strategy is asked the same queries."""

    def __init__(self, encoder: SentenceEncoder) -> None:
        self.encoder = encoder
        self.name, self.width, self.fingerprint = encoder.name, encoder.width, encoder.fingerprint
        self.known: Dict[str, np.ndarray] = {}

    def encode(self, texts: Sequence[str], *, progress: bool = False) -> np.ndarray:
        new = [text for text in dict.fromkeys(texts) if text not in self.known]
        self.known.update(zip(new, self.encoder.encode(new)))
        return np.stack([self.known[text] for text in texts])


def measure(index: ExampleIndex, asked: List[LabelledText]) -> Dict[str, Any]:
    """Shares of the examples found that have a label of the query."""
    same: Dict[str, float] = {}
    for name, strategy in STRATEGIES.items():
        found = Retriever(index, strategy).find(asked)
        same[name] = share(shares_label(q, r.example) for q, rs in zip(asked, found) for r in rs)
    gates = {}
    for name, (gate, threshold) in GATES.items():
        found = Retriever(index, Strategy(gate=gate, threshold=threshold)).find(asked)
        passed = [(q, r.example) for q, rs in zip(asked, found) for r in rs]
        gates[name] = {
            "passed": round(len(passed) / (2 * len(asked)), 4),
            "same_label": share(shares_label(q, e) for q, e in passed),
        }
    return {"same_label": same, "gates": gates}


def leaks(index: ExampleIndex) -> int:
    """Ask for each text of the pool, with copies in it that differ in case, space or entities.

    RETURNS (int): How often a query, its copy or its near-duplicate was found.
    """
    own = list(index.examples)
    twice = ExampleIndex(index.encoder)
    twice.add(own)
    twice.add([LabelledText("  " + e.text.upper() + "\n") for e in own[:50]])
    twice.add([LabelledText(e.text, ((0, 1, "COPY"),)) for e in own[:50]])
    n = 0
    for strategy in STRATEGIES.values():
        # Without doc_id, as where nothing is known of a text but itself.
        asked = [LabelledText(e.text, e.entities) for e in own]
        for query, found in zip(asked, Retriever(twice, strategy).find(asked)):
            n += sum(r.example.hash == query.hash or r.similarity > 0.98 for r in found)
    return n


def approximate_recall(index: ExampleIndex) -> Dict[str, Any]:
    """Of the ten nearest among the real vectors of all sets."""
    vectors = np.array(index.vectors)
    order = np.random.default_rng(0).permutation(len(vectors))
    asked, held = vectors[order[:500]], vectors[order[500:]]
    exact = VectorStore("exact", vectors.shape[1])
    exact.add(held)
    truth = exact.search(asked, 10)[1]
    out: Dict[str, Any] = {"n": len(held)}
    smallest, settings.IVF_SMALLEST = settings.IVF_SMALLEST, 1
    for kind in ("hnsw", "ivf"):
        store = VectorStore(kind, vectors.shape[1])
        store.add(held)
        found = store.search(asked, 10)[1]
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


def some(examples: List[LabelledText], n: int) -> List[LabelledText]:
    order = np.random.default_rng(0).permutation(len(examples))
    return [examples[i] for i in order[:n]]


Sets = Iterator[Tuple[str, List[LabelledText], List[LabelledText]]]


def read_sets(data: Path) -> Sets:
    for name, files in COLUMNS.items():
        read = [read_columns(open_text(data, name, file)) if file else [] for file in files]
        if not files[1]:
            read = [read[0][200:], read[0][:200]]
        yield name, read[0], read[1]
    for name, files in JSON_SETS.items():
        read = [[from_json(*line) for line in json_lines(data / file)] for file in files]
        yield name, read[0], read[1]
    read = [[from_strings(line) for line in json_lines(data / file)] for file in BOSON]
    yield "boson", read[0], read[1]


def open_text(data: Path, name: str, file: str) -> str:
    if name != "germeval2014":
        return (data / file).read_text(encoding="utf8")
    with zipfile.ZipFile(data / name / "GermEval2014.zip") as archive:
        return io.TextIOWrapper(archive.open(f"GermEval2014/{file}"), encoding="utf8").read()


def read_columns(content: str) -> List[LabelledText]:
    """Sentences of lines `token ... tag ...`, of which all columns behind the first that hold tags are
    layers of entities."""
    out, rows = [], []
    for line in [*content.split("\n"), ""]:
        cells = line.rstrip("\r").split("\t") if "\t" in line else line.split()
        if cells and cells[0].strip():
            if not cells[0].startswith("-DOCSTART-"):
                rows.append(cells)
        elif rows:
            out.append(from_rows(rows))
            rows = []
    return out


def from_rows(rows: List[List[str]]) -> LabelledText:
    starts, text = [], ""
    for cells in rows:
        starts.append(len(text) + bool(text))
        text = f"{text} {cells[0].strip()}" if text else cells[0].strip()
    ends = [start + len(cells[0].strip()) for start, cells in zip(starts, rows)]
    entities: Set[Tuple[int, int, str]] = set()
    for column in range(1, min(len(cells) for cells in rows)):
        tags = [cells[column] for cells in rows]
        if not all(tag == "O" or tag[1:2] == "-" for tag in tags):
            continue  # parts of speech, chunks
        open_label = None
        for i, tag in enumerate(tags):
            prefix, label = tag[0], tag[2:]
            if prefix != "O" and not (prefix in "IME" and label == open_label):
                first = i
            last = i + 1 == len(tags) or tags[i + 1][0] in "OBS" or tags[i + 1][2:] != label
            if prefix != "O" and last:
                entities.add((starts[first], ends[i], label))
            open_label = label if prefix != "O" else None
    return LabelledText(text, tuple(sorted(entities)))


def json_lines(path: Path) -> List[Any]:
    content = path.read_text(encoding="utf8")
    try:
        return json.loads(content)
    except json.JSONDecodeError:
        return [json.loads(line) for line in content.split("\n") if line.strip()]


def from_json(text: str, *spans: Any) -> LabelledText:
    entities = {(text.find(span[2]), text.find(span[2]) + len(span[2]), span[3]) for span in spans}
    return LabelledText(text, tuple(sorted(e for e in entities if e[0] >= 0)))


def from_strings(line: Dict[str, Any]) -> LabelledText:
    text = line["sentence"]
    spans = {(text.find(s), text.find(s) + len(s), label) for s, label in line["label"].items()}
    return LabelledText(text, tuple(sorted(s for s in spans if s[0] >= 0)))


if __name__ == "__main__":
    torch.set_num_threads(1)
    faiss.omp_set_num_threads(1)
    typer.run(main)
