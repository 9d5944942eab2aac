"""Resident memory of all four components in one process, compared with that of `ember_probe` and the second
LLM.

    python -m benchmarks.project.compare_memory corpus/en_test.spacy training/ember_probe/model-best \
        training/padellm_ner/model-best training/ra_it_ner/model-best training/el4ner_ensemble/model-best

Both are measured in separate processes after reading some texts.
"""

import gc
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any, Dict, List

import psutil
import torch
import typer

from benchmarks.lib.common import save
from spacy_llmner.cli._util import read_examples
from spacy_llmner.cli.compare_ways import load_ways
from spacy_llmner.cli.peak import peak_mb, reset_peak
from spacy_llmner.llm import registry

MB = 2**20


def main(
    data: Path,
    models: List[str],
    texts: int = typer.Option(8, help="Number of texts that are read"),
) -> None:
    with ProcessPoolExecutor(1, get_context("spawn"), max_tasks_per_child=1) as pool:
        alone = pool.submit(measure, data, models[:1], texts).result()
        together = pool.submit(measure, data, models, texts).result()
    others = {llm: mb for llm, mb in together["llms_mb"].items() if llm not in alone["llms_mb"]}
    limit = alone["rss_mb"] + sum(others.values())
    save(
        "compare_memory",
        {
            "components": together["components"],
            "first_alone_rss_mb": alone["rss_mb"],
            "other_llms_mb": others,
            "together_rss_mb": together["rss_mb"],
            "over_first_and_other_llms": together["rss_mb"] / limit,
            "peaks_while_reading_mb": [alone["peak_mb"], together["peak_mb"]],
        },
    )
    print(f"{together['rss_mb']:.0f} MB / {limit:.0f} MB = {together['rss_mb'] / limit:.3f}")


def measure(data: Path, models: List[str], texts: int) -> Dict[str, Any]:
    torch.set_num_threads(1)
    ways = load_ways(models)
    reset_peak()
    for way in ways.values():
        docs = list(way.nlp.pipe(eg.predicted for eg in read_examples(way.nlp, data)[:texts]))
        assert len(docs) == texts
    gc.collect()
    return {
        "components": list(ways),
        "rss_mb": psutil.Process().memory_info().rss / MB,
        "peak_mb": peak_mb(),
        "llms_mb": {Path(llm.spec.name).name: weights(llm.model) / MB for llm in registry.loaded()},
    }


def weights(model: torch.nn.Module) -> int:
    """RETURNS (int): Bytes of the parameters. Shared parameters count once."""
    return sum(p.numel() * p.element_size() for p in model.parameters())


if __name__ == "__main__":
    typer.run(main)
