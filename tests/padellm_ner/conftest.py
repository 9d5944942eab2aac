"""Pipelines trained on tiny LLMs with a handful of made-up sentences."""

import pytest

from spacy_llmner.padellm_ner.templates import TEMPLATES
from tests.padellm_ner.helpers import make_nlp, make_prompt_encoder, train


@pytest.fixture(scope="session")
def trained(tiny_llm):
    """With the default settings. Tests leave it as it is."""
    return train(make_nlp(tiny_llm))


@pytest.fixture(scope="session")
def trained_published(tiny_llm):
    """As published: wording, loss, counts, probabilities. Tests leave it as it is."""
    cfg = {"count": "argmax", "probability": "raw"}
    nlp = make_nlp(tiny_llm, template="published_en", loss="raw", cfg=cfg)
    return train(nlp, steps=60, learn_rate=0.01)


@pytest.fixture(params=["default", "published"])
def any_trained(request):
    fixture = {"default": "trained", "published": "trained_published"}
    return request.getfixturevalue(fixture[request.param])


@pytest.fixture(scope="session", params=sorted(TEMPLATES))
def prompt_encoder(request, tiny_tokenizers):
    """Each of the templates, in the tokens of a tokenizer like SmolLM2's."""
    return make_prompt_encoder(tiny_tokenizers["byte-level"], request.param)


@pytest.fixture(scope="session")
def compact(tiny_tokenizers):
    return make_prompt_encoder(tiny_tokenizers["byte-level"])


@pytest.fixture(scope="session")
def published(tiny_tokenizers):
    return make_prompt_encoder(tiny_tokenizers["byte-level"], "published_en")
