"""Conversion of a probe's scores to the mentions of a Doc."""

from typing import List, Tuple

import numpy as np
from spacy.tokens import Doc

from .probes.base import Probe
from .probes.segmentation import ScoredSpan


def decode(
    doc: Doc, rows: np.ndarray, probe: Probe, threshold: float
) -> Tuple[List[Tuple[int, int, int]], List[ScoredSpan]]:
    """Find the best non-overlapping mentions, and all mentions that are probable enough.

    No mention crosses a sentence boundary, if the Doc has them, or starts or ends with whitespace.

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
    for row in rows:
        decoder.push(row)
    chosen = decoder.chain.trace()
    found = {(m.start, m.end, m.label): m.score for m in probe.all_mentions(rows, threshold)}
    missing = [m for m in chosen if m not in found]
    if missing:
        posterior = probe.all_mentions(rows, 0.0)
        scores = {(m.start, m.end, m.label): m.score for m in posterior}
        found.update({m: scores.get(m, 0.0) for m in missing})
    spaces = {token.i for token in doc if token.is_space}
    kept = [
        ScoredSpan(*key, score)
        for key, score in sorted(found.items())
        if not (key[0] in spaces or key[1] - 1 in spaces)
    ]
    keys = {(m.start, m.end, m.label) for m in kept}
    return [m for m in chosen if m in keys], kept
