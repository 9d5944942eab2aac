"""F1 of a type probe on each layer of the LLM: the output of `spacy llmner layers` as JSON.

    python -m benchmarks.ember.layers NAME train.spacy dev.spacy --limit 250

The .spacy files come from scripts/convert.py (`--docs-of 10` for documents). The first `limit` Docs of each
are used. Layer 0 is the embeddings.
"""

import time
from dataclasses import asdict
from pathlib import Path

import torch
import typer

from benchmarks.lib.common import save
from spacy_llmner.cli.layers import sweep
from spacy_llmner.llm.registry import make_llm


def main(
    name: str, train: Path, dev: Path, llm: str = "smollm2-135m-instruct", limit: int = 250
) -> None:
    loaded = make_llm(llm).load()
    started = time.process_time()
    scores = sweep(loaded, train, dev, limit=limit, progress=True)
    best = max(scores, key=lambda s: s.ents_f)
    save(
        f"ember_layers_{name}",
        {
            "set": name,
            "llm": llm,
            "n_layers": loaded.n_layers,
            "limit": limit,
            "cpu_seconds": time.process_time() - started,
            "best_layer": best.layer,
            "layers": [asdict(score) for score in scores],
        },
    )


if __name__ == "__main__":
    torch.set_num_threads(1)
    typer.run(main)
