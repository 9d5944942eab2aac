"""Pipelines trained on tiny LLMs with a handful of made-up sentences."""

import json
import shutil

import pytest

from tests.ra_it_ner.helpers import initialized, make_nlp, scrambled, train


@pytest.fixture(scope="session")
def tiny_llm(tiny_models, tmp_path_factory):
    """With room for conversations and examples in its tiny vocabulary."""
    folder = tmp_path_factory.mktemp("llm") / "roomy"
    shutil.copytree(tiny_models["llama"], folder)
    config = json.loads((folder / "config.json").read_text())
    config["max_position_embeddings"] = 1024
    (folder / "config.json").write_text(json.dumps(config))
    return str(folder)


@pytest.fixture(scope="session")
def trained(tiny_llm):
    """With one example in front. Tests leave it as it is."""
    return train(make_nlp(tiny_llm, cfg={"negative_rate": 1.0}), steps=100)


@pytest.fixture(scope="session")
def vanilla(tiny_llm):
    """Plain instruction tuning: k = 0. Tests leave it as it is."""
    return train(make_nlp(tiny_llm, k=0, cfg={"negative_rate": 1.0}), steps=40)


@pytest.fixture(scope="session")
def wild(tiny_llm):
    """Random weights that find all kinds of things, overlapping and under several labels."""
    cfg = {"list_threshold": 0.2}
    return scrambled(initialized(make_nlp(tiny_llm, k=2, cfg=cfg)))


@pytest.fixture(scope="session")
def free(tiny_llm):
    """Random weights that may write anything."""
    cfg = {"constrained": False, "max_answer_tokens": 12}
    return scrambled(initialized(make_nlp(tiny_llm, cfg=cfg, occurrences="all")))
