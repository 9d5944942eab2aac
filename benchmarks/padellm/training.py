"""The effect of training settings of `padellm_ner`: template, loss, and adapter or full copies of layers.

    python -m benchmarks.padellm.training conll-sentences train.spacy test.spacy --minutes 6

Each variant is trained for the same CPU time on the same sentences, and scored on the same sample of the
test set with the default decoding settings. The budget is small: it shows which variant learns fast, not
which one is best in the end.
"""

from pathlib import Path
from typing import Any, Dict

import spacy
import torch
import typer
from spacy.util import fix_random_seed

from benchmarks.lib.common import read_examples, save
from benchmarks.padellm.recipe import evaluate, fit, sample

# Model settings and learning rate of each variant.
WAYS: Dict[str, Any] = {
    "compact template": ({"template": "compact"}, 0.003),
    "published template": ({"template": "published_en"}, 0.003),
    "published template, loss over the vocabulary": (
        {"template": "published_en", "loss": "raw"},
        0.003,
    ),
    "published template, loss over the vocabulary, but not on the index": (
        {"template": "published_en", "loss": "raw", "learn_index": False},
        0.003,
    ),
    "compact template, full copies of the upper half": ({"template": "compact", "rank": 0}, 0.0003),
}
LABEL_WORDS = {"PER": "person", "ORG": "organization", "LOC": "location", "MISC": "other"}


def main(
    name: str,
    train: Path,
    test: Path,
    minutes: float = 6.0,
    docs: int = 200,
    llm: str = "smollm2-135m-instruct",
    batch_size: int = 8,
    seed: int = 0,
) -> None:
    ways: Dict[str, Any] = {}
    for way, (settings, rate) in WAYS.items():
        fix_random_seed(seed)
        nlp = spacy.blank("en")
        model = {
            "@architectures": "spacy_llmner.PaDeLLM.v1",
            "label_words": LABEL_WORDS,
            "rank": 16,
        }
        nlp.add_pipe("padellm_ner", config={"llm": {"name": llm}, "model": {**model, **settings}})
        run = fit(nlp, read_examples(nlp, train), minutes, batch_size, rate, seed)
        ways[way] = {**run, "rate": rate}
        ways[way].update(evaluate(nlp, sample(read_examples(nlp, test), docs), None))
        print(way, ways[way], flush=True)
        result = {"set": name, "llm": llm, "minutes": minutes, "docs": docs, "seed": seed}
        save(f"padellm_training_{name}", {**result, "ways": ways})


if __name__ == "__main__":
    torch.set_num_threads(1)
    typer.run(main)
