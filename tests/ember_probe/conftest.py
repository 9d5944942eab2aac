"""Pipelines trained on tiny LLMs with a handful of made-up sentences. Tests leave them as they are."""

import pytest


@pytest.fixture(autouse=True)
def own_home(tmp_path, monkeypatch):
    """Nothing is cached in the user's home, and no variant sees the features of another test."""
    monkeypatch.setenv("SPACY_LLMNER_HOME", str(tmp_path / "home"))


@pytest.fixture(scope="session")
def trained(pipelines):
    """The default probe, causal and so able to stream."""
    return pipelines("ember_probe")


@pytest.fixture(scope="session")
def trained_right(pipelines):
    return pipelines("ember_probe", "look_right")


@pytest.fixture(scope="session")
def paper(pipelines):
    """Gives a pipeline with the paper's probes for a kind of attention."""
    return lambda attention: pipelines("ember_probe", attention)
