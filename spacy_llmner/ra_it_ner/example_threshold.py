"""When do examples help? As similar as they are, by what they did on held-out texts (methods.md 3c)."""

from bisect import bisect_right
from typing import Any, Iterator, List, Optional, Sequence, Set, Tuple

from spacy.tokens import Doc
from spacy.training import Example

from ..errors import Errors, LLMNERError
from ..pipeline.gold import gold_mentions
from ..pipeline.labels import doc_labels

# No example is that similar: those above 0.98 are duplicates, and never shown.
NEVER = 1.0

# (right, found, there) entities of one window of a text
Counts = Tuple[int, int, int]
# First token, one past the last, label
Ent = Tuple[int, int, str]


def texts_to_measure(
    name: str, examples: Sequence[Example], spans_key: Optional[str]
) -> List[Example]:
    """RETURNS (List[Example]): Those that are annotated.
    RAISES (LLMNERError): If nothing can be measured, since none has an entity."""

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
    behind: Sequence[Any],
    spans_key: Optional[str],
) -> float:
    """Find the similarity from which on texts are read better behind examples.

    A window of a text counts as read behind examples if the most similar one reaches the threshold, as
    when it is read. Labels that the annotators of a reference did not look for don't count.

    without, behind (Sequence[FoundInContext]): What was found in each text without and with examples.
    spans_key (Optional[str]): Where the references hold their entities, None for doc.ents.
    RETURNS (float): With the best F1 over all texts; of equals the highest. NEVER if
        it is best not to use examples at all.
    """
    plain: List[Counts] = []
    helped: List[Counts] = []
    nearest: List[float] = []
    for eg, alone, found in zip(examples, without, behind):
        gold = set(gold_mentions(eg, spans_key)[0])
        plain += _by_window(eg, alone, gold, found.starts)
        helped += _by_window(eg, found, gold, found.starts)
        nearest += [max(s.similarities, default=-1.0) for s in found.selections]
    candidates = sorted({round(s, 3) for s in nearest if s > -1.0} | {NEVER}, reverse=True)
    best, best_f = NEVER, -1.0
    for threshold in candidates:
        chosen = [h if s >= threshold else p for p, h, s in zip(plain, helped, nearest)]
        f = _f1(chosen)
        if f > best_f + 1e-9:
            best, best_f = threshold, f
    return best


def _by_window(eg: Example, found: Any, gold: Set[Ent], starts: Sequence[int]) -> Iterator[Counts]:
    """YIELDS (Counts): For each window; an entity is where it begins."""
    known = doc_labels("ra_it_ner", eg.reference)
    ents = {(s.start, s.end, s.label) for s in found.ents if known is None or s.label in known}
    parts = [_in_windows(eg.predicted, spans, starts) for spans in (ents & gold, ents, gold)]
    yield from zip(*parts)


def _in_windows(doc: Doc, ents: Set[Ent], starts: Sequence[int]) -> List[int]:
    """RETURNS (List[int]): How many entities begin in each window, if anything of the Doc was read."""
    counts = [0] * len(starts)
    for start, _, _ in ents if counts else ():
        counts[max(bisect_right(starts, doc[start].idx) - 1, 0)] += 1
    return counts


def _f1(counts: List[Counts]) -> float:
    right, found, there = (sum(column) for column in zip(*counts)) if counts else (0, 0, 0)
    return 2 * right / (found + there) if found + there else 0.0
