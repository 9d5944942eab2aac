"""Speed, memory and completeness of `spacy llmner annotate`.

    python -m benchmarks.scale.annotate overhead
    python -m benchmarks.scale.annotate workers
    python -m benchmarks.scale.annotate lengths
    python -m benchmarks.scale.annotate memory
    python -m benchmarks.scale.annotate million

Texts are made up: one or two sentences, with 25 words on average. `overhead`, `workers` and `lengths` use
ember_probe with labels in words, `memory` an LLM of one layer, `million` an entity_ruler. Every process has
one thread.
"""

import json
import os
import resource
import shutil
import subprocess
import sys
import time
from importlib import import_module
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any, Callable, Dict, Iterator, List, Tuple

import spacy
import torch
import typer

from benchmarks.lib.common import save
from benchmarks.lib.overhead import made_up_texts, train
from spacy_llmner.scale import annotate, run
from spacy_llmner.scale.shards import Shard, ShardAnnotator, ShardResult

LABELS = ["person", "place", "organization", "work of art"]
app = typer.Typer()


@app.command()
def overhead(texts: int = 1000, rounds: int = 7, llm: str = "smollm2-135m-instruct") -> None:
    """Compare `annotate` with nlp.pipe on the same texts, in turns in one process. What a run does once,
    such as loading the pipeline, is measured with one text, and subtracted."""
    torch.set_num_threads(1)
    times: Dict[str, List[Tuple[float, float]]] = {"pipe": [], "annotate": [], "start": []}
    with TemporaryDirectory() as folder:
        root = Path(folder)
        nlp = _words_pipeline(root / "pipeline", llm)
        batch = [text for text, _ in made_up_texts(texts)]
        _write_texts(root / "all.jsonl", batch)
        _write_texts(root / "one.jsonl", batch[:1])

        def run_on(name: str) -> Callable[[], Any]:
            return lambda: annotate(root / f"{name}.jsonl", root / "out", root / "pipeline")

        for k in range(rounds + 1):
            steps = {
                "pipe": lambda: sum(len(doc.ents) for doc in nlp.pipe(batch)),
                "annotate": run_on("all"),
                "start": run_on("one"),
            }
            for name, step in steps.items():
                shutil.rmtree(root / "out", ignore_errors=True)
                spent = _timed(step)
                if k:  # the first round loads the LLM
                    times[name].append(spent)
            print(k, {name: spent[-1] for name, spent in times.items() if spent}, flush=True)
    ratios = {
        clock: [
            (whole[i] - start[i]) / pipe[i]
            for pipe, whole, start in zip(times["pipe"], times["annotate"], times["start"])
        ]
        for i, clock in enumerate(("cpu", "wall"))
    }
    words = sum(len(nlp.make_doc(text)) for text in batch)
    results = {
        "llm": llm,
        "texts": texts,
        "words": words,
        "rounds": rounds,
        "words_per_second_of_nlp_pipe": words / median(t[0] for t in times["pipe"]),
        "seconds_to_start": median(t[0] for t in times["start"]),
        "time_relative_to_nlp_pipe": median(ratios["cpu"]),
        "lowest_and_highest": [min(ratios["cpu"]), max(ratios["cpu"])],
        "wall_time_relative_to_nlp_pipe": median(ratios["wall"]),
    }
    save("scale_overhead", results)


@app.command()
def workers(texts: int = 2000, rounds: int = 3, llm: str = "smollm2-135m-instruct") -> None:
    """Compare one process, two, and two Ray actors, in turns. Only the time between finished shards counts,
    not the start of the processes. That is wall-clock time, which depends on what else the machine does.
    CPU time per text does not, and is the same for one and two workers if none waits for the other."""
    torch.set_num_threads(1)
    run.ShardAnnotator = TimedShardAnnotator  # type: ignore[misc]
    settings: Dict[str, Dict[str, Any]] = {
        "one worker": {},
        "two workers": {"workers": 2},
        "two Ray actors": {"workers": 2, "ray": "local"},
    }
    rates: Dict[str, List[float]] = {name: [] for name in settings}
    cpu: Dict[str, List[float]] = {name: [] for name in settings}
    load = os.getloadavg()[0]
    with TemporaryDirectory() as folder:
        root = Path(folder)
        _words_pipeline(root / "pipeline", llm)
        _write_texts(root / "all.jsonl", [text for text, _ in made_up_texts(texts)])
        for k in range(rounds):
            os.environ["CPU_TIMES"] = str(root)
            for name, setting in settings.items():
                out = root / f"out{k}"
                done = annotate(
                    root / "all.jsonl", out, root / "pipeline", shard_size=50, **setting
                )
                finished = sorted(path.stat().st_mtime for path in done.shards)
                n_first = setting.get("workers", 1)
                seconds = finished[-1] - finished[n_first - 1]
                rates[name].append(50 * (len(finished) - n_first) / seconds)
                shutil.rmtree(out)
                cpu[name].append(median(map(float, _take_lines(root))) / 50)
                print(k, name, f"{rates[name][-1]:.1f} texts/s", flush=True)
    one, two, ray = (rates[name] for name in settings)
    results = {
        "llm": llm,
        "texts": texts,
        "texts_per_second": {name: median(values) for name, values in rates.items()},
        "cpu_ms_per_text": {name: 1000 * median(values) for name, values in cpu.items()},
        "two_workers_relative_to_one": median(b / a for a, b in zip(one, two)),
        "two_workers_relative_to_one_all": [b / a for a, b in zip(one, two)],
        "ray_relative_to_two_workers": median(b / a for a, b in zip(two, ray)),
        "ray_relative_to_two_workers_all": [b / a for a, b in zip(two, ray)],
        "load_of_the_machine_before": load,
    }
    save("scale_workers", results)


@app.command()
def lengths(words: int = 3200, rounds: int = 3, llm: str = "smollm2-135m-instruct") -> None:
    """Measure the words per CPU second of nlp.pipe by the length of the texts, in turns."""
    torch.set_num_threads(1)
    numbers = (25, 100, 400, 1600)
    pieces = " ".join(text for text, _ in made_up_texts(words)).split()
    rates: Dict[int, List[float]] = {number: [] for number in numbers}
    with TemporaryDirectory() as folder:
        nlp = _words_pipeline(Path(folder) / "pipeline", llm)
        list(nlp.pipe(["Nothing."]))
        for k in range(rounds):
            for number in numbers:
                texts = [" ".join(pieces[i : i + number]) for i in range(0, words, number)]
                spent, _ = _timed(lambda texts=texts: list(nlp.pipe(texts)))  # type: ignore[misc]
                rates[number].append(words / spent)
            print(k, {number: round(rate[-1]) for number, rate in rates.items()}, flush=True)
    results = {
        "llm": llm,
        "words": words,
        "rounds": rounds,
        "words_per_second_by_words_of_a_text": {n: median(rate) for n, rate in rates.items()},
    }
    save("scale_lengths", results)


class TimedShardAnnotator(ShardAnnotator):
    """Appends the CPU seconds of each shard to a file of its process. The first shard of a process, which
    loads the LLM, is left out."""

    def __call__(self, shard: Shard) -> ShardResult:
        is_first = self.annotator._nlp is None or shard.number == 0
        started = time.process_time()
        result = super().__call__(shard)
        spent = time.process_time() - started
        if not is_first:
            with open(f"{os.environ['CPU_TIMES']}/{os.getpid()}.cpu", "a") as file:
                file.write(f"{spent}\n")
        return result


def _take_lines(folder: Path) -> List[str]:
    lines = []
    for path in folder.glob("*.cpu"):
        lines += path.read_text().split()
        path.unlink()
    return lines


@app.command()
def memory(gigabytes: float = 1.0) -> None:
    """Measure the peak memory of a process that annotates a large file, and of one with a tenth of it. Each
    document has a short text and 20,000 characters of other data."""
    results: Dict[str, Any] = {"gigabytes": gigabytes}
    with TemporaryDirectory() as folder:
        root = Path(folder)
        train(
            root, "ember_probe", {"feature_cache": "off"}, n_texts=100, n_steps=5, sgd={"L2": 0.0}
        )
        for name, size in (("tenth", gigabytes / 10), ("whole", gigabytes)):
            file = root / f"{name}.jsonl"
            n = _write_large(file, int(size * 1e9))
            command = [sys.executable, "-m", "benchmarks.scale.annotate", "peak", str(root), name]
            started = time.perf_counter()
            printed = subprocess.run(command, check=True, capture_output=True, text=True).stdout
            seconds = time.perf_counter() - started
            peak = json.loads(printed.splitlines()[-1])
            results[name] = {"documents": n, "peak_mb": peak["mb"], "seconds": seconds}
            assert peak["documents"] == n
            print(name, results[name], flush=True)
            file.unlink()
            shutil.rmtree(root / "out")
    save("scale_memory", results)


@app.command()
def peak(root: Path, name: str) -> None:
    """Annotate a file, and print the peak memory in MB: a process that `memory` starts."""
    torch.set_num_threads(1)
    done = annotate(root / f"{name}.jsonl", root / "out", root / "pipeline")
    kilobytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    print(json.dumps({"mb": kilobytes / 1000, "documents": done.n_documents}))


@app.command()
def million(texts: int = 1_000_000) -> None:
    """Annotate many short texts with two workers, and check that each is there once, in order."""
    with TemporaryDirectory() as folder:
        root = Path(folder)
        _stub_pipeline(root / "pipeline")
        with (root / "all.jsonl").open("w") as file:
            for i in range(texts):
                file.write(json.dumps({"id": i, "text": f"Text {i} from Bonn."}) + "\n")
        started = time.perf_counter()
        done = annotate(root / "all.jsonl", root / "out", root / "pipeline", workers=2)
        seconds = time.perf_counter() - started
        found = list(_ids(done.shards))
        assert found == list(range(texts))
        results = {
            "texts": texts,
            "shards": len(done.shards),
            "failed": done.n_failed,
            "missing": len(set(range(texts)) - set(found)),
            "twice": len(found) - len(set(found)),
            "in order": found == sorted(found),
            "seconds": seconds,
        }
    save("scale_million", results)


def _timed(step: Callable[[], Any]) -> Tuple[float, float]:
    """RETURNS (Tuple[float, float]): CPU and wall-clock seconds."""
    cpu, wall = time.process_time(), time.perf_counter()
    step()
    return time.process_time() - cpu, time.perf_counter() - wall


def _words_pipeline(path: Path, llm: str) -> Any:
    nlp = spacy.blank("en")
    nlp.add_pipe("ember_probe", config={"llm": llm, "labels": LABELS})
    nlp.to_disk(path)
    return nlp


def _stub_pipeline(path: Path) -> None:
    nlp = spacy.blank("en")
    ruler: Any = nlp.add_pipe("entity_ruler")
    ruler.add_patterns([{"label": "CITY", "pattern": "Bonn"}])
    nlp.to_disk(path)


def _write_texts(path: Path, texts: List[str]) -> None:
    rows = ({"id": i, "text": text} for i, text in enumerate(texts))
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def _write_large(path: Path, size: int) -> int:
    """RETURNS (int): The number of documents."""
    texts = [text for text, _ in made_up_texts(1000)]
    n = written = 0
    with path.open("w") as file:
        while written < size:
            row = {"id": n, "text": texts[n % len(texts)], "data": f"{n:010}" * 2000}
            written += file.write(json.dumps(row) + "\n")
            n += 1
    return n


def _ids(shards: List[Path]) -> Iterator[int]:
    for path in shards:
        with path.open() as file:
            for line in file:
                row = json.loads(line)
                assert row["entities"][0]["label"] == "CITY"
                yield row["id"]


if __name__ == "__main__":
    # Other processes can't import classes of __main__ with Ray.
    import_module("benchmarks.scale.annotate").app()
