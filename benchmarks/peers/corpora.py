"""Write the public corpora for `benchmarks.peers.run`, from files as their publishers wrote them.

    python -m benchmarks.peers.corpora DATA OUT

It writes OUT/NAME_train.spacy, NAME_dev.spacy and NAME_test.spacy: WNUT-17, NCBI Disease, and GENIA. Of
GENIA's nested mentions, the longest are used. Its training part is not in DATA, so three quarters of its
dev part are used for training.
"""

import random
from pathlib import Path
from typing import Dict, List, Tuple

import spacy
import typer

from scripts.matcher_data import HYPHENATED, Sentence, read, write

FILES: Dict[str, Tuple[str, str, str]] = {
    "wnut17": (
        "wnut17/wnut17train.conll",
        "wnut17/emerging.dev.conll",
        "wnut17/emerging.test.annotated",
    ),
    "ncbi": ("ncbi_disease/train.tsv", "ncbi_disease/devel.tsv", "ncbi_disease/test.tsv"),
    "genia": (
        "genia/boundary-aware/genia.dev.iob2",
        "genia/boundary-aware/genia.dev.iob2",
        "genia/boundary-aware/genia.test.iob2",
    ),
}
MIN_WORDS = 3


def main(data: Path, out: Path) -> None:
    vocab = spacy.blank("en").vocab
    for name, files in FILES.items():
        train, dev, test = (kept(data / file) for file in files)
        if files[0] == files[1]:
            random.Random(0).shuffle(train)
            n = len(train) * 3 // 4
            train, dev = train[:n], train[n:]
        for part, sentences in (("train", train), ("dev", dev), ("test", test)):
            write(out / f"{name}_{part}.spacy", sentences, vocab, name in HYPHENATED)


def kept(path: Path) -> List[Sentence]:
    return [sentence for sentence in read(path) if len(sentence[0]) >= MIN_WORDS]


if __name__ == "__main__":
    typer.run(main)
