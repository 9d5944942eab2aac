"""Conversion of a probe's scores to the mentions of Docs."""

from typing import Any, List, Sequence

import numpy as np
from spacy.attrs import ORTH, SENT_START
from spacy.tokens import Doc

from ..util import is_blank, split
from .features.words import token_attributes
from .probes.base import Probe
from .probes.segmentation import Decoded


def decode(
    docs: Sequence[Doc], texts: Sequence[np.ndarray], probe: Probe, threshold: float
) -> List[Decoded]:
    """Find the best non-overlapping mentions, and all mentions that are probable enough.

    No mention starts or ends with a blank word. If a Doc has sentence boundaries, no mention crosses one.

    docs (Sequence[Doc]): The Docs.
    texts (Sequence[ndarray]): The probe's scores of each Doc, one row per word.
    probe (Probe): The probe that computed the rows.
    threshold (float): Probability at which a mention is preferred over no mention.
    RETURNS (List[Decoded]): For each Doc, the best mentions, and all mentions with their scores.
    """
    n_words = [len(doc) for doc in docs]
    attributes = token_attributes(docs, [ORTH, SENT_START])
    blank: List[Any] = split(_blank_words(docs, attributes[:, 0], n_words), n_words)
    starts: List[Any] = split(attributes[:, 1] == 1, n_words)
    within = [
        probe.within_sentences(rows, starts_of_doc) if doc.has_annotation("SENT_START") else rows
        for doc, rows, starts_of_doc in zip(docs, texts, starts)
    ]
    return probe.decode(within, blank, threshold)


def _blank_words(docs: Sequence[Doc], orths: np.ndarray, n_words: Sequence[int]) -> np.ndarray:
    """RETURNS (ndarray): bool, shape (words,): whether each word is blank. Each form is looked up once."""
    forms, first = np.unique(orths, return_index=True)
    # A form is looked up in the vocabulary of a Doc that contains it.
    containing = np.repeat(np.arange(len(docs)), n_words)[first].tolist()
    pairs = zip(forms.tolist(), containing)
    blank = [form for form, i in pairs if is_blank(docs[i].vocab.strings[form])]
    return np.isin(orths, np.array(blank, dtype=np.uint64))
