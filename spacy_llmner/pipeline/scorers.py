"""Scorers of the entity components."""

from typing import Any, Callable, Dict, Iterable, List, Optional, Tuple

from spacy.scorer import Scorer, get_ner_prf
from spacy.tokens import Doc, Span, SpanGroup
from spacy.training import Example

from .labels import doc_labels


def llmner_score(examples: Iterable[Example], **kwargs: Any) -> Dict[str, Any]:
    """Precision, recall and F of doc.ents as spaCy counts them, and how honest the scores are. What a
    reference's annotators did not look for is left out, see `looked_for`.

    spans_key (str): Where the predicted docs hold their scores.
    train_spans (Optional[str]): Which doc.spans of the references were learnt from.
    RETURNS (Dict[str, Any]): `ents_p`, `ents_r`, `ents_f`, `ents_per_type`, `ents_set_f` (see `set_f`) and
        `ents_ece`, the expected calibration error of the entities' scores (None if there are no scores).
        With `train_spans` also `spans_p`, `spans_r`, `spans_f` and `spans_per_type`, of all that was found.
    """
    examples = [looked_for(eg) for eg in examples]
    key, gold_key = kwargs.get("spans_key", "llmner"), kwargs.get("train_spans")
    scores = get_ner_prf(examples)
    scores["ents_set_f"] = set_f(examples)
    scores["ents_ece"] = calibration_error(scored_entities(examples, key))
    if gold_key:
        scores |= Scorer.score_spans(
            [_without_gold(eg, key, gold_key) for eg in examples],
            "spans",
            getter=lambda doc, _: doc.spans.get(gold_key, doc.spans.get(key, ())),
            has_annotation=lambda doc: gold_key in doc.spans or key in doc.spans,
            allow_overlap=True,
        )
    return scores


def make_llmner_scorer() -> Callable:
    """Registered as `spacy_llmner.ner_scorer.v1` in `@scorers`."""
    return llmner_score


def looked_for(eg: Example) -> Example:
    """RETURNS (Example): Without what was found of labels other than those that the annotators of the
    reference looked for, if that says so in `doc._.llmner_labels`: it may be right."""
    labels = doc_labels("the scorer", eg.reference)
    if labels is None:
        return eg
    doc = eg.predicted.copy()
    doc.set_ents([ent for ent in doc.ents if ent.label_ in labels], default="outside")
    for key, group in list(doc.spans.items()):
        kept = [i for i, span in enumerate(group) if span.label_ in labels]
        attrs = dict(group.attrs)
        for name in {"scores", "chars"}.intersection(attrs):
            attrs[name] = [attrs[name][i] for i in kept]
        doc.spans[key] = SpanGroup(doc, name=key, spans=[group[i] for i in kept], attrs=attrs)
    return Example(doc, eg.reference)


def _without_gold(eg: Example, key: str, gold_key: str) -> Example:
    """RETURNS (Example): With nothing under the references' key on the predicted Doc."""
    if gold_key == key or gold_key not in eg.predicted.spans:
        return eg
    doc = eg.predicted.copy()
    del doc.spans[gold_key]
    return Example(doc, eg.reference)


def set_f(examples: Iterable[Example]) -> Optional[float]:
    """Micro F1 of the sets of (label, string) of each document, as PaDeLLM-NER's authors count: where a
    string stands, and how often, does not matter.

    RETURNS (Optional[float]): None if no document has entity annotation.
    """
    right = total = 0
    annotated = False
    for eg in examples:
        if eg.reference.has_annotation("ENT_IOB"):
            annotated = True
            gold, found = (
                {(e.label_, e.text) for e in doc.ents} for doc in (eg.reference, eg.predicted)
            )
            right += len(gold & found)
            total += len(gold) + len(found)
    return 2 * right / max(total, 1) if annotated else None


def scored_entities(examples: Iterable[Example], spans_key: str) -> List[Tuple[float, bool]]:
    """Collect the score of each predicted entity and whether the reference has that entity.

    RETURNS (List[Tuple[float, bool]]): Without documents that have no entity annotation.
    """
    out = []
    for eg in examples:
        if not eg.reference.has_annotation("ENT_IOB"):
            continue
        gold = {(e.start_char, e.end_char, e.label_) for e in eg.reference.ents}
        scores = span_scores(eg.predicted, spans_key)
        for ent in eg.predicted.ents:
            place = ent.start_char, ent.end_char, ent.label_
            if place in scores:
                out.append((scores[place], place in gold))
    return out


def span_scores(doc: Doc, spans_key: str) -> Dict[Tuple[int, int, str], float]:
    """RETURNS (Dict[Tuple[int, int, str], float]): Score by start (in characters), end and label."""
    if spans_key not in doc.spans:
        return {}
    group = doc.spans[spans_key]
    places = (tuple(place) for place in places_of(group))
    return dict(zip(places, map(float, group.attrs.get("scores", []))))


def chars(span: Span) -> List[Any]:
    """RETURNS (List): Start and end of a span in characters, and its label."""
    return [span.start_char, span.end_char, span.label_]


def places_of(group: SpanGroup) -> List[List[Any]]:
    """RETURNS (List[List]): `chars` of the spans in a group. Of one of ours, also when tokens were merged
    or split since, after which the spans themselves are wrong."""
    known = group.attrs.get("chars")
    return [chars(span) for span in group] if known is None else known


def calibration_error(scored: List[Tuple[float, bool]], n_bins: int = 10) -> Any:
    """Expected calibration error: |share correct - mean score| over bins of like score, weighted by
    their size (Naeini et al., 2015).

    RETURNS (Optional[float]): Between 0 and 1; None without entities.
    """
    if not scored:
        return None
    error = 0.0
    for k in range(n_bins):
        inside = [(s, c) for s, c in scored if min(int(s * n_bins), n_bins - 1) == k]
        if inside:
            gap = sum(c for _, c in inside) - sum(s for s, _ in inside)
            error += abs(gap) / len(scored)
    return error
