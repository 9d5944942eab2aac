"""The corpora of the benchmarks of `ra_it_ner`, as their publishers wrote them."""

import random
from collections import Counter
from pathlib import Path
from typing import Iterator, List

import spacy
from spacy.language import Language
from spacy.tokens import Doc
from spacy.training import Example

from spacy_llmner.corpora.docs import read_sentences
from spacy_llmner.corpora.rows import Format

# Files to tune on.
TUNED_ON = {
    "Few-NERD": "fewnerd/dev.txt",
    "WNUT-17": "wnut17/wnut17train.conll",
    "CoNLL-2003": "conll03/allanj/train.txt",
    "LitBank": "litbank/train.data",
}
# Domains of CrossNER.
DOMAINS = ("ai", "literature", "music", "politics", "science")
# Words for labels that are abbreviations, or several words written as one.
LABEL_WORDS = {
    "PER": "person", "ORG": "organization", "LOC": "location", "MISC": "miscellaneous",
    "FAC": "facility", "GPE": "geopolitical entity", "VEH": "vehicle",
    "location_GPE": "geopolitical entity", "programlang": "programming language",
    "literarygenre": "literary genre", "musicalartist": "musical artist", "musicgenre": "music genre",
    "musicalinstrument": "musical instrument", "politicalparty": "political party",
    "astronomicalobject": "astronomical object", "chemicalcompound": "chemical compound",
    "chemicalelement": "chemical element", "academicjournal": "academic journal",
}  # fmt: skip


def mix(nlp: Language, data: Path, n: int) -> List[Example]:
    """Sample the same number of texts from each corpus to tune on.

    n (int): Total number of texts.
    RETURNS (List[Example]): The texts. Each is only asked about the labels of its own corpus.
    """
    out: List[Example] = []
    for part, path in TUNED_ON.items():
        docs = [doc for doc in read_docs(nlp, data / path) if 5 <= len(doc) <= 50]
        labels = sorted({ent.label_ for doc in docs for ent in doc.ents})
        for doc in random.Random(part).sample(docs, n // len(TUNED_ON)):
            doc._.llmner_labels = labels
            out.append(Example(without_entities(nlp, doc), doc))
    return out


def sample(nlp: Language, data: Path, domain: str, part: str, n: int) -> List[Doc]:
    """RETURNS (List[Doc]): A sample of `n` texts of one part of a domain, the same at each call."""
    docs = list(read_docs(nlp, data / "crossner" / domain / f"{part}.txt"))
    return random.Random(domain).sample(docs, n)


def read_docs(nlp: Language, path: Path) -> Iterator[Doc]:
    """Read a column file. Of nested mentions, only the longest are used."""
    nested = "litbank" in path.parts
    for sentence in read_sentences(path, nlp, Format.conll, Counter(), nested=nested):
        doc = Doc(nlp.vocab, words=sentence.words)
        spans = [
            spacy.tokens.Span(doc, start, end, label=label_words(label))
            for start, end, label in sentence.spans
        ]
        doc.set_ents(spacy.util.filter_spans(spans))
        yield doc


def without_entities(nlp: Language, doc: Doc) -> Doc:
    return Doc(nlp.vocab, words=[t.text for t in doc], spaces=[bool(t.whitespace_) for t in doc])


def label_words(label: str) -> str:
    if label in LABEL_WORDS:
        return LABEL_WORDS[label]
    kind, _, detail = label.partition("_")
    if not detail:
        return label
    return f"other {kind}" if detail == "other" else detail
