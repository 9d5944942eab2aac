"""What `initialize` takes from a corpus: labels and labelled texts."""

import pytest
import spacy
from el4ner_helpers import FakeEncoder, MockVoter, make_mock_nlp
from ner_helpers import make_examples

from spacy_llmner.el4ner_ensemble.component import EL4NER

SINGERS = [("Oskar Blum sang.", [(0, 10, "SINGER")]), ("Mira sang.", [(0, 4, "SINGER")])]


@pytest.fixture
def nlp():
    return spacy.blank("en")


@pytest.fixture
def pipe(nlp):
    return EL4NER(nlp, {"a": MockVoter()}, FakeEncoder(), k=2)


def test_another_corpus_brings_its_labels(nlp, pipe):
    pipe.initialize(lambda: make_examples(nlp))
    assert pipe.labels == ("LOC", "PER")
    fresh = EL4NER(nlp, {"a": MockVoter()}, FakeEncoder()).from_bytes(pipe.to_bytes())
    for one in (pipe, fresh):
        one.initialize(lambda: make_examples(nlp, SINGERS))
        assert one.labels == ("SINGER",) and len(one.pool) == 2
    pipe.add_label("SONG")
    pipe.initialize(lambda: make_examples(nlp))
    assert pipe.labels == ("SONG", "LOC", "PER")


def test_labels_that_were_given_stay(nlp, pipe):
    pipe.initialize(lambda: make_examples(nlp))
    pipe.set_labels(["PER"])
    with pytest.warns(UserWarning, match="not asked for .LOC"):
        pipe.initialize(lambda: make_examples(nlp))
    assert pipe.labels == ("PER",)
    with pytest.warns(UserWarning, match="not asked for .SINGER"):
        pipe.initialize(lambda: make_examples(nlp, SINGERS))
    assert pipe.labels == ("PER",)
    with pytest.warns(UserWarning, match="not asked for .PER"):
        _, configured = make_mock_nlp({"a": MockVoter()}, labels=["LOC"])
    assert configured.labels == ("LOC",)
