"""F1 and CPU minutes of `ember_probe` with the schedules that `spacy llmner init config` chooses for
corpora of different sizes, compared with a fixed schedule.

    python -m benchmarks.ember.schedule conll_train.spacy conll_dev.spacy conll_test.spacy 100 500 1000
    python -m benchmarks.ember.schedule conll_train.spacy conll_dev.spacy conll_test.spacy 100 --fixed

The fixed schedule was that of configs/ember_probe.cfg before the command existed: 900 batches of 3,000
words, for any corpus. By default, only its time is measured, from a few steps and one evaluation. `--fixed`
trains with it. Results of other sizes are kept.

The features of all texts are cached before the clock starts. The dev corpus has a fifth as many sentences
as the training corpus.
"""

import json
import random
import tempfile
import time
from itertools import islice
from pathlib import Path
from typing import Any, Dict, List, Tuple

import spacy
import torch
import typer
from spacy.language import Language
from spacy.tokens import DocBin
from spacy.training.initialize import init_nlp
from spacy.training.loop import create_train_batches
from spacy.training.loop import train as spacy_train
from spacy.util import registry, resolve_dot_names
from thinc.api import Config

from benchmarks.lib.common import RESULTS, read_examples, save, strict_scores
from spacy_llmner.cli.init_config import init_config

NAME = "ember_schedule"
FIXED: Dict[str, Any] = {
    "max_steps": 900,
    "eval_frequency": 100,
    "patience": 500,
    "batcher": {
        "@batchers": "spacy.batch_by_words.v1",
        "size": 3000,
        "tolerance": 0.2,
        "discard_oversize": False,
        "get_length": None,
    },
}
FIXED_RATE = {
    "@schedules": "warmup_linear.v1",
    "warmup_steps": 90,
    "total_steps": 900,
    "initial_rate": 0.003,
}
# Steps of the fixed schedule that are timed.
TIMED = 6


def main(
    train: Path,
    dev: Path,
    test: Path,
    sizes: List[int],
    fixed: bool = typer.Option(False, "--fixed", help="Train with the fixed schedule instead"),
    test_sentences: int = 1000,
    seed: int = 0,
) -> None:
    path = RESULTS / f"{NAME}.json"
    rows = {}
    if path.exists():
        rows = {row["sentences"]: row for row in json.loads(path.read_text())["rows"]}
    for size in sizes:
        with tempfile.TemporaryDirectory() as folder:
            parts = [Path(folder) / f"{name}.spacy" for name in ("train", "dev", "test")]
            numbers = (size, max(size // 5, 20), test_sentences)
            for source, part, number in zip((train, dev, test), parts, numbers):
                save_sample(source, part, number)
            row = rows.setdefault(size, {"sentences": size})
            if fixed:
                row["fixed"] = measure(*parts, seed, fixed=True)
            else:
                row["test_sentences"] = test_sentences
                row["chosen"] = measure(*parts, seed)
                row.setdefault("fixed", time_fixed(*parts[:2], seed))
            print(size, row, flush=True)
            save(NAME, {"rows": [rows[size] for size in sorted(rows)]})


def save_sample(source: Path, path: Path, number: int) -> None:
    docs = list(DocBin().from_disk(source).get_docs(spacy.blank("en").vocab))
    random.Random(0).shuffle(docs)
    DocBin(docs=docs[:number]).to_disk(path)


def make(train: Path, dev: Path, seed: int, fixed: bool) -> Tuple[Config, int]:
    """RETURNS (Tuple[Config, int]): The config, and the number of words of the training corpus."""
    config, _, examples, _ = init_config(train, dev)
    config = Config(config)
    # Small corpora are otherwise trained from the words of their labels.
    config["components"]["ember_probe"]["model"] = {"@architectures": "spacy_llmner.EmberProbe.v1"}
    config["system"]["seed"] = seed
    for part in ("train", "dev"):
        # One sentence per text, with the words of the corpus.
        config["corpora"][part]["gold_preproc"] = True
    if fixed:
        config["training"].update(FIXED)
        config["training"]["optimizer"]["learn_rate"] = FIXED_RATE
    return config, sum(len(eg.reference) for eg in examples)


def initialized(config: Config) -> Language:
    """RETURNS (Language): The pipeline. The features of both corpora are cached."""
    nlp = init_nlp(config)
    ember: Any = nlp.get_pipe("ember_probe")
    (dev,) = resolve_dot_names(nlp.config.interpolate(), ["corpora.dev"])
    docs = [eg.predicted for eg in dev(nlp)]
    for k in range(0, len(docs), 64):
        ember.read(docs[k : k + 64])
    return nlp


def measure(train: Path, dev: Path, test: Path, seed: int, fixed: bool = False) -> Dict[str, Any]:
    """RETURNS (Dict[str, Any]): The F1 and CPU minutes of a training run, and its length."""
    config, n_words = make(train, dev, seed, fixed)
    nlp = initialized(config)
    with tempfile.TemporaryDirectory() as folder:
        started = time.process_time()
        spacy_train(nlp, Path(folder))
        minutes = (time.process_time() - started) / 60
        nlp = spacy.load(Path(folder) / "model-best")
    ember: Any = nlp.get_pipe("ember_probe")
    ember._start_training()  # so that the features of the test sentences are cached
    examples = read_examples(nlp, test)
    docs = list(nlp.pipe([eg.predicted for eg in examples], batch_size=256))
    scores = strict_scores([eg.reference for eg in examples], docs)
    steps = config["training"]["max_steps"]
    return {"f": scores["f"], "cpu_minutes": minutes, "steps": steps, "words": n_words}


def time_fixed(train: Path, dev: Path, seed: int) -> Dict[str, Any]:
    """RETURNS (Dict[str, Any]): The CPU minutes of the fixed schedule, from some of its steps."""
    config, _ = make(train, dev, seed, fixed=True)
    nlp = initialized(config)
    settings = registry.resolve(nlp.config.interpolate()["training"])
    corpora = resolve_dot_names(nlp.config.interpolate(), ["corpora.train", "corpora.dev"])
    batches = create_train_batches(nlp, corpora[0], settings["batcher"], 0)
    started = time.process_time()
    for _, batch in islice(batches, TIMED):
        nlp.update(batch, sgd=settings["optimizer"], drop=settings["dropout"])
    step = (time.process_time() - started) / TIMED
    started = time.process_time()
    nlp.evaluate(list(corpora[1](nlp)))
    evaluation = time.process_time() - started
    n_evaluations = FIXED["max_steps"] // FIXED["eval_frequency"]
    seconds = step * FIXED["max_steps"] + evaluation * n_evaluations
    return {"extrapolated_cpu_minutes": seconds / 60}


if __name__ == "__main__":
    torch.set_num_threads(1)
    typer.run(main)
