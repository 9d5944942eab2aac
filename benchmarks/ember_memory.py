"""Resident memory of four pipelines with `ember_probe` on one LLM, over that of one.

python benchmarks/ember_memory.py training/ember_probe/model-best
"""

import gc
from pathlib import Path
from typing import Any, List

import psutil
import spacy
import torch
import typer
from common import save

TEXT = "Amara Lindqvist left Trondheim for the Southern Star Company."


def main(pipeline: Path) -> None:
    process = psutil.Process()
    keep: List[Any] = []
    megabytes = []
    for _ in range(4):
        nlp = spacy.load(pipeline)
        nlp(TEXT)
        keep.append(nlp)
        gc.collect()
        megabytes.append(process.memory_info().rss / 2**20)
        print(len(keep), round(megabytes[-1]), "MB")
    save("ember_memory", {"rss_mb": megabytes, "four_over_one": megabytes[3] / megabytes[0]})


if __name__ == "__main__":
    torch.set_num_threads(1)
    typer.run(main)
