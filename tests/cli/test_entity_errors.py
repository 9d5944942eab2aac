"""The kinds of errors that `spacy llmner evaluate` and `compare` tell apart."""

import pytest
import spacy
from spacy.tokens import Span
from spacy.training import Example

from spacy_llmner.cli.entity_errors import errors_by_kind, find_errors

TEXT = "Mira Stone of Port Ellam met Oskar"
GOLD = [(0, 2, "PER"), (3, 5, "LOC"), (6, 7, "PER")]


@pytest.fixture(scope="module")
def nlp():
    return spacy.blank("en")


def errors_of(nlp, gold, predicted, spans_key=None):
    docs = [nlp.make_doc(TEXT), nlp.make_doc(TEXT)]
    for doc, ents in zip(docs, (predicted, gold)):
        spans = [Span(doc, start, end, label=label) for start, end, label in ents]
        if spans_key is None:
            doc.set_ents(spans, default="outside")
        else:
            doc.spans[spans_key] = spans
    eg = Example(*docs)
    return errors_by_kind(eg, find_errors(eg, spans_key))


def test_kinds(nlp):
    assert errors_of(nlp, GOLD, GOLD) == {}
    assert errors_of(nlp, GOLD, GOLD[:2]) == {"missed": ["Oskar (PER)"]}
    assert errors_of(nlp, GOLD[:2], GOLD) == {"extra": ["Oskar (PER)"]}
    found = errors_of(nlp, GOLD, [(0, 2, "LOC"), (4, 5, "LOC"), (5, 7, "LOC")])
    assert found == {
        "wrong label": ["Mira Stone (PER -> LOC)"],
        "wrong boundary": ["Port Ellam -> Ellam (LOC)"],
        "wrong label and boundary": ["Oskar (PER) -> met Oskar (LOC)"],
    }


def test_each_entity_is_in_one_error(nlp):
    # The whole is closer to the longer part.
    found = errors_of(nlp, [(0, 2, "PER"), (2, 5, "PER")], [(0, 5, "PER")])
    assert found == {
        "wrong boundary": ["of Port Ellam -> Mira Stone of Port Ellam (PER)"],
        "missed": ["Mira Stone (PER)"],
    }
    # Parts of the same label come before others.
    found = errors_of(nlp, [(0, 5, "PER")], [(0, 2, "PER"), (2, 5, "LOC")])
    assert found == {
        "wrong boundary": ["Mira Stone of Port Ellam -> Mira Stone (PER)"],
        "extra": ["of Port Ellam (LOC)"],
    }


def test_overlapping_spans(nlp):
    gold = [(0, 5, "PER"), (3, 5, "LOC")]
    found = errors_of(nlp, gold, [*gold, (3, 5, "ORG")], spans_key="all")
    assert found == {"extra": ["Port Ellam (ORG)"]}
    found = errors_of(nlp, gold, [(0, 5, "PER"), (3, 5, "ORG")], spans_key="all")
    assert found == {"wrong label": ["Port Ellam (LOC -> ORG)"]}
