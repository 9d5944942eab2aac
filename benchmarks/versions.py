"""Compare the speed of two versions of this package: the same measurements, alternated.

    python -m benchmarks.versions OLD_PYTHON NEW_PYTHON EMBER_PIPELINE PADELLM_PIPELINE

OLD_PYTHON and NEW_PYTHON are the interpreters of two virtual environments with one version installed in
each. Both stay running, load the same two pipelines and measure in turns; which one goes first changes
from round to round. Times are CPU times of one thread. Measured are: words per second of `nlp.pipe` with
`ember_probe`, the time of a stream divided by that of the same generation without a probe, and
milliseconds per sentence of `padellm_ner`.
"""

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from statistics import median
from typing import Any, Callable, Dict, Iterator, List

ASSETS = Path(__file__).parent.parent / "assets"
PROMPT = "The engineer Amara Lindqvist left Trondheim for Valparaíso in the spring of 1889. Her diary says:"
END = object()


def main(old: str, new: str, ember: str, padellm: str, rounds: int = 9) -> None:
    """Run both versions and save the results.

    old (str): Python interpreter of the old version.
    new (str): Python interpreter of the new version.
    ember (str): Folder of a trained pipeline with `ember_probe`.
    padellm (str): Folder of a trained pipeline with `padellm_ner`.
    rounds (int): How often each version measures everything. One more round warms up.
    """
    from benchmarks.lib.common import save

    command = [__file__, "--worker", ember, padellm]
    workers = {name: start([python, *command]) for name, python in (("old", old), ("new", new))}
    measured: Dict[str, List[Dict[str, float]]] = {name: [] for name in workers}
    for k in range(rounds + 1):
        for name in sorted(workers, reverse=bool(k % 2)):
            row = measure(workers[name])
            if k:
                measured[name].append(row)
            print(k, name, row, flush=True)
    for worker in workers.values():
        worker.stdin.close()
        worker.wait()
    results: Dict[str, Any] = {"rounds": rounds}
    for what in measured["old"][0]:
        values = {name: [row[what] for row in rows] for name, rows in measured.items()}
        ratios = [b / a for a, b in zip(values["old"], values["new"])]
        results[what] = {
            **{name: median(x) for name, x in values.items()},
            "new_over_old_median": median(ratios),
            "new_over_old_min": min(ratios),
            "new_over_old_max": max(ratios),
        }
    save("versions", results)


def start(command: List[str]) -> Any:
    """RETURNS (Popen): A running worker that has loaded its pipelines."""
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    env.pop("PYTHONPATH", None)
    worker = subprocess.Popen(
        command,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=env,
        cwd=ASSETS.parent,
    )
    assert worker.stdout is not None
    print(worker.stdout.readline().strip(), flush=True)
    return worker


def measure(worker: Any) -> Dict[str, float]:
    """RETURNS (Dict[str, float]): One round of measurements of a worker."""
    worker.stdin.write("measure\n")
    worker.stdin.flush()
    return json.loads(worker.stdout.readline())


def work(ember: str, padellm: str) -> None:
    """Load the pipelines, and measure for each line of the standard input."""
    import spacy
    import torch

    import spacy_llmner

    torch.set_num_threads(1)
    out, sys.stdout = sys.stdout, sys.stderr
    lines = (ASSETS / "en_test.jsonl").read_text(encoding="utf8").splitlines()
    sentences = [json.loads(line)["text"] for line in lines]
    documents = [" ".join(sentences[k : k + 5]) for k in range(0, 100, 5)]
    probe, parallel = spacy.load(ember), spacy.load(padellm)
    n_words = sum(len(probe.make_doc(text)) for text in documents)
    print(f"loaded {Path(str(spacy_llmner.__file__)).parent.parent.name}", file=out, flush=True)
    for _ in sys.stdin:
        row = {
            "ember_words_per_s": n_words / seconds(lambda: list(probe.pipe(documents))),
            "stream_ratio": stream_ratio(probe.get_pipe("ember_probe")),
            "padellm_ms_per_sentence": 1000
            * seconds(lambda: [parallel(text) for text in sentences[:16]])
            / 16,
        }
        print(json.dumps(row), file=out, flush=True)


def seconds(run: Callable[[], Any]) -> float:
    """RETURNS (float): CPU seconds of a call."""
    start = time.process_time()
    run()
    return time.process_time() - start


def stream_ratio(ember: Any, n_tokens: int = 64) -> float:
    """RETURNS (float): Time of a stream divided by that of the generation alone, step by step."""
    llm = ember.shared_llm()
    loops = {
        "plain": plain(llm, n_tokens),
        "stream": pieces(ember.stream(PROMPT, max_new_tokens=n_tokens)),
    }
    spent = dict.fromkeys(loops, 0.0)
    while loops:
        for name, loop in list(loops.items()):
            start = time.process_time()
            if next(loop, END) is END:
                del loops[name]
            spent[name] += time.process_time() - start
    return spent["stream"] / spent["plain"]


def pieces(stream: Any) -> Iterator[None]:
    """One step for each piece of text."""
    for event in stream:
        if type(event).__name__ == "TextPiece":
            yield


def plain(llm: Any, n_tokens: int) -> Iterator[None]:
    """Greedy decoding with a KV cache and nothing else, one step for each token."""
    import torch

    ids = llm.tokenizer.hf(PROMPT, add_special_tokens=False, return_tensors="pt").input_ids
    with torch.no_grad():
        out = llm.model(input_ids=ids, use_cache=True, logits_to_keep=1)
        for _ in range(n_tokens):
            ids = out.logits[:, -1].argmax(-1, keepdim=True)
            yield
            out = llm.model(
                input_ids=ids,
                past_key_values=out.past_key_values,
                use_cache=True,
                logits_to_keep=1,
            )


if __name__ == "__main__":
    if "--worker" in sys.argv:
        work(*sys.argv[2:])
    else:
        import typer

        typer.run(main)
