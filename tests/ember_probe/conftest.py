"""Tiny LLMs, and pipelines trained on them with a handful of made-up sentences."""

import pytest
import spacy

from tests.ember_probe.helpers import PAPER, make_nlp, train


@pytest.fixture(autouse=True)
def own_home(tmp_path, monkeypatch):
    """Nothing is cached in the user's home, and no variant sees the features of another test."""
    monkeypatch.setenv("SPACY_LLMNER_HOME", str(tmp_path / "home"))


@pytest.fixture(scope="session")
def trained(tiny_llm):
    """The default probe, causal and so able to stream. Tests leave it as it is."""
    return train(make_nlp(tiny_llm, width=32))


@pytest.fixture(scope="session")
def trained_right(tiny_llm):
    return train(make_nlp(tiny_llm, width=32, look_right=True))


@pytest.fixture(scope="session")
def paper(tiny_llm, tmp_path_factory):
    """Gives a pipeline with the paper's probes for a kind of attention; each is trained once."""
    folder = tmp_path_factory.mktemp("paper")
    made = {}

    def get(attention):
        if attention not in made:
            cfg = {"feature_cache": str(folder / "features")}
            nlp = make_nlp(tiny_llm, PAPER, attention=attention, width=128, max_words=4, cfg=cfg)
            train(nlp, 110, learn_rate=0.03).to_disk(folder / attention)
            made[attention] = spacy.load(folder / attention)
        return made[attention]

    return get


@pytest.fixture(params=["current", "next", "both", "adjacency"])
def trained_paper(request, paper):
    """The paper's probes, once for each kind of attention."""
    return paper(request.param)


@pytest.fixture
def trained_next(paper):
    """One of the paper's probes, where all four would only take time."""
    return paper("next")
