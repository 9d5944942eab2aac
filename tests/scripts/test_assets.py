import hashlib
from pathlib import Path

import pytest
import srsly
from spacy.tokens import DocBin
from spacy.vocab import Vocab

from spacy_llmner.cli.convert import convert

ROOT = Path(__file__).parents[2]

ASSETS = sorted((ROOT / "assets").glob("*.jsonl"))


@pytest.mark.parametrize("path", ASSETS, ids=lambda path: path.stem)
def test_corpora_of_the_project_are_converted_without_loss(path, tmp_path):
    lang = "zh" if path.stem.startswith("zh") else "en"
    output = tmp_path / "out.spacy"
    nested = path.stem.startswith("nested")
    labels = {"PERSON", "ORG", "LOC", "PRODUCT", "EVENT", "WORK"}
    convert(path, output, lang, nested=nested, labels=labels)
    docs = list(DocBin().from_disk(output).get_docs(Vocab()))
    lines = list(srsly.read_jsonl(path))
    assert [doc.text for doc in docs] == [line["text"] for line in lines]
    for doc, line in zip(docs, lines):
        spans = doc.spans["sc"] if nested else doc.ents
        found = [(span.start_char, span.end_char, span.label_) for span in spans]
        assert found == [(s["start"], s["end"], s["label"]) for s in line["spans"]]


@pytest.mark.parametrize("corpus", ["en", "zh", "nested"])
def test_parts_of_a_corpus_share_neither_topics_nor_names(corpus):
    topics, names = {}, {}
    for part in ("train", "dev", "test"):
        lines = list(srsly.read_jsonl(ROOT / "assets" / f"{corpus}_{part}.jsonl"))
        topics[part] = {line["topic"] for line in lines}
        names[part] = {
            line["text"][span["start"] : span["end"]].casefold()
            for line in lines
            for span in line["spans"]
        }
        if corpus != "nested":
            free = sum(not line["spans"] for line in lines) / len(lines)
            assert 0.22 <= free <= 0.28
    for one, other in (("train", "dev"), ("train", "test"), ("dev", "test")):
        assert not topics[one] & topics[other]
        assert not names[one] & names[other]


def test_readme_lists_the_checksums():
    readme = (ROOT / "assets" / "README.md").read_text(encoding="utf8")
    for path in ASSETS:
        assert f"| `{path.name}` | `{hashlib.sha256(path.read_bytes()).hexdigest()}` |" in readme
