"""The public data sets of the retrieval benchmarks, as their publishers wrote them."""

import io
import json
import zipfile
from pathlib import Path
from typing import Any, Dict, Iterator, List, Set, Tuple

from spacy_llmner.retrieval.examples import LabelledText

# Files of the pool and of the queries. "": both are taken from the first file (the files of Few-NERD have
# no label in common).
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


Sets = Iterator[Tuple[str, List[LabelledText], List[LabelledText]]]


def read_sets(data: Path) -> Sets:
    """YIELDS (Tuple[str, List[LabelledText], List[LabelledText]]): Name, pool and queries of each data
    set."""
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
    """Read sentences of lines `token ... tag ...`. Each column after the first that contains only tags of
    entities is a layer of entities."""
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
            continue  # such as parts of speech
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
