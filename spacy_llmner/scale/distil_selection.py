"""Choose training data from texts that a pipeline has annotated.

What the pipeline is not sure of is neither taught as an entity nor as "no entity".
"""

import random
from itertools import groupby
from typing import Dict, Iterable, List, NamedTuple, Set

from spacy.tokens import Doc, Span

from ..pipeline.gold import overlapping_tokens
from ..util import is_blank
from .writers import ENTITIES, SPANS, found_in

# Entities that are at least as probable as the first are kept. Spans between the two are doubtful.
MIN_SCORE, DOUBT_SCORE = 0.6, 0.2
# Texts without entities for each text with entities. More of them teach the student to find nothing.
MAX_EMPTY = 1.0

# Why texts are left out.
DOUBTFUL = "with nothing but doubtful entities"
EMPTY = "without entities: more than the texts with entities"
BLANK = "without words"
REPEATED = "the same text again"
KNOWN = "also in the labelled or the test texts"


class Marked(NamedTuple):
    """A Doc whose doubtful tokens are marked as unknown.

    doc (Doc): The words and the certain entities. `ent_iob` is 0 for doubtful tokens.
    n_doubtful (int): The number of doubtful passages.
    """

    doc: Doc
    n_doubtful: int


class Selection(NamedTuple):
    """The texts that are used for training.

    docs (List[Doc]): The texts, in the order of the input.
    n_doubtful (int): The number of passages in them that are marked as unknown.
    n_with_doubt (int): The number of texts with such passages.
    left_out (Dict[str, int]): How many texts are left out, for each reason.
    """

    docs: List[Doc]
    n_doubtful: int
    n_with_doubt: int
    left_out: Dict[str, int]


def select(
    docs: Iterable[Doc], min_score: float, doubt_score: float, known: Iterable[str] = ()
) -> Selection:
    """Choose the texts to train on.

    docs (Iterable[Doc]): The annotated texts.
    min_score (float): Entities with a lower score are not certain.
    doubt_score (float): Spans with a lower score are not entities.
    known (Iterable[str]): Texts that must be left out, because they are labelled or used for evaluation.
    RETURNS (Selection): The texts, with the annotation that is certain.
    """
    left_out = dict.fromkeys((DOUBTFUL, EMPTY, BLANK, REPEATED, KNOWN), 0)
    known_texts = set(known)
    seen: Set[str] = set()
    chosen: List[Marked] = []
    for doc in docs:
        if is_blank(doc.text):
            left_out[BLANK] += 1
            continue
        if doc.text in known_texts or doc.text in seen:
            left_out[KNOWN if doc.text in known_texts else REPEATED] += 1
            continue
        seen.add(doc.text)
        marked = mark_doubtful(doc, min_score, doubt_score)
        if marked.n_doubtful and not marked.doc.ents:
            left_out[DOUBTFUL] += 1
        else:
            chosen.append(marked)
    empty = [i for i, marked in enumerate(chosen) if not marked.doc.ents]
    n_kept = min(len(empty), int(MAX_EMPTY * (len(chosen) - len(empty))))
    left_out[EMPTY] = len(empty) - n_kept
    drop = set(empty) - set(random.Random(0).sample(empty, n_kept))
    kept = [marked for i, marked in enumerate(chosen) if i not in drop]
    return Selection(
        docs=[marked.doc for marked in kept],
        n_doubtful=sum(marked.n_doubtful for marked in kept),
        n_with_doubt=sum(1 for marked in kept if marked.n_doubtful),
        left_out=left_out,
    )


def mark_doubtful(doc: Doc, min_score: float, doubt_score: float) -> Marked:
    """Copy a Doc, and mark the tokens of doubtful entities as unknown.

    doc (Doc): An annotated Doc. Entities without scores are certain.
    min_score (float): Entities with a lower score are not certain.
    doubt_score (float): Spans with a lower score are not entities. The others, in doc.ents or doc.spans,
        are doubtful if they are not certain and don't overlap a certain entity.
    RETURNS (Marked): The copy.
    """
    copy = Doc(
        doc.vocab,
        words=[token.text for token in doc],
        spaces=[bool(token.whitespace_) for token in doc],
    )
    found = found_in(doc, spans=True)
    certain, others = [], []
    for ent, row in zip(doc.ents, found[ENTITIES]):
        if row["score"] is None or row["score"] >= min_score:
            certain.append(ent)
        else:
            others.append(row)
    taken = {i for ent in certain for i in range(ent.start, ent.end)}
    doubtful: Set[int] = set()
    for row in [*others, *found[SPANS]]:
        if row["score"] is None or row["score"] < doubt_score:
            continue
        tokens = set(range(*overlapping_tokens(doc, row["start"], row["end"])))
        if not tokens & taken:
            doubtful |= tokens
    copy.set_ents(
        [Span(copy, ent.start, ent.end, label=ent.label_) for ent in certain],
        missing=[copy[i : i + 1] for i in sorted(doubtful)],
        default="outside",
    )
    # Neighbouring tokens have the same difference.
    passages = groupby(enumerate(sorted(doubtful)), lambda pair: pair[1] - pair[0])
    return Marked(copy, sum(1 for _ in passages))
