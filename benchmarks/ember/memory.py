"""Resident memory of four pipelines with `ember_probe` and one shared LLM, divided by that of one pipeline.

python -m benchmarks.ember.memory training/ember_probe/model-best
"""

import gc
from pathlib import Path
from typing import Any, List

import psutil
import spacy
import torch
import typer

from benchmarks.lib.common import save

TEXT = "Amara Lindqvist left Trondheim for the Southern Star Company."


def main(pipeline: Path) -> None:
    process = psutil.Process()
    loaded: List[Any] = []
    megabytes = []
    for _ in range(4):
        nlp = spacy.load(pipeline)
        nlp(TEXT)
        loaded.append(nlp)
        gc.collect()
        megabytes.append(process.memory_info().rss / 2**20)
        print(len(loaded), round(megabytes[-1]), "MB")
    save("ember_memory", {"rss_mb": megabytes, "four_over_one": megabytes[3] / megabytes[0]})


if __name__ == "__main__":
    torch.set_num_threads(1)
    typer.run(main)
