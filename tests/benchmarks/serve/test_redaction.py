"""The benchmark of redaction over HTTP notices leaks, and counts words."""

import re

import pytest
import spacy
from spacy.tokens import Span

pytest.importorskip("fastapi")

from benchmarks.serve.redaction import align, held_words, hidden, redacted

TEXT = "Mira Stone met Oskar in Varnholm."


@pytest.fixture
def doc():
    doc = spacy.blank("en")(TEXT)
    doc.ents = [Span(doc, 0, 2, "PER"), Span(doc, 3, 4, "PER"), Span(doc, 5, 6, "LOC")]
    return doc


def parts_of(text):
    return re.split("(⟦[^⟧]*⟧)", text)


def test_redacted(doc):
    assert redacted(doc) == "⟦PER⟧ met ⟦PER⟧ in ⟦LOC⟧."
    parts = parts_of(redacted(doc))
    ends = [0, 10, 15, 20, 24, 32, 33]
    assert align(hidden(doc), parts) == ends
    assert align(hidden(doc), parts_of("⟦PER⟧ met ⟦REDACTED⟧.")) == [0, 10, 15, 32, 33]


@pytest.mark.parametrize(
    "leak",
    [
        TEXT,
        "Mira ⟦PER⟧ met ⟦PER⟧ in ⟦LOC⟧.",
        "M⟦PER⟧ met ⟦PER⟧ in ⟦LOC⟧.",
        "⟦PER⟧ met ⟦REDACTED⟧m.",
    ],
)
def test_leaks(doc, leak):
    assert align(hidden(doc), parts_of(leak)) is None


def test_held_words(doc):
    """What arrived in three pieces, of which the client has a part each."""
    parts, text = parts_of(redacted(doc)), redacted(doc)
    ends = align(hidden(doc), parts)
    pieces = ["Mira Stone met Os", "kar in", " Varnholm."]
    lengths = [len("⟦PER⟧ me"), len("⟦PER⟧ met ⟦PER⟧"), len(text)]
    assert held_words(pieces, parts, ends, lengths) == [2, 1, 0]
