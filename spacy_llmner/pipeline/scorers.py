"""The scorers of the entity components."""

from typing import Any, Callable, Dict, Iterable, List, Optional, Tuple

from spacy.scorer import Scorer, get_ner_prf
from spacy.tokens import Doc, Span, SpanGroup
from spacy.training import Example

from .gold import trim_mentions, warn_about_white_space
from .labels import doc_labels


def llmner_score(examples: Iterable[Example], **kwargs: Any) -> Dict[str, Any]:
    """Compute spaCy's precision, recall and F-score of doc.ents, and how well the scores are calibrated.

    Predictions of labels that a reference's annotators didn't look for are ignored. See `looked_for`.

    examples (Iterable[Example]): The examples.
    spans_key (str): The doc.spans group of the predicted Docs with the scores. Default "llmner".
    train_spans (Optional[str]): The doc.spans group of the references that the component was trained
        on.
    RETURNS (Dict[str, Any]): `ents_p`, `ents_r`, `ents_f`, `ents_per_type`, `ents_set_f` (see
        `set_f`) and `ents_ece`, the expected calibration error of the entities' scores (None if there
        are no scores). With `train_spans`, also `spans_p`, `spans_r`, `spans_f` and `spans_per_type`,
        which are computed for all spans found.
    """
    key, gold_key = kwargs.get("spans_key", "llmner"), kwargs.get("train_spans")
    examples = list(examples)
    warn_about_white_space("the scorer", [eg.reference for eg in examples], gold_key)
    examples = [trim_example(looked_for(eg), gold_key) for eg in examples]
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
    """Create the scorer. Registered as `spacy_llmner.ner_scorer.v1` in `@scorers`."""
    return llmner_score


def looked_for(eg: Example) -> Example:
    """Remove predictions that can't be evaluated, because the annotators didn't look for their labels.

    eg (Example): The example. `doc._.llmner_labels` of its reference can list the labels that the
        annotators looked for.
    RETURNS (Example): The example without predictions of other labels. The example itself if the
        labels are not set.
    """
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


def trim_example(eg: Example, spans_key: Optional[str] = None) -> Example:
    """Remove white space from the borders of all entities. See `trim_mentions`.

    eg (Example): The example.
    spans_key (Optional[str]): A group in doc.spans that is trimmed, too.
    RETURNS (Example): The example with trimmed entities; the example itself if nothing was removed.
    """
    docs = [trim_mentions(doc) for doc in (eg.predicted, eg.reference)]
    if spans_key is not None:
        docs = [trim_mentions(doc, spans_key) for doc in docs]
    same = docs[0] is eg.predicted and docs[1] is eg.reference
    return eg if same else Example(*docs)


def _without_gold(eg: Example, key: str, gold_key: str) -> Example:
    """RETURNS (Example): The example. The span group with the references' key is removed from its
    predicted Doc.
    """
    if gold_key == key or gold_key not in eg.predicted.spans:
        return eg
    doc = eg.predicted.copy()
    del doc.spans[gold_key]
    return Example(doc, eg.reference)


def set_f(examples: Iterable[Example]) -> Optional[float]:
    """Compute the micro F1 of the sets of (label, string) pairs of each document, as PaDeLLM-NER's
    authors do. The position of a string, and how often it occurs, doesn't matter.

    RETURNS (Optional[float]): The F1, between 0 and 1; None if no document has entity annotation.
    """
    correct = total = 0
    annotated = False
    for eg in examples:
        if eg.reference.has_annotation("ENT_IOB"):
            annotated = True
            gold, found = (
                {(e.label_, e.text) for e in doc.ents} for doc in (eg.reference, eg.predicted)
            )
            correct += len(gold & found)
            total += len(gold) + len(found)
    return 2 * correct / max(total, 1) if annotated else None


def scored_entities(examples: Iterable[Example], spans_key: str) -> List[Tuple[float, bool]]:
    """Collect the score of each predicted entity, and whether it is correct.

    examples (Iterable[Example]): The examples. Those without entity annotation are left out.
    spans_key (str): The doc.spans group with the scores.
    RETURNS (List[Tuple[float, bool]]): The score, and whether the reference has the same entity.
    """
    out = []
    for eg in examples:
        if not eg.reference.has_annotation("ENT_IOB"):
            continue
        ents = trim_mentions(eg.reference).ents
        gold = {(e.start_char, e.end_char, e.label_) for e in ents}
        scores = span_scores(eg.predicted, spans_key)
        for ent in eg.predicted.ents:
            key = ent.start_char, ent.end_char, ent.label_
            if key in scores:
                out.append((scores[key], key in gold))
    return out


def span_scores(doc: Doc, spans_key: str) -> Dict[Tuple[int, int, str], float]:
    """RETURNS (Dict[Tuple[int, int, str], float]): The score of each span, by start and end (in
    characters) and label.
    """
    if spans_key not in doc.spans:
        return {}
    group = doc.spans[spans_key]
    offsets = (tuple(key) for key in span_offsets(group))
    return dict(zip(offsets, map(float, group.attrs.get("scores", []))))


def chars(span: Span) -> List[Any]:
    """RETURNS (List): The start and end of a span in characters, and its label."""
    return [span.start_char, span.end_char, span.label_]


def span_offsets(group: SpanGroup) -> List[List[Any]]:
    """Get the character offsets and labels of the spans in a group.

    The components of this package store the offsets in their groups. So these stay correct if tokens
    are merged or split, while the spans themselves become wrong.

    RETURNS (List[List]): The result of `chars` for each span.
    """
    known = group.attrs.get("chars")
    return [chars(span) for span in group] if known is None else known


def calibration_error(scored: List[Tuple[float, bool]], n_bins: int = 10) -> Any:
    """Compute the expected calibration error: the mean of |fraction correct - mean score| over bins of
    similar scores, weighted by the sizes of the bins (Naeini et al., 2015).

    scored (List[Tuple[float, bool]]): See `scored_entities`.
    n_bins (int): The number of bins of equal width.
    RETURNS (Optional[float]): Between 0 and 1; None if there are no entities.
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
