"""SpanSim and the weights of spans (checklist 2, 3)."""

import numpy as np
import pytest
import spacy
from spacy.tokens import Doc
from spacy.training import Example

from spacy_llmner.el4ner_ensemble.demonstrations.span_similarity import span_similarity
from spacy_llmner.el4ner_ensemble.pos_weights import POS_WEIGHTS, check_weights, span_weight
from spacy_llmner.errors import LLMNERError
from tests.el4ner_ensemble.helpers import MockVoter, make_mock_nlp
from tests.helpers import make_examples, make_sgd

POOL = np.array([[1.0, 0.0], [0.0, 1.0], [0.6, 0.8], [-1.0, 0.0]])


def test_by_hand():
    """Two spans with weights 4 and 1; three pool texts with 2, 1 and 1 spans."""
    spans = np.array([[1.0, 0.0], [0.8, 0.6]])
    # First text: max(1, 0) and max(0.8, 0.6). Second: 0.6 and 0.48 + 0.48. Third: -1 and -0.8.
    expected = [(4 * 1 + 0.8) / 5, (4 * 0.6 + 0.96) / 5, (4 * -1 + -0.8) / 5]
    found = span_similarity(spans, np.array([4.0, 1.0]), POOL, [2, 1, 1])
    assert np.allclose(found, expected, atol=1e-6)


@pytest.mark.parametrize("sizes", [[0, 2, 0, 1, 1, 0], [2, 0, 1, 1], [2, 1, 0, 0, 1]])
def test_pool_texts_without_spans_get_0(sizes):
    spans = np.array([[0.8, 0.6]])
    found = span_similarity(spans, np.array([2.0]), POOL, sizes)
    assert np.allclose(found[np.array(sizes) > 0], [0.8, 0.96, -0.8], atol=1e-6)
    assert not found[np.array(sizes) == 0].any()


def test_empty_cases():
    nothing = np.zeros((0, 2))
    assert span_similarity(nothing, np.zeros(0), POOL, [2, 2]).tolist() == [0.0, 0.0]
    assert span_similarity(POOL[:1], np.zeros(1), POOL, [2, 2]).tolist() == [0.0, 0.0]
    assert span_similarity(POOL[:1], np.ones(1), nothing, [0, 0]).tolist() == [0.0, 0.0]
    assert span_similarity(POOL[:1], np.ones(1), nothing, []).tolist() == []


def test_it_is_not_symmetric():
    """Only the spans of the text have to be covered."""
    one, both = POOL[:1], POOL[:2]
    assert span_similarity(one, np.ones(1), both, [2])[0] == pytest.approx(1.0)
    assert span_similarity(both, np.ones(2), one, [1])[0] == pytest.approx(0.5)


def tagged(words, tags, heads=None, deps=None):
    return Doc(spacy.blank("en").vocab, words=words, tags=tags, heads=heads, deps=deps)


def test_the_head_decides():
    """The published code uses the first word, so "the Bush administration" has the weight 0."""
    doc = tagged(["the", "Bush", "administration"], ["DT", "NNP", "NN"])
    assert span_weight(doc, 0, 3, POS_WEIGHTS) == 2.0  # "administration"
    assert span_weight(doc, 0, 2, POS_WEIGHTS) == 4.0
    assert span_weight(doc, 0, 1, POS_WEIGHTS) == 0.0
    parsed = tagged(
        ["Bank", "of", "the", "poor"],
        ["NNP", "IN", "DT", "JJ"],
        [0, 0, 3, 1],
        ["ROOT", "prep", "det", "pobj"],
    )
    assert span_weight(parsed, 0, 4, POS_WEIGHTS) == 4.0
    assert span_weight(tagged(["she"], ["PRP"]), 0, 1, POS_WEIGHTS) == 1.0
    universal = Doc(doc.vocab, words=["Varnholm"], pos=["PROPN"])
    assert span_weight(universal, 0, 1, POS_WEIGHTS) == 4.0


@pytest.mark.parametrize(
    "lang,text,weight",
    [
        ("en", "Mira Stone", 4.0),
        ("en", "the boat", 2.0),
        ("en", "him", 1.0),
        ("en", "of the", 0.0),
        ("en", "1998", 0.0),
        ("zh", "王小明", 4.0),
        ("zh", "他", 1.0),
        ("zh", "茶", 2.0),
    ],
)
def test_shapes_without_a_tagger(lang, text, weight):
    doc = spacy.blank(lang)(text)
    assert span_weight(doc, 0, len(doc), POS_WEIGHTS) == weight


def test_weights_from_a_real_tagger_change_the_ranking():
    """The same spans with tags of a trained tagger, and with other weights, rank texts in another way."""
    nlp = spacy.blank("en")
    tagger = nlp.add_pipe("tagger")
    words, tags = ["Mira", "sees", "boats"], ["NNP", "VBZ", "NNS"]
    gold = Doc(nlp.vocab, words=words, tags=tags)
    examples = [Example(nlp.make_doc(gold.text), gold)]
    nlp.initialize(lambda: examples)
    for _ in range(20):
        nlp.update(examples, sgd=make_sgd(0.01))
    doc = nlp("Mira sees boats")
    assert tagger.labels == ("NNP", "NNS", "VBZ") and [t.tag_ for t in doc] == tags
    spans = [(0, 1), (2, 3)]
    vectors = np.array([[1.0, 0.0], [0.0, 1.0]])

    def rank(weights):
        w = np.array([span_weight(doc, *span, check_weights("el4ner", weights)) for span in spans])
        return span_similarity(vectors, w, vectors, [1, 1]).argmax()

    assert rank({}) == 0  # names first, as published
    assert rank({"propn": 1.0}) == 1


@pytest.mark.parametrize("weights", [{"verb": 1.0}, {"noun": -1.0}, {"noun": float("nan")}])
def test_invalid_weights(weights):
    with pytest.raises(LLMNERError, match="`pos_weights` of 'x' .* 0 or more for propn, noun"):
        check_weights("x", weights)


@pytest.mark.parametrize("proper,shown", [("Oskar", "Oskar likes tea."), ("Port", "Port is cold.")])
def test_a_tagger_in_front_decides_what_is_shown(proper, shown):
    """In the similarity to the labelled texts, spans that the tagger considers proper nouns weigh 4, and
    all others 0 (checklist 3)."""

    voter = MockVoter({"Oskar": {"PER": 1.0}, "Port": {"LOC": 1.0}})
    nlp, pipe = make_mock_nlp({"a": voter}, initialize=False, k=1)
    data = [("Oskar likes tea.", [(0, 5, "PER")]), ("Port is cold.", [(0, 4, "LOC")])]
    pipe.initialize(lambda: make_examples(nlp, data))
    tagger = nlp.add_pipe("attribute_ruler")
    tagger.add([[{}]], {"POS": "ADV"})
    tagger.add([[{"ORTH": proper}]], {"POS": "PROPN"})
    pipe(tagger(nlp.make_doc("Oskar saw Port then.")))
    demonstrations = voter.asked[-1][2][0]
    assert [demo.text for demo in demonstrations] == [shown]
