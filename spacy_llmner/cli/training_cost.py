"""Estimate how long a training run takes on this machine, and how much memory it needs."""

import random
import warnings
from dataclasses import dataclass
from time import perf_counter
from typing import Any, Callable, List, Optional, Sequence

from spacy.training import Example
from spacy.util import load_model_from_config, registry
from thinc.api import Config

from ..pipeline.gold import gold_mentions
from .peak import gpu_peak_mb, peak_mb, reset_peak
from .training_config import Schedule

# Maximum size of the sample that is timed, in words.
SAMPLE_WORDS = 800


@dataclass(frozen=True)
class Cost:
    """The estimated cost of a training run.

    seconds (float): Time, without the time to load the LLM.
    memory_mb (Optional[float]): Peak memory of the process; None if the system doesn't report it.
    gpu_mb (Optional[float]): Peak memory on the GPU; None without a GPU.
    cache_mb (float): Size of the feature cache of `ember_probe` on disk.
    device (str): Where the LLM runs.
    """

    seconds: float
    memory_mb: Optional[float]
    gpu_mb: Optional[float]
    cache_mb: float
    device: str


def estimate_cost(
    config: Config,
    component: str,
    schedule: Schedule,
    train: Sequence[Example],
    dev: Sequence[Example],
) -> Cost:
    """Train on a small sample, and extrapolate to the whole run.

    config (Config): The training config.
    component (str): Name of the component.
    schedule (Schedule): The length of the run.
    train (Sequence[Example]): The training corpus.
    dev (Sequence[Example]): The dev corpus.
    RETURNS (Cost): The estimate.
    """
    nlp = load_model_from_config(config.copy().interpolate(), auto_fill=False)
    pipe: Any = nlp.get_pipe(component)
    llm = pipe.llm.load()
    chosen = sample(train, min(config["training"]["batcher"]["size"], SAMPLE_WORDS))
    training = registry.resolve(config.interpolate()["training"])
    batches = list(training["batcher"](chosen))

    def update() -> None:
        for batch in batches:
            nlp.update(batch, sgd=training["optimizer"], drop=training["dropout"])

    reset_peak()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # training shows the warnings for the whole corpus
        initializing = _time(lambda: nlp.initialize(lambda: chosen))
        update()  # the first steps also allocate memory
        updating = _time(update)
    size = n_words(chosen)
    n_train, n_dev = n_words(train), n_words(dev)
    limit = config["corpora"]["dev"]["limit"] or len(dev)
    # ember_probe reads each text with the LLM once, ra_it_ner with the sentence encoder.
    seconds = initializing / size * (n_train + n_dev)
    # Evaluating a word takes about as long as training on it.
    evaluated = schedule.evaluations * n_words(dev[:limit])
    seconds += updating / size * (schedule.passes * n_train + evaluated)
    cache_mb = 0.0
    if component == "ember_probe":
        cache_mb = (n_train + n_dev) * len(pipe.word_reader.layers) * llm.width * 2 / 2**20
    return Cost(seconds, peak_mb(), gpu_peak_mb(), cache_mb, str(llm.device))


def sample(examples: Sequence[Example], size: int) -> List[Example]:
    """Draw examples at random, at least one of them with an entity.

    size (int): Number of words to draw. The last example can exceed it.
    RETURNS (List[Example]): The examples, the same at each call.
    """
    order = random.Random(0).sample(list(examples), len(examples))
    chosen = [next(eg for eg in order if gold_mentions(eg)[0])]
    for eg in order:
        if n_words(chosen) >= size:
            break
        if eg is not chosen[0]:
            chosen.append(eg)
    return chosen


def n_words(examples: Sequence[Example]) -> int:
    """RETURNS (int): The number of words in some examples."""
    return sum(len(eg.predicted) for eg in examples)


def _time(run: Callable[[], Any]) -> float:
    started = perf_counter()
    run()
    return perf_counter() - started
