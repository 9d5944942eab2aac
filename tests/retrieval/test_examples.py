import pickle
from dataclasses import FrozenInstanceError

import pytest
import spacy
from spacy.tokens import Span

from spacy_llmner.retrieval.examples import LabelledText, labelled_text


def test_hash_folds_case_and_space():
    one = LabelledText("Ada met Bo.")
    assert one.hash == LabelledText(" ada  MET\tBo.\n").hash
    assert one.hash == LabelledText("Ada met Bo.", ((0, 3, "PER"),), "doc").hash
    assert one.hash != LabelledText("Ada met Bo").hash
    assert LabelledText("").hash == LabelledText(" \n").hash


def test_frozen_and_pickled():
    one = LabelledText("Ada", ((0, 3, "PER"),), "d1")
    one.hash  # noqa: B018
    with pytest.raises(FrozenInstanceError):
        one.text = "Bo"
    again = pickle.loads(pickle.dumps(one))
    assert again == one and again.hash == one.hash and len({one, again}) == 1


def test_labelled_text():
    doc = spacy.blank("en")("Ada Hale met Bo in Bonn .")
    doc.ents = [Span(doc, 5, 6, "LOC"), Span(doc, 0, 2, "PER")]
    doc.spans["sc"] = [Span(doc, 1, 2, "NAME"), Span(doc, 0, 2, "PER"), Span(doc, 0, 2, "PER")]
    assert labelled_text(doc) == LabelledText(doc.text, ((0, 8, "PER"), (19, 23, "LOC")))
    nested = labelled_text(doc, "sc", "d7")
    assert nested.entities == ((0, 8, "PER"), (4, 8, "NAME")) and nested.doc_id == "d7"
    assert labelled_text(doc, "none").entities == ()
    assert labelled_text(spacy.blank("en")("")) == LabelledText("")
