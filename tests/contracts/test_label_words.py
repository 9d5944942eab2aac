"""Words for labels that a component doesn't have."""

import warnings

import pytest
import spacy

from spacy_llmner.pipeline.labels import warn_about_misspelled
from tests.helpers import make_examples

MISSPELLED = [
    ({"Per": "person"}, "Per"),
    ({"PERS": "person"}, "PERS"),
    # Words for labels that other corpora have are no mistake.
    ({"PER": "person", "PERS": "person", "ORG": "firm"}, None),
    # These words change nothing.
    ({"Per": "PER"}, None),
]


@pytest.mark.parametrize("words, expected", MISSPELLED)
def test_misspelled_labels_of_words(words, expected):
    """A warning for words that are probably meant for another label."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        warn_about_misspelled("x", words, ["PER", "LOC"])
    texts = [str(w.message) for w in caught]
    assert len(texts) == (expected is not None)
    assert all("[LLMNER-W021]" in text and f"ignored: {expected}." in text for text in texts)


def test_components_warn_about_misspelled_labels(tiny_llm):
    nlp = spacy.blank("en")
    words = {"Per": "person"}
    for name, config in (
        ("ra_it_ner", {"llm": tiny_llm, "model": {"label_words": words}, "labels": ["PER"]}),
        ("el4ner_ensemble", {"llms": {"a": tiny_llm}, "label_words": words, "labels": ["PER"]}),
    ):
        with pytest.warns(UserWarning, match="W021.*ignored: Per"):
            nlp.add_pipe(name, config=config)
    padellm = nlp.add_pipe("padellm_ner", config={"llm": tiny_llm, "model": {"label_words": words}})
    examples = make_examples(nlp)
    with pytest.warns(UserWarning, match="W021.*ignored: Per"):
        padellm.initialize(lambda: examples)
