import pytest

from spacy_llmner.models import catalogue
from spacy_llmner.retrieval import encoder as encoders


@pytest.fixture(scope="session")
def minilm():
    """Folder of the sentence encoder that the project itself downloads."""
    return str(catalogue.download("all-minilm-l6-v2", progress=False))


@pytest.fixture
def no_encoders():
    """Nothing is loaded, and only what the test loads is."""
    encoders._LOADED.clear()
    return encoders._LOADED
