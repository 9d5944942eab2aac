"""The data of `spacy llmner distil`: what is read, and what the pipelines are trained on."""

import warnings
from itertools import chain
from pathlib import Path
from typing import Iterable, Iterator, List, NamedTuple, Optional, Sequence, Set, Tuple

from spacy.language import Language
from spacy.tokens import Doc, DocBin

from ..errors import Errors, LLMNERError, Warnings
from ._util import check_data_path, read_examples

# One of so many annotated texts is for choosing the checkpoint, but not more than the maximum. Of labelled
# texts, it is one of LABELLED_DEV.
ANNOTATED_DEV, MAX_DEV = 10, 500
LABELLED_DEV = 5
# Fewer texts with entities can't be divided.
MIN_TEXTS = 10


class DistilData(NamedTuple):
    """The files that pipelines are trained on, in .spacy format.

    train (Path): Texts that the teacher has annotated, and labelled ones.
    dev (Path): Other such texts, to choose the checkpoint.
    labelled_train (Optional[Path]): The labelled texts in `train`, if there are any.
    labelled_dev (Optional[Path]): The labelled texts in `dev`, if there are any.
    """

    train: Path
    dev: Path
    labelled_train: Optional[Path]
    labelled_dev: Optional[Path]


def read_labelled(nlp: Language, path: Optional[Path]) -> List[Doc]:
    """RETURNS (List[Doc]): Labelled texts. None, if there is no file.
    RAISES (LLMNERError): If the file can't be used."""
    if path is None:
        return []
    check_data_path(path)
    return [eg.reference for eg in read_examples(nlp, path)]


def check_labelled(labelled: Iterable[Doc], path: Path) -> None:
    """RAISES (LLMNERError): If there are too few labelled texts to divide."""
    n = sum(1 for doc in labelled if doc.ents)
    if n < MIN_TEXTS:
        raise LLMNERError(Errors.E197.format(n=n, path=path, least=MIN_TEXTS))


def read_annotated(nlp: Language, shards: Iterable[Path]) -> Iterator[Doc]:
    """YIELDS (Doc): The annotated texts."""
    return chain.from_iterable(DocBin().from_disk(path).get_docs(nlp.vocab) for path in shards)


def write_data(
    annotated: Sequence[Doc], labelled: Sequence[Doc], folder: Path, min_score: float
) -> DistilData:
    """Divide texts into training and dev data, and write them.

    annotated (Sequence[Doc]): Texts that the teacher has annotated.
    labelled (Sequence[Doc]): Labelled texts.
    folder (Path): The folder of the files.
    min_score (float): The minimum score of the annotated entities, for an error message.
    RETURNS (DistilData): The files.
    RAISES (LLMNERError): If there are too few texts.
    """
    n_found = sum(1 for doc in annotated if doc.ents)
    if n_found < MIN_TEXTS:
        message = Errors.E193.format(n=n_found, least=MIN_TEXTS, min_score=min_score)
        raise LLMNERError(message)
    train, dev = divide(annotated, ANNOTATED_DEV, MAX_DEV)
    labelled_train = labelled_dev = None
    if labelled:
        gold_train, gold_dev = divide(labelled, LABELLED_DEV)
        labelled_train = _write(gold_train, folder / "labelled_train.spacy")
        labelled_dev = _write(gold_dev, folder / "labelled_dev.spacy")
        train, dev = [*train, *gold_train], [*dev, *gold_dev]
    return DistilData(
        train=_write(train, folder / "train.spacy"),
        dev=_write(dev, folder / "dev.spacy"),
        labelled_train=labelled_train,
        labelled_dev=labelled_dev,
    )


def divide(
    docs: Sequence[Doc], every: int, at_most: Optional[int] = None
) -> Tuple[List[Doc], List[Doc]]:
    """Divide texts. Texts with and without entities are divided separately, so that both parts have some.

    docs (Sequence[Doc]): The texts.
    every (int): One of so many texts belongs to the second part.
    at_most (Optional[int]): The maximum size of the second part.
    RETURNS (Tuple[List[Doc], List[Doc]]): Both parts, in the order of the texts.
    """
    with_ents = [i for i, doc in enumerate(docs) if doc.ents]
    without = [i for i, doc in enumerate(docs) if not doc.ents]
    chosen = [*with_ents[every - 1 :: every], *without[every - 1 :: every]]
    if at_most is not None and len(chosen) > at_most:
        chosen = [chosen[i * len(chosen) // at_most] for i in range(at_most)]
    second = set(chosen)
    return (
        [doc for i, doc in enumerate(docs) if i not in second],
        [doc for i, doc in enumerate(docs) if i in second],
    )


def check_labels(annotated: Iterable[Doc], labelled: Iterable[Doc], path: Path) -> None:
    """Check that the labels of labelled texts are those of the teacher.

    annotated (Iterable[Doc]): Texts that the teacher has annotated.
    labelled (Iterable[Doc]): Labelled texts.
    path (Path): Their file.
    RAISES (LLMNERError): If no label is the same. If only some differ, there is a warning.
    """
    found, given = labels_of(annotated), labels_of(labelled)
    names = {"path": path, "teacher": ", ".join(sorted(found)), "given": ", ".join(sorted(given))}
    if not found & given:
        raise LLMNERError(Errors.E196.format(**names))
    if found != given:
        warnings.warn(Warnings.W028.format(**names), stacklevel=2)


def labels_of(docs: Iterable[Doc]) -> Set[str]:
    """RETURNS (Set[str]): The labels of all entities."""
    return {ent.label_ for doc in docs for ent in doc.ents}


def _write(docs: Sequence[Doc], path: Path) -> Path:
    DocBin(docs=docs).to_disk(path)
    return path
