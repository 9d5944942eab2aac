import pytest

from spacy_llmner.models import catalogue
from spacy_llmner.retrieval import encoder as encoders


@pytest.fixture(scope="session")
def minilm():
    """Folder of the sentence encoder that the project itself downloads."""
    return str(catalogue.download("all-minilm-l6-v2", progress=False))


@pytest.fixture
def no_encoders():
    """Get the dict of loaded encoders, which is empty at the beginning of the test."""
    encoders._LOADED.clear()
    return encoders._LOADED
