"""Conversion of a probe's scores to the mentions of a Doc."""

from typing import List, Tuple

import numpy as np
from spacy.tokens import Doc

from ..util import is_blank
from .probes.base import Probe
from .probes.segmentation import ScoredSpan


def decode(
    doc: Doc, rows: np.ndarray, probe: Probe, threshold: float
) -> Tuple[List[Tuple[int, int, int]], List[ScoredSpan]]:
    """Find the best non-overlapping mentions, and all mentions that are probable enough.

    No mention starts or ends with a blank word. If the Doc has sentence boundaries, no mention crosses one.

    doc (Doc): The Doc.
    rows (ndarray): The probe's scores, one row per word.
    probe (Probe): The probe that computed the rows.
    threshold (float): Probability at which a mention is preferred over no mention.
    RETURNS (Tuple[List[Tuple[int, int, int]], List[ScoredSpan]]): (start, end, label index) of the best
        mentions, and all mentions with their scores. The latter include the former.
    """
    if doc.has_annotation("SENT_START"):
        rows = probe.within_sentences(rows, [bool(t.is_sent_start) for t in doc])
    decoder = probe.decoder(threshold)
    blank = [is_blank(token.text) for token in doc]
    for row, is_blank_word in zip(rows, blank):
        decoder.push(row, is_blank_word)
    chosen = decoder.chain.trace()
    found = {(m.start, m.end, m.label): m.score for m in probe.all_mentions(rows, blank, threshold)}
    missing = [m for m in chosen if m not in found]
    if missing:
        posterior = probe.all_mentions(rows, blank, 0.0)
        scores = {(m.start, m.end, m.label): m.score for m in posterior}
        found.update({m: scores.get(m, 0.0) for m in missing})
    return chosen, [ScoredSpan(*key, score) for key, score in sorted(found.items())]
