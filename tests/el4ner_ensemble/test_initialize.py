"""What `initialize` takes from a corpus: labels and labelled texts."""

import pytest
import spacy

from spacy_llmner.el4ner_ensemble.component import EL4NER
from spacy_llmner.el4ner_ensemble.demonstrations import fill as labelled
from spacy_llmner.errors import LLMNERError
from tests.el4ner_ensemble.helpers import FakeEncoder, MockVoter, make_mock_nlp
from tests.helpers import make_examples

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
    with pytest.warns(UserWarning, match="not requested .LOC"):
        pipe.initialize(lambda: make_examples(nlp))
    assert pipe.labels == ("PER",)
    with pytest.warns(UserWarning, match="not requested .SINGER"):
        pipe.initialize(lambda: make_examples(nlp, SINGERS))
    assert pipe.labels == ("PER",)
    with pytest.warns(UserWarning, match="not requested .PER"):
        _, configured = make_mock_nlp({"a": MockVoter()}, labels=["LOC"])
    assert configured.labels == ("LOC",)


def test_long_labelled_texts_are_cut(nlp, pipe):
    """They are cut in the same way as the texts to predict."""
    text = "Mira Stone met Oskar Blum. Then she sailed to Port Ellam. Nobody saw them."
    ents = [(0, 10, "PER"), (15, 25, "PER"), (46, 56, "LOC")]
    pipe.cfg["window"] = 8
    pipe.initialize(lambda: make_examples(nlp, [(text, ents)]))
    assert [(e.text, e.entities) for e in pipe.pool.index.examples] == [
        ("Mira Stone met Oskar Blum.", ((0, 10, "PER"), (15, 25, "PER"))),
        ("Then she sailed to Port Ellam.", ((19, 29, "LOC"),)),
        ("Nobody saw them.", ()),
    ]
    assert len({e.doc_id for e in pipe.pool.index.examples}) == 1


def test_parts_that_cut_an_entity_are_left_out(nlp, pipe, caplog):
    text = "Somebody saw Mira Anna Stone there in the middle of a long night"
    pipe.cfg["window"] = 4
    pipe.initialize(lambda: make_examples(nlp, [(text, [(13, 28, "PER")])]))
    assert [e.text for e in pipe.pool.index.examples] == ["middle of a long", "night"]
    assert "leaves out 2 parts of long labelled texts" in caplog.text


def test_words_longer_than_a_window_are_logged(nlp, pipe, caplog):
    class Long(MockVoter):
        def word_lengths(self, text, words):
            return [end - start for start, end in words]

    pipe = EL4NER(nlp, {"a": Long()}, FakeEncoder(), labels=["PER"], k=0, window=8)
    caplog.set_level("DEBUG", "spacy_llmner")
    pipe(nlp.make_doc("Mira saw Donaudampfschiff there."))
    assert "1 words are not read: each is longer than a window" in caplog.text


class GoneEncoder(FakeEncoder):
    @property
    def fingerprint(self):
        raise LLMNERError("not downloaded")

    @fingerprint.setter
    def fingerprint(self, value):
        pass


def test_the_encoder_comes_first(nlp):
    """If it is missing, the error is raised before the LLMs read the labelled texts."""
    voter = MockVoter()
    pipe = EL4NER(nlp, {"a": voter}, GoneEncoder())
    with pytest.raises(LLMNERError, match="not downloaded"):
        pipe.initialize(lambda: make_examples(nlp))
    assert not voter.asked
    pipe.cfg["retrieval"] = "none"
    pipe.initialize(lambda: make_examples(nlp))


def test_progress_is_shown(nlp, monkeypatch):
    bars = []

    class Bar:
        def __init__(self, total, **settings):
            self.total, self.n = total, 0
            bars.append(self)

        def __enter__(self):
            return self

        def __exit__(self, *error):
            pass

        def update(self, n):
            self.n += n

    monkeypatch.setattr(labelled, "tqdm", Bar)
    voters = {"a": MockVoter({"Oskar": {"PER": 1.0}}), "b": MockVoter()}
    pipe = EL4NER(nlp, voters, FakeEncoder())
    data = [(f"Oskar {k} sings.", [(0, 5, "PER")]) for k in range(40)]
    pipe.initialize(lambda: make_examples(nlp, data))
    (bar,) = bars
    assert (bar.n, bar.total) == (80, 80) and pipe.call_counts.calls == 0
    assert [len(demos) for _, _, demos in voters["a"].asked] == [16, 16, 8]
    assert all(s.proposed == [(0, 5, ["a"])] for s in pipe.pool.spans)
