"""Training configs for a corpus: the batches, the number of passes, and all other settings."""

from copy import deepcopy
from dataclasses import dataclass, field
from typing import Any, Dict, Optional, Sequence

from spacy.language import Language
from spacy.util import registry
from thinc.api import Config

# The recipes are for corpora of this size, in words.
USUAL_WORDS = 10_000
# A corpus with ten times as many words is read in 2.5 times fewer passes.
SHRINK = 0.4
# Maximum number of evaluations after the first step.
EVALUATIONS = 8

LABEL_WORDS = {
    "PERSON": "person",
    "PER": "person",
    "ORG": "organization",
    "LOC": "location",
    "GPE": "place",
    "MISC": "miscellaneous",
    "PRODUCT": "product",
    "EVENT": "event",
    "WORK": "work of art",
}
PADDED = {"@batchers": "spacy.batch_by_padded.v1", "buffer": 256, "discard_oversize": False}
BY_WORDS = {"@batchers": "spacy.batch_by_words.v1", "tolerance": 0.2, "discard_oversize": False}


@dataclass(frozen=True)
class Recipe:
    """How to train a component.

    passes (float): Passes over a corpus of USUAL_WORDS.
    batch_size (int): Words in a batch.
    least_steps (int): Minimum number of steps.
    warmup (float): Share of the steps in which the learning rate rises.
    rate (float): Highest learning rate.
    eval_steps (int): Minimum number of steps between two evaluations.
    batcher (Dict[str, Any]): The batcher, without its size.
    settings (Dict[str, Any]): Other settings that differ from the defaults of spaCy and of the component.
    """

    passes: float
    batch_size: int
    least_steps: int
    warmup: float
    rate: float
    eval_steps: int
    batcher: Dict[str, Any]
    settings: Dict[str, Any] = field(default_factory=dict)


RECIPES = {
    "ember_probe": Recipe(
        passes=20,
        batch_size=1000,
        least_steps=100,
        warmup=1 / 8,
        rate=0.003,
        eval_steps=20,
        batcher=PADDED,
        settings={
            "nlp.batch_size": 256,
            "training.dropout": 0.4,
            "training.optimizer.L2": 0.02,
            "training.optimizer.use_averages": True,
        },
    ),
    # The other components tune the LLM, so a step takes much longer. Their evaluation generates
    # answers, so the dev corpus is limited.
    "padellm_ner": Recipe(
        passes=3.1,
        batch_size=160,
        least_steps=200,
        warmup=0.15,
        rate=0.003,
        eval_steps=100,
        batcher=BY_WORDS,
        settings={
            "nlp.batch_size": 32,
            "corpora.dev.limit": 200,
            "training.dropout": 0.0,
            "training.optimizer.L2": 0.0,
            "components.padellm_ner.model.label_words": LABEL_WORDS,
        },
    ),
    "ra_it_ner": Recipe(
        passes=1.8,
        batch_size=200,
        least_steps=90,
        warmup=1 / 9,
        rate=0.002,
        eval_steps=45,
        batcher=BY_WORDS,
        settings={
            "nlp.batch_size": 32,
            "paths.pool": None,
            "paths.labels": "corpus/labels/ra_it_ner.json",
            "paths.encoder": "all-minilm-l6-v2",
            "corpora.dev.limit": 100,
            "training.dropout": 0.0,
            "training.optimizer.L2": 0.0,
            "components.ra_it_ner.encoder.name": "${paths.encoder}",
            "components.ra_it_ner.model.system": "",
            "components.ra_it_ner.model.rank": 16,
            "components.ra_it_ner.model.alpha": 32,
            "components.ra_it_ner.model.label_words": LABEL_WORDS,
            "initialize.components.ra_it_ner.pool": "${paths.pool}",
            "initialize.components.ra_it_ner.labels": {
                "@readers": "spacy.read_labels.v1",
                "path": "${paths.labels}",
                "require": False,
            },
        },
    ),
}


@dataclass(frozen=True)
class Schedule:
    """The length of a training run.

    passes (float): Passes over the corpus.
    steps (int): Total number of steps.
    warmup (int): Steps in which the learning rate rises.
    eval_frequency (int): Steps between two evaluations. The last one is after the last step.
    """

    passes: float
    steps: int
    warmup: int
    eval_frequency: int

    @property
    def evaluations(self) -> int:
        """RETURNS (int): The number of evaluations, including the one after the first step."""
        return self.steps // self.eval_frequency + 1


def make_schedule(
    recipe: Recipe, lengths: Sequence[int], passes: Optional[float] = None
) -> Schedule:
    """Choose the length of a training run from the size of the corpus.

    A large corpus needs fewer passes than a small one: with twice as many words, 1.3 times fewer, so that
    training takes 1.5 times as long. A very small corpus is read until the minimum number of steps is
    reached.

    recipe (Recipe): How to train the component.
    lengths (Sequence[int]): Words in each text of the training corpus.
    passes (Optional[float]): Passes over the corpus; None to choose them.
    RETURNS (Schedule): The schedule.
    """
    batcher = {**recipe.batcher, "size": recipe.batch_size}
    make_batches: Any = registry.resolve({"batcher": batcher})["batcher"]
    batches = sum(1 for _ in make_batches([range(length) for length in lengths]))
    if passes is None:
        passes = recipe.passes * (USUAL_WORDS / sum(lengths)) ** SHRINK
        passes = max(passes, recipe.least_steps / batches)
    steps = passes * batches
    evaluations = min(max(round(steps / recipe.eval_steps), 1), EVALUATIONS)
    frequency = max(5 * round(steps / evaluations / 5), 5)
    steps = evaluations * frequency
    return Schedule(steps / batches, steps, round(recipe.warmup * steps), frequency)


def make_config(
    component: str, nlp: Language, schedule: Schedule, settings: Dict[str, Any]
) -> Config:
    """Create a complete training config.

    component (str): Name of the component's factory.
    nlp (Language): A blank pipeline. The component is added to it.
    schedule (Schedule): The length of the training run.
    settings (Dict[str, Any]): Further settings, by their full names ("paths.train").
    RETURNS (Config): The config, with variables.
    """
    recipe = RECIPES[component]
    nlp.add_pipe(component)
    chosen = {
        "paths.llm": "smollm2-135m-instruct",
        f"components.{component}.llm.name": "${paths.llm}",
        **recipe.settings,
        "training.max_steps": schedule.steps,
        "training.max_epochs": 0,
        "training.eval_frequency": schedule.eval_frequency,
        # Never stop early: the last steps, with a low learning rate, improve the model most.
        "training.patience": 0,
        "training.batcher": {**recipe.batcher, "size": recipe.batch_size},
        "training.optimizer.beta2": 0.99,
        "training.optimizer.learn_rate": {
            "@schedules": "warmup_linear.v1",
            "warmup_steps": schedule.warmup,
            "total_steps": schedule.steps,
            "initial_rate": recipe.rate,
        },
        **settings,
    }
    config = Config(nlp.config).copy()
    for name, value in chosen.items():
        *sections, key = name.split(".")
        block: Dict[str, Any] = config
        for section in sections:
            block = block.setdefault(section, {})
        block[key] = deepcopy(value)
    return config
