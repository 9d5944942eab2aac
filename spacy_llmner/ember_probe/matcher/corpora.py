"""The corpora on which a matcher is trained: each with its own labels, which have names and parents."""

import random
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Dict, List, Mapping, Optional, Sequence, Set, Tuple

import srsly
from spacy.tokens import Doc, DocBin
from spacy.training import Example
from spacy.vocab import Vocab

from ...errors import Errors, LLMNERError
from ...pipeline.gold import gold_mentions
from ...pipeline.labels import doc_labels
from .label_states import phrases_of

# Mention in words: start, end and label.
Mention = Tuple[int, int, str]
# A label is offered under its first name in this share of the batches, and under any of its names in the
# others.
FIRST_NAME = 0.5
# Shares of the labels that a batch offers: one is drawn for each batch. Batches with few labels teach that
# other entities are not wanted.
SHARES = (0.3, 0.6, 1.0)
# Probability that a batch offers a parent of its labels.
PARENTS = 0.6
# Names for entities of any kind, and the probability that a batch offers only one of them.
ANYTHING = ("entity", "name")
ANYTHING_RATE = 0.1


@dataclass
class Labels:
    """Names and parents of labels.

    names (Dict[str, List[str]]): The names of each label, the best one first.
    parents (Dict[str, str]): More general labels. An entity belongs to its own label if a batch offers it,
        otherwise to the parent.
    """

    names: Dict[str, List[str]] = field(default_factory=dict)
    parents: Dict[str, str] = field(default_factory=dict)

    def names_of(self, label: str) -> List[str]:
        """RETURNS (List[str]): The names of a label. By default, the label in words."""
        return self.names.get(label) or phrases_of("pretrain-matcher", label, {}, {})


def read_labels(path: Optional[Path]) -> Labels:
    """Read a JSON file such as {"PER": {"names": ["person"]}, "actor": {"names": [], "parent": "PER"}}.

    path (Optional[Path]): The file. None if all labels stand for themselves.
    RETURNS (Labels): The labels.
    RAISES (LLMNERError): If the file has another format.
    """
    labels = Labels()
    if path is None:
        return labels
    try:
        for label, entry in srsly.read_json(path).items():
            names: Any = entry.get("names", [])
            if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
                raise ValueError(f"the names of '{label}' are not a list of words")
            labels.names[label] = names
            if "parent" in entry:
                labels.parents[label] = str(entry["parent"])
    except (AttributeError, OSError, ValueError) as e:
        raise LLMNERError(Errors.E151.format(path=path, reason=e)) from e
    return labels


@dataclass
class Corpus:
    """Annotated texts.

    name (str): Name of the file.
    docs (List[Doc]): The texts.
    mentions (List[List[Mention]]): The entities of each text.
    unknown (List[List[Tuple[int, int]]]): For each text, the words without annotation.
    asked (List[Set[str]]): For each text, the labels that its annotators looked for.
    """

    name: str
    docs: List[Doc]
    mentions: List[List[Mention]]
    unknown: List[List[Tuple[int, int]]]
    asked: List[Set[str]]


def read_corpus_file(path: Path, vocab: Vocab) -> Corpus:
    """Read a .spacy file. The annotators looked for the labels in `doc._.llmner_labels`, or by default for
    all labels that the file contains.

    path (Path): The file.
    vocab (Vocab): The vocabulary.
    RETURNS (Corpus): The texts that are not empty.
    RAISES (LLMNERError): If the file can't be read, or has no entities.
    """
    try:
        docs = [doc for doc in DocBin().from_disk(path).get_docs(vocab) if len(doc)]
    except Exception as e:
        raise LLMNERError(Errors.E151.format(path=path, reason=f"{type(e).__name__}: {e}")) from e
    gold = [gold_mentions(Example(doc, doc)) for doc in docs]
    everything = {label for mentions, _ in gold for _, _, label in mentions}
    if not everything:
        raise LLMNERError(Errors.E151.format(path=path, reason="it contains no entities"))
    asked = []
    for doc in docs:
        own = doc_labels(path.name, doc)
        asked.append(everything if own is None else set(own))
    return Corpus(path.stem, docs, [m for m, _ in gold], [u for _, u in gold], asked)


@dataclass
class Offer:
    """The labels that a batch offers.

    names (List[str]): A name of each label.
    index (Dict[str, int]): For each label of the corpus that is wanted, the index of its name.
    """

    names: List[str]
    index: Mapping[str, int]


def draw_offer(asked: Sequence[str], labels: Labels, rng: random.Random) -> Offer:
    """Draw the labels that a batch offers.

    asked (Sequence[str]): The labels that the annotators of all its texts looked for.
    labels (Labels): Names and parents.
    rng (Random): The source of randomness.
    RETURNS (Offer): At least one label.
    """
    if rng.random() < ANYTHING_RATE:
        return Offer([rng.choice(ANYTHING)], dict.fromkeys(asked, 0))
    share = rng.choice(SHARES)
    own = [label for label in asked if rng.random() < share] or [rng.choice(list(asked))]
    above = sorted({labels.parents[label] for label in asked if label in labels.parents})
    parents = [label for label in above if label not in own and rng.random() < PARENTS]
    offered = {label: k for k, label in enumerate([*own, *parents])}
    names = []
    for label in offered:
        known = labels.names_of(label)
        names.append(known[0] if rng.random() < FIRST_NAME else rng.choice(known))
    index = {}
    for label in asked:
        best = label if label in offered else labels.parents.get(label)
        if best in offered:
            index[label] = offered[best]
    return Offer(names, index)
