"""When examples are shown, and how much similarity is enough."""

import numpy as np
import pytest
import spacy

from spacy_llmner.pipeline.predictions import PredictedSpan
from spacy_llmner.ra_it_ner.example_selection import (
    ExampleSelector,
    PredictionWithExamples,
    SelectedExamples,
)
from spacy_llmner.ra_it_ner.example_threshold import NEVER, best_threshold
from spacy_llmner.retrieval.examples import LabelledText
from spacy_llmner.retrieval.index import ExampleIndex
from spacy_llmner.retrieval.strategies import Strategy
from tests.helpers import make_examples

NEAR = LabelledText("Bo saw a comet over Bonn", ((20, 24, "place"),))
FAR = LabelledText("Rain fell", ())
QUERY = LabelledText("Bo saw a comet over Bern")
# Cosines to the query: 0.8 and 0.3.
VECTORS = {QUERY.text: (1.0, 0.0), NEAR.text: (0.8, 0.6), FAR.text: (0.3, 0.954)}


class ToyEncoder:
    name, options, fingerprint, width = "toy", "--encoder toy", "toy", 2

    def encode(self, texts, *, progress=False):
        rows = np.array([VECTORS[text] for text in texts], dtype=np.float32)
        return rows / np.linalg.norm(rows, axis=1, keepdims=True)


@pytest.fixture
def index():
    index = ExampleIndex(ToyEncoder())
    index.add([NEAR, FAR])
    return index


def choose(index, policy="auto", threshold=None, labels=("place",), words=None, **strategy):
    (context,) = ExampleSelector(index, Strategy(k=2, **strategy), words or {}).choose(
        policy, threshold, [QUERY], [list(labels)]
    )
    return context


def test_published_rule(index):
    """If half of the requested labels occur in the index, its examples are in-domain and pass."""
    context = choose(index)
    assert context.reason == "in-domain" and context.examples == (NEAR, FAR)
    assert context.similarities == pytest.approx((0.8, 0.3), abs=0.01)
    assert choose(index, labels=["place", "comet"]).reason == "in-domain"
    context = choose(index, labels=["place", "comet", "star"])
    assert context.reason == "out-of-domain" and context.examples == ()  # BM25 of few texts is low


def test_labels_count_by_what_they_are_called(index):
    words = {"place": "town", "LOC": "town"}
    assert choose(index, labels=["LOC"], words=words).reason == "in-domain"
    assert choose(index, labels=["town"], words=words).reason == "in-domain"
    assert choose(index, labels=["LOC"]).reason == "out-of-domain"


def test_labels_of_added_examples_count(index):
    selector = ExampleSelector(index, Strategy(k=1), {})
    assert selector.choose("auto", None, [QUERY], [["comet"]])[0].reason == "out-of-domain"
    index.add([LabelledText(FAR.text, ((0, 4, "comet"),))])
    assert selector.choose("auto", None, [QUERY], [["comet"]])[0].reason == "in-domain"


def test_a_gate_that_was_chosen_stays(index):
    selector = ExampleSelector(index, Strategy(k=2, gate="cosine", threshold=0.5), {})
    (context,) = selector.choose("auto", None, [QUERY], [["comet"]])
    assert context.reason == "out-of-domain" and context.examples == (NEAR,)


def test_threshold(index):
    """The similarity of the most similar example decides for all, as in calibration."""
    assert choose(index, threshold=0.5).examples == (NEAR, FAR)
    assert choose(index, threshold=0.5).reason == "threshold"
    assert choose(index, threshold=0.81).examples == ()
    assert choose(index, threshold=NEVER).examples == ()
    assert choose(index, threshold=0.0, labels=["comet"]).examples == (NEAR, FAR)


@pytest.mark.parametrize("threshold", [None, 0.9])
def test_always_and_never(index, threshold):
    assert choose(index, "always", threshold).examples == (NEAR, FAR)
    assert choose(index, "never", threshold) == SelectedExamples(reason="never")


def test_nothing_to_show(index):
    assert choose(ExampleIndex(ToyEncoder())).reason == "no examples"
    selector = ExampleSelector(index, Strategy(k=0), {})
    assert selector.choose("always", None, [QUERY], [["place"]]) == [
        SelectedExamples(reason="no examples")
    ]


def test_each_text_by_its_own_labels(index):
    selector = ExampleSelector(index, Strategy(k=1), {})
    contexts = selector.choose("auto", None, [QUERY, QUERY], [["comet"], ["place"]])
    assert [c.reason for c in contexts] == ["out-of-domain", "in-domain"]
    assert [len(c.examples) for c in contexts] == [0, 1]


def test_cut():
    context = SelectedExamples((NEAR, FAR), (0.8, 0.3), "always").without_last()
    assert context == SelectedExamples((NEAR,), (0.8,), "always, cut")
    assert context.without_last() == SelectedExamples((), (), "always, cut")
    assert context.summary() == {
        "reason": "always, cut",
        "examples": [{"doc_id": "", "hash": NEAR.hash, "similarity": 0.8}],
    }


def found(right, similarity):
    ents = [PredictedSpan(0, 1, "PER", 0.9)] if right else [PredictedSpan(1, 2, "PER", 0.9)]
    contexts = [SelectedExamples((NEAR,), (similarity,), "always")]
    return PredictionWithExamples(ents, ents, contexts, [0])


@pytest.mark.parametrize(
    ("helped", "threshold"),
    [
        ([True, True, False, False], 0.7),  # the near ones help
        ([True, True, True, True], 0.2),
        ([False, False, False, False], NEVER),
    ],
)
def test_best_threshold(helped, threshold):
    nlp = spacy.blank("en")
    examples = make_examples(nlp, [("Ada left .", [(0, 3, "PER")])] * 4)
    similarities = [0.9, 0.7, 0.4, 0.2]
    # Without examples, the last two predictions are correct.
    plain = [False, False, True, True]
    if helped == [True] * 4:
        plain = [False] * 4
    if helped == [False] * 4:
        plain = [True] * 4
    without = [found(right, 0.0) for right in plain]
    behind = [found(right, s) for right, s in zip(helped, similarities)]
    assert best_threshold(examples, without, behind, None) == threshold


def test_each_window_counts_by_itself():
    """The similar example of the first window doesn't affect the second."""
    nlp = spacy.blank("en")
    examples = make_examples(nlp, [("Ada left . Bo sang .", [(0, 3, "PER"), (11, 13, "PER")])] * 2)

    def read(*right):
        ents = [PredictedSpan(start, start + 1, "PER", 0.9) for start in right]
        contexts = [SelectedExamples((NEAR,), (s,), "always") for s in (0.9, 0.3)]
        return PredictionWithExamples(ents, ents, contexts, [0, 11])

    # With examples, the first entity is found and the second is not. Without, it is the other way round.
    assert best_threshold(examples, [read(3)] * 2, [read(0)] * 2, None) == 0.9
    assert best_threshold(examples, [read(0)] * 2, [read(0, 3)] * 2, None) == 0.3


def test_what_was_not_read_does_not_count():
    """Docs and first words that don't fit into the context are ignored."""
    nlp = spacy.blank("en")
    examples = make_examples(nlp, [("Ada left .", [(0, 3, "PER")])] * 3)
    per = PredictedSpan(0, 1, "PER", 0.9)
    helped = [
        PredictionWithExamples([per], [per], [SelectedExamples((NEAR,), (0.8,), "always")], [0])
    ]
    empty, later = (
        PredictionWithExamples([], []),
        PredictionWithExamples([], [], [SelectedExamples()], [4]),
    )
    without = [PredictionWithExamples([], [], [SelectedExamples()], [0]), empty, later]
    assert best_threshold(examples, without, [*helped, empty, later], None) == 0.8


def test_labels_that_nobody_looked_for_do_not_count():
    nlp = spacy.blank("en")
    (eg,) = make_examples(nlp, [("Ada left .", [(0, 3, "PER")])])
    contexts = [SelectedExamples((NEAR,), (0.9,), "always")]
    per, loc = PredictedSpan(0, 1, "PER", 0.9), PredictedSpan(1, 2, "LOC", 0.9)
    without = PredictionWithExamples([], [], contexts, [0])
    behind = PredictionWithExamples([per, loc], [per, loc], contexts, [0])
    plain = PredictionWithExamples([per], [per], contexts, [0])
    assert best_threshold([eg], [plain], [behind], None) == NEVER
    eg.reference._.llmner_labels = ["PER"]
    assert best_threshold([eg], [plain], [behind], None) == NEVER  # as good: not shown
    assert best_threshold([eg], [without], [behind], None) == 0.9


def test_texts_without_an_example_stay_as_they_are():
    nlp = spacy.blank("en")
    examples = make_examples(nlp, [("Ada left .", [(0, 3, "PER")])])
    nothing = PredictionWithExamples([], [], [SelectedExamples()], [0])
    assert best_threshold(examples, [nothing], [nothing], None) == NEVER
