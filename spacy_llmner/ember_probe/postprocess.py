"""Conversion of a probe's scores to the mentions of Docs."""

from typing import Dict, List, Sequence

import numpy as np
from spacy.attrs import ORTH, SENT_START
from spacy.tokens import Doc

from ..util import is_blank
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
    within = [
        probe.within_sentences(rows, doc.to_array(SENT_START) == 1)
        if doc.has_annotation("SENT_START")
        else rows
        for doc, rows in zip(docs, texts)
    ]
    return probe.decode(within, blank_words(docs), threshold)


def blank_words(docs: Sequence[Doc]) -> List[List[bool]]:
    """RETURNS (List[List[bool]]): For each Doc, whether each of its words is blank."""
    known: Dict[int, bool] = {}
    out = []
    for doc in docs:
        words = doc.to_array(ORTH).tolist()
        for word in set(words).difference(known):
            known[word] = is_blank(doc.vocab.strings[word])
        out.append([known[word] for word in words])
    return out
