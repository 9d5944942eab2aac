"""Calibrate the example threshold: find the lowest similarity at which examples improve the predictions
for held-out texts.
"""

from bisect import bisect_right
from typing import Any, Iterator, List, Optional, Sequence, Set, Tuple

from spacy.tokens import Doc
from spacy.training import Example

from ..errors import Errors, LLMNERError
from ..pipeline.gold import gold_mentions
from ..pipeline.labels import doc_labels

# This is never reached: examples with a similarity above 0.98 are duplicates, and are never shown.
NEVER = 1.0

# Number of correct, predicted and gold entities in one window of a text
Counts = Tuple[int, int, int]
# First token, one past the last, label
Ent = Tuple[int, int, str]


def texts_to_measure(
    name: str, examples: Sequence[Example], spans_key: Optional[str]
) -> List[Example]:
    """Select the examples that are annotated.

    name (str): The component's name, for error messages.
    examples (Sequence[Example]): The examples.
    spans_key (Optional[str]): The doc.spans group with the references' entities; None for doc.ents.
    RETURNS (List[Example]): The annotated examples.
    RAISES (LLMNERError): If none of them has an entity.
    """

    def annotated(doc: Doc) -> bool:
        return doc.has_annotation("ENT_IOB") if spans_key is None else spans_key in doc.spans

    known = [eg for eg in examples if annotated(eg.reference)]
    n = sum(1 for eg in known if gold_mentions(eg, spans_key)[0])
    if not n:
        counts = {"total": len(examples), "annotated": len(known), "n": n}
        raise LLMNERError(Errors.E045.format(name=name, **counts))
    return known


def best_threshold(
    examples: Sequence[Example],
    without: Sequence[Any],
    with_examples: Sequence[Any],
    spans_key: Optional[str],
) -> float:
    """Find the lowest similarity at which predictions are better with examples than without.

    As in prediction, each window of a text is predicted with examples if the similarity of its most
    similar example reaches the threshold. Labels that the annotators of a reference didn't look for
    are ignored.

    examples (Sequence[Example]): The annotated examples.
    without, with_examples (Sequence[PredictionWithExamples]): The predictions for each text without
        and with examples.
    spans_key (Optional[str]): The doc.spans group with the references' entities; None for doc.ents.
    RETURNS (float): The threshold with the highest F1 over all texts. If several are equally good, the
        highest of them. NEVER if it is best not to use examples at all.
    """
    counts_without: List[Counts] = []
    counts_with: List[Counts] = []
    nearest: List[float] = []
    for eg, alone, found in zip(examples, without, with_examples):
        gold = set(gold_mentions(eg, spans_key)[0])
        counts_without += _by_window(eg, alone, gold, found.starts)
        counts_with += _by_window(eg, found, gold, found.starts)
        nearest += [max(s.similarities, default=-1.0) for s in found.selections]
    candidates = sorted({round(s, 3) for s in nearest if s > -1.0} | {NEVER}, reverse=True)
    best, best_f = NEVER, -1.0
    for threshold in candidates:
        chosen = [
            h if s >= threshold else p for p, h, s in zip(counts_without, counts_with, nearest)
        ]
        f = _f1(chosen)
        if f > best_f + 1e-9:
            best, best_f = threshold, f
    return best


def _by_window(eg: Example, found: Any, gold: Set[Ent], starts: Sequence[int]) -> Iterator[Counts]:
    """YIELDS (Counts): The counts of each window. An entity belongs to the window that it begins in."""
    known = doc_labels("ra_it_ner", eg.reference)
    ents = {(s.start, s.end, s.label) for s in found.ents if known is None or s.label in known}
    parts = [_in_windows(eg.predicted, spans, starts) for spans in (ents & gold, ents, gold)]
    yield from zip(*parts)


def _in_windows(doc: Doc, ents: Set[Ent], starts: Sequence[int]) -> List[int]:
    """RETURNS (List[int]): The number of entities that begin in each window. Empty if the Doc has no
    windows.
    """
    counts = [0] * len(starts)
    for start, _, _ in ents if counts else ():
        counts[max(bisect_right(starts, doc[start].idx) - 1, 0)] += 1
    return counts


def _f1(counts: List[Counts]) -> float:
    correct, predicted, gold = (sum(column) for column in zip(*counts)) if counts else (0, 0, 0)
    return 2 * correct / (predicted + gold) if predicted + gold else 0.0
