"""F1 by the number of labelled sentences, with and without labels in words, on our English corpus.

    python -m benchmarks.ember.sentences_needed corpus/en_train.spacy corpus/en_test.spacy

For each seed, the training sentences are shuffled, and the first n are used. "words and sentences" is
`EmberMatch.v1` with `fit`; without sentences, it knows the labels' words only. "sentences alone" is the
default probe, trained for as many steps on batches of the same size, from nothing. CPU seconds are those of
`fit` or of the training, without the LLM, which reads each sentence once.
"""

import random
import statistics
import time
from pathlib import Path
from typing import Any, Dict, List

import spacy
import torch
import typer
from spacy.training import Example
from thinc.api import Adam

from benchmarks.lib.common import read_examples, read_once, save, strict_scores

SIZES = (0, 5, 20, 50, 100, 200, 480)
WORDS = {"PERSON": "person", "ORG": "organization", "LOC": "location", "WORK": "work of art"}
# Training from nothing.
STEPS, BATCH, RATE, DROP = 400, 16, 0.003, 0.3


def main(
    train: Path,
    test: Path,
    llm: str = "smollm2-135m-instruct",
    seeds: int = 3,
    sizes: List[int] = typer.Option(list(SIZES), help="Numbers of sentences"),
) -> None:
    features: Dict[str, Any] = {}
    rows = []
    for size in sizes:
        for system, run in (("words and sentences", fit), ("sentences alone", from_nothing)):
            if size or run is fit:
                runs = []
                for seed in range(seeds if size else 1):
                    nlp = spacy.blank("en")
                    examples = read_examples(nlp, train, sentences=False)
                    random.Random(seed).shuffle(examples)
                    random.seed(seed)
                    torch.manual_seed(seed)
                    seconds = run(nlp, llm, examples[:size], features)
                    tests = read_examples(nlp, test, sentences=False)
                    docs = list(nlp.pipe(eg.predicted for eg in tests))
                    found = strict_scores([eg.reference for eg in tests], docs)
                    runs.append({"seed": seed, "f": found["f"], "cpu_s": seconds})
                f1 = statistics.mean(r["f"] for r in runs)
                rows.append({"system": system, "sentences": size, "f": f1, "runs": runs})
                print(system, size, round(f1, 1), [round(r["f"], 1) for r in runs], flush=True)
    save("ember_sentences_needed", {"llm": llm, "seeds": seeds, "rows": rows})


def fit(nlp: Any, llm: str, examples: List[Example], features: Dict[str, Any]) -> float:
    model = {"@architectures": "spacy_llmner.EmberMatch.v1", "label_words": WORDS}
    labels = sorted({"PERSON", "ORG", "LOC", "EVENT", "WORK", "PRODUCT"})
    config = {"llm": {"name": llm}, "labels": labels, "model": model, "feature_cache": "off"}
    ember = nlp.add_pipe("ember_probe", config=config)
    ember.trained_probe()
    read_once(ember, features)
    ember.read([eg.predicted for eg in examples] or [nlp.make_doc("warm up")])
    start = time.process_time()
    if examples:
        ember.fit(examples)
    return time.process_time() - start


def from_nothing(nlp: Any, llm: str, examples: List[Example], features: Dict[str, Any]) -> float:
    config = {"llm": {"name": llm}, "feature_cache": "off"}
    ember = nlp.add_pipe("ember_probe", config=config)
    read_once(ember, features)
    nlp.initialize(lambda: examples)
    optimizer = Adam(RATE, L2=0.01, L2_is_weight_decay=True, grad_clip=1.0)
    start = time.process_time()
    for step in range(STEPS):
        optimizer.learn_rate = RATE * min(1, (step + 1) / 10) * (1 - step / STEPS)
        batch = random.sample(examples, min(BATCH, len(examples)))
        ember.update(batch, sgd=optimizer, drop=DROP)
    return time.process_time() - start


if __name__ == "__main__":
    typer.run(main)
