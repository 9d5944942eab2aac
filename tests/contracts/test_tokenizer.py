"""The tokenizer of the pipeline can be replaced at any time."""

import copy
import gc
import pickle
import weakref

import pytest
import spacy
from spacy.tokens import Doc

from tests.contracts.components import only, pipe_of
from tests.helpers import TEXTS

# The other components don't use the tokenizer.
USE_IT = only(["ember_probe", "padellm_ner"])


class Characters:
    """A tokenizer that makes each character a token."""

    def __init__(self, vocab):
        self.vocab = vocab

    def __call__(self, text):
        return Doc(self.vocab, list(text.replace(" ", "")), [False] * len(text.replace(" ", "")))


@pytest.fixture
def nlp(trained, tmp_path):
    trained.to_disk(tmp_path)
    return spacy.load(tmp_path)


def is_used(pipe):
    return type(pipe.tokenizer) is Characters


@USE_IT
def test_replaced_tokenizer_is_used(component, nlp):
    pipe = pipe_of(nlp)
    assert pipe.tokenizer is nlp.tokenizer and not is_used(pipe)
    nlp.tokenizer = Characters(nlp.vocab)
    assert is_used(pipe)
    if component.name == "padellm_ner":
        assert all(type(span.doc.vocab) for span in pipe.stream("Tea"))
    else:
        stream = pipe.stream("Tea", max_new_tokens=2)
        list(stream)
        assert len(stream.doc) == len(stream.doc.text)


@USE_IT
@pytest.mark.parametrize("copied", [copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))])
def test_copies_refer_to_their_own_pipeline(nlp, copied):
    other = copied(nlp)
    nlp.tokenizer = Characters(nlp.vocab)
    assert is_used(pipe_of(nlp)) and not is_used(pipe_of(other))
    other.tokenizer, nlp.tokenizer = nlp.tokenizer, other.tokenizer
    assert is_used(pipe_of(other)) and not is_used(pipe_of(nlp))
    # A copy of the component alone keeps the tokenizer of its pipeline, though not the pipeline.
    assert is_used(copied(pipe_of(other)))


@USE_IT
def test_a_sourced_component_does_not_keep_its_first_pipeline(component, trained, tmp_path):
    trained.to_disk(tmp_path)
    first = spacy.load(tmp_path)
    nlp = spacy.blank("en")
    nlp.add_pipe(component.name, source=first)
    known, first = weakref.ref(first), None
    gc.collect()
    assert known() is None
    assert pipe_of(nlp).tokenizer(TEXTS[0]).text == TEXTS[0]
