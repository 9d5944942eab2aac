"""Pipelines trained on tiny LLMs with a handful of made-up sentences. Tests leave them as they are."""

import pytest


@pytest.fixture(scope="session")
def tiny_llm(roomy_llm):
    """With room for conversations and examples in its tiny vocabulary."""
    return roomy_llm


@pytest.fixture(scope="session")
def trained(pipelines):
    """With one example before each text."""
    return pipelines("ra_it_ner")


@pytest.fixture(scope="session")
def vanilla(pipelines):
    """Plain instruction tuning: k = 0."""
    return pipelines("ra_it_ner", "vanilla")


@pytest.fixture(scope="session")
def wild(pipelines):
    """Random weights that find all kinds of things, overlapping and under several labels."""
    return pipelines("ra_it_ner", "wild")


@pytest.fixture(scope="session")
def free(pipelines):
    """Random weights that can write anything."""
    return pipelines("ra_it_ner", "free")
