"""From a probe's scores to the mentions of a Doc."""

from typing import List, Tuple

import numpy as np
from spacy.tokens import Doc

from .probes.base import Probe
from .probes.segmentation import ScoredSpan


def decode(
    doc: Doc, rows: np.ndarray, probe: Probe, threshold: float
) -> Tuple[List[Tuple[int, int, int]], List[ScoredSpan]]:
    """Choose the best mentions that don't overlap, and list all that are probable enough.

    None crosses a sentence boundary, where the Doc has them; none begins or ends with white space.

    doc (Doc): The words.
    rows (ndarray): One for each word.
    probe (Probe): Made the rows.
    threshold (float): Probability at which a mention wins against none.
    RETURNS (Tuple[List[Tuple[int, int, int]], List[ScoredSpan]]): (start, end, label) of the chosen ones, and
        all, with their scores, the chosen ones among them.
    """
    if doc.has_annotation("SENT_START"):
        rows = probe.within_sentences(rows, [bool(t.is_sent_start) for t in doc])
    decoder = probe.decoder(threshold)
    for row in rows:
        decoder.push(row)
    chosen = decoder.chain.trace()
    every = {(m.start, m.end, m.label): m.score for m in probe.all_mentions(rows, threshold)}
    missing = [m for m in chosen if m not in every]
    if missing:
        posterior = probe.all_mentions(rows, 0.0)
        known = {(m.start, m.end, m.label): m.score for m in posterior}
        every.update({m: known.get(m, 0.0) for m in missing})
    spaces = {token.i for token in doc if token.is_space}
    kept = [
        ScoredSpan(*key, score)
        for key, score in sorted(every.items())
        if not (key[0] in spaces or key[1] - 1 in spaces)
    ]
    keys = {(m.start, m.end, m.label) for m in kept}
    return [m for m in chosen if m in keys], kept
