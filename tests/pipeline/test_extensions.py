"""The attributes of entities, and what happens if another library has taken their names."""

import json

import pytest
import spacy
from spacy.tokens import Span

from spacy_llmner.pipeline.extensions import set_extensions
from tests.ember_probe.helpers import TEXTS, make_nlp, train


@pytest.fixture(scope="module")
def nlp(tiny_llm):
    return train(make_nlp(tiny_llm))


@pytest.fixture
def score_of_another_library():
    ours = Span.get_extension("score")
    Span.set_extension("score", default=0.5, force=True)
    yield
    Span.set_extension("score", getter=ours[2], force=True)


def test_both_names(nlp):
    for doc in nlp.pipe(TEXTS):
        for ent in doc.ents:
            assert ent._.llmner_score == ent._.score is not None
            assert ent._.llmner_method == ent._.method == "ember_probe"


def test_name_taken_by_another_library(nlp, score_of_another_library):
    """Its attribute doesn't change. Ours is still available under its long name, and there is a warning."""
    with pytest.warns(UserWarning, match="registered the attribute `span._.score`.*llmner_score"):
        doc = nlp(TEXTS[0])
    assert doc.ents
    for ent in doc.ents:
        assert ent._.score == 0.5
        assert 0.5 < ent._.llmner_score <= 1.0
    set_extensions()
    assert doc.ents[0]._.score == 0.5


def test_entities_as_json(nlp):
    doc = nlp(TEXTS[0])
    saved = json.loads(json.dumps(doc.to_json(underscore=["llmner_entities"])))
    expected = [
        {
            "start": ent.start_char,
            "end": ent.end_char,
            "label": ent.label_,
            "score": ent._.llmner_score,
            "method": "ember_probe",
        }
        for ent in doc.ents
    ]
    assert saved["_"]["llmner_entities"] == expected and expected


def test_entities_of_other_components():
    nlp = spacy.blank("en")
    nlp.add_pipe("entity_ruler").add_patterns([{"label": "LOC", "pattern": "Varnholm"}])
    (entity,) = nlp("Near Varnholm.")._.llmner_entities
    assert entity == {"start": 5, "end": 13, "label": "LOC", "score": None, "method": None}
