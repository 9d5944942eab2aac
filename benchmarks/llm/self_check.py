"""Seconds of the self-check of LLMs, and the differences that it finds.

    python -m benchmarks.llm.self_check smollm2-135m-instruct gemma-3-270m

Each LLM is checked once to warm up, and then `--rounds` times. Seconds are wall-clock times of all cores.
"""

import statistics
import time
from dataclasses import asdict
from typing import List

import typer

from benchmarks.lib.common import save
from spacy_llmner.llm.registry import make_llm
from spacy_llmner.llm.self_check import self_check

NAME = "llm_self_check"


def main(llms: List[str], rounds: int = 3, dtype: str = "auto") -> None:
    rows = []
    for name in llms:
        handle = make_llm(name, dtype=dtype, self_check=False)
        llm = handle.load()
        self_check(llm, remember=False)
        seconds, cpu_seconds = [], []
        for _ in range(rounds):
            started, cpu_started = time.perf_counter(), time.process_time()
            found = self_check(llm, remember=False)
            seconds.append(time.perf_counter() - started)
            cpu_seconds.append(time.process_time() - cpu_started)
        rows.append(
            {
                "llm": name,
                "dtype": str(llm.model.dtype),
                "seconds": statistics.median(seconds),
                "cpu_seconds": statistics.median(cpu_seconds),
                "findings": {use: asdict(finding) for use, finding in found.items()},
            }
        )
        handle.unload()
        print(rows[-1], flush=True)
    save(NAME, {"rounds": rounds, "rows": rows})


if __name__ == "__main__":
    typer.run(main)
