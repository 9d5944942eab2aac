"""Pipelines trained on tiny LLMs with a handful of made-up sentences."""

import pytest

from spacy_llmner.padellm_ner.templates import TEMPLATES
from tests.padellm_ner.helpers import make_prompt_encoder


@pytest.fixture(scope="session")
def trained(pipelines):
    """With the default settings. Tests leave it as it is."""
    return pipelines("padellm_ner")


@pytest.fixture(scope="session")
def trained_published(pipelines):
    """As published: wording, loss, counts, probabilities. Tests leave it as it is."""
    return pipelines("padellm_ner", "published")


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
