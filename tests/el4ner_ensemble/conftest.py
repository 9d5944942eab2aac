"""Short answers, and a pipeline on tiny random LLMs."""

import pytest


@pytest.fixture(scope="session", autouse=True)
def only_short_lists(short_lists):
    """Random LLMs fill the lists that they write."""


@pytest.fixture(scope="session")
def two(pipelines):
    """An ensemble of two LLMs with the default settings. Tests leave it as it is."""
    return pipelines("el4ner_ensemble")
