"""What the tests of `ember_probe` share: pipelines, next to what all components' tests share."""

import random

import spacy
import torch

from tests.helpers import (  # noqa: F401
    NASTY,
    TEXTS,
    TRAIN,
    assert_same,
    assert_valid,
    damage,
    entities,
    make_examples,
    make_sgd,
    same_state,
    scores,
    share_found,
    state_of,
)

STRUCTURED = "spacy_llmner.EmberProbe.v1"
PAPER = "spacy_llmner.EmberPaper.v1"
FEW_SHOT = "spacy_llmner.EmberFewShot.v2"


def make_nlp(llm, architecture=STRUCTURED, *, lang="en", cfg=None, **model):
    """RETURNS (Language): With one untrained ember_probe on the CPU that caches nothing."""
    nlp = spacy.blank(lang)
    if architecture in (STRUCTURED, FEW_SHOT):
        # Without a prefix, what is read is exactly what is streamed.
        model = {"prefix": "", **model}
    config = {
        "llm": {"@misc": "spacy_llmner.LLM.v1", "name": str(llm), "device": "cpu"},
        "model": {"@architectures": architecture, **model},
        "feature_cache": "off",
    }
    nlp.add_pipe("ember_probe", config={**config, **(cfg or {})})
    return nlp


def train(nlp, steps=30, data=TRAIN, learn_rate=0.01):
    """Overfit. RETURNS (Language): The same pipeline."""
    random.seed(0)
    examples = make_examples(nlp, data)
    nlp.initialize(lambda: examples)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        for _ in range(steps):
            nlp.update(examples, sgd=make_sgd(learn_rate), drop=0.0)
    return nlp


def train_paper(llm, folder, attention):
    """Train the paper's probes. RETURNS (Language): Loaded from disk, without a feature cache."""
    cfg = {"feature_cache": str(folder / "features")}
    nlp = make_nlp(llm, PAPER, attention=attention, width=128, max_words=4, cfg=cfg)
    train(nlp, 110, learn_rate=0.03).to_disk(folder / "pipeline")
    return spacy.load(folder / "pipeline")


# The default probe is causal, so that it can stream. The paper's probes are named after their attention.
PIPELINES = {
    "trained": lambda llm, folder: train(make_nlp(llm, width=32)),
    "look_right": lambda llm, folder: train(make_nlp(llm, width=32, look_right=True)),
    "read_twice": lambda llm, folder: train(make_nlp(llm, width=32, read_twice=True)),
    "current": lambda llm, folder: train_paper(llm, folder, "current"),
    "next": lambda llm, folder: train_paper(llm, folder, "next"),
    "both": lambda llm, folder: train_paper(llm, folder, "both"),
    "adjacency": lambda llm, folder: train_paper(llm, folder, "adjacency"),
}
