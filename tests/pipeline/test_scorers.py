import pytest
import spacy
from spacy.tokens import Span, SpanGroup
from spacy.training import Example

from spacy_llmner.pipeline.scorers import (
    calibration_error,
    llmner_score,
    make_llmner_scorer,
    scored_entities,
    set_f,
    span_scores,
)

TEXT = "Mira Stone met Oskar Blum in Varnholm"


@pytest.fixture
def nlp():
    return spacy.blank("en")


def make_example(nlp, found, gold):
    """found: (start, end, label, score) in tokens; gold: the same without score, or None."""
    doc, reference = nlp(TEXT), nlp(TEXT)
    spans = [Span(doc, s, e, label=label) for s, e, label, _ in found]
    scores = [score for *_, score in found]
    doc.set_ents(spans)
    doc.spans["sc"] = SpanGroup(doc, spans=spans, attrs={"scores": scores})
    if gold is not None:
        reference.set_ents([Span(reference, s, e, label=label) for s, e, label in gold])
    return Example(doc, reference)


def test_scores_as_spacy_counts_them(nlp):
    found = [(0, 2, "PER", 0.9), (3, 5, "LOC", 0.6), (6, 7, "LOC", 0.8)]
    gold = [(0, 2, "PER"), (3, 5, "PER"), (6, 7, "LOC")]
    result = make_llmner_scorer()([make_example(nlp, found, gold)], spans_key="sc")
    assert result["ents_p"] == result["ents_r"] == pytest.approx(2 / 3)
    assert result["ents_per_type"]["PER"]["r"] == 0.5
    # One bin each: |1 - 0.9|, |0 - 0.6| and |1 - 0.8|.
    assert result["ents_ece"] == pytest.approx((0.1 + 0.6 + 0.2) / 3)


def test_without_scores(nlp):
    eg = make_example(nlp, [(0, 2, "PER", 0.9)], [(0, 2, "PER")])
    result = llmner_score([eg], spans_key="elsewhere")
    assert result["ents_f"] == 1.0
    assert result["ents_ece"] is None


def test_without_annotation(nlp):
    eg = make_example(nlp, [(0, 2, "PER", 0.9)], None)
    assert scored_entities([eg], "sc") == []
    result = llmner_score([eg], spans_key="sc")
    assert result["ents_f"] is None and result["ents_ece"] is None


def test_f_of_sets_of_strings(nlp):
    """Neither the position nor the number of occurrences of a string matters, but its label does."""
    doc, reference = nlp("Rome saw Rome and Varnholm"), nlp("Rome saw Rome and Varnholm")
    doc.set_ents([Span(doc, 2, 3, "LOC"), Span(doc, 4, 5, "PER")])
    reference.set_ents([Span(reference, i, i + 1, "LOC") for i in (0, 2, 4)])
    result = llmner_score([Example(doc, reference)], spans_key="sc")
    assert result["ents_set_f"] == 2 * 1 / (2 + 2)
    assert set_f([make_example(nlp, [], None)]) is None


def test_annotated_without_entities_counts_as_wrong(nlp):
    eg = make_example(nlp, [(0, 2, "PER", 0.9)], [])
    assert scored_entities([eg], "sc") == [(0.9, False)]


def test_span_scores(nlp):
    doc = make_example(nlp, [(0, 2, "PER", 0.9)], []).predicted
    assert span_scores(doc, "sc") == {(0, 10, "PER"): 0.9}
    assert span_scores(doc, "no") == {}
    doc.spans["bare"] = [doc[0:1]]
    assert span_scores(doc, "bare") == {}


@pytest.mark.parametrize(
    "scored,expected",
    [
        ([], None),
        ([(1.0, True)], 0.0),
        ([(1.0, False)], 1.0),
        ([(0.75, True)] * 3 + [(0.75, False)], 0.0),
        ([(0.95, True), (0.95, False)], 0.45),
        ([(0.05, False), (0.95, True)], 0.05),
    ],
)
def test_calibration_error(scored, expected):
    assert calibration_error(scored) == (None if expected is None else pytest.approx(expected))


def test_labels_that_were_not_looked_for(nlp):
    """If doc._.llmner_labels lists the labels of a corpus, predictions of other labels are not errors."""
    found = [(0, 2, "PER", 0.9), (3, 5, "LOC", 0.6), (6, 7, "LOC", 0.8)]
    eg = make_example(nlp, found, [(0, 2, "PER")])
    eg.reference.spans["gold"] = list(eg.reference.ents)
    result = llmner_score([eg], spans_key="sc", train_spans="gold")
    assert result["ents_p"] == result["spans_p"] == pytest.approx(1 / 3)
    eg.reference._.llmner_labels = ["PER", "river"]
    result = llmner_score([eg], spans_key="sc", train_spans="gold")
    assert result["ents_p"] == result["ents_set_f"] == result["spans_p"] == 1.0
    assert result["ents_ece"] == pytest.approx(0.1) and set(result["ents_per_type"]) == {"PER"}
    assert len(eg.predicted.ents) == len(eg.predicted.spans["sc"]) == 3  # as before
    eg.reference._.llmner_labels = []
    assert llmner_score([eg], spans_key="sc")["ents_p"] == 0.0


def test_gold_spans_on_the_predicted_doc(nlp):
    """Only predictions count, not spans that another component or the corpus wrote under the same key."""
    eg = make_example(nlp, [(0, 2, "PER", 0.9)], [(3, 5, "PER")])
    eg.reference.spans["gold"] = [Span(eg.reference, 3, 5, "PER")]
    expected = llmner_score([eg], spans_key="sc", train_spans="gold")
    assert expected["spans_f"] == 0.0
    eg.predicted.spans["gold"] = [Span(eg.predicted, 3, 5, "PER")]
    assert llmner_score([eg], spans_key="sc", train_spans="gold") == expected
    assert "gold" in eg.predicted.spans
    same = llmner_score([eg], spans_key="gold", train_spans="gold")
    assert same["spans_f"] == 1.0


def test_scorer_of_another_component(nlp):
    """One without the setting `spans_key`, such as spaCy's `ner`."""
    eg = make_example(nlp, [(0, 2, "PER", 0.9)], [(0, 2, "PER")])
    result = make_llmner_scorer()([eg])
    assert result["ents_f"] == 1.0 and result["ents_ece"] is None
