"""Time around the LLM, by step: the same pipeline in two versions of this package, measured in turns."""

import importlib
import json
import os
import random
import subprocess
import sys
import time
from pathlib import Path
from statistics import median
from typing import Any, Callable, Dict, Iterator, List, Tuple

from benchmarks.lib.common import ROOT

# The forward passes of the LLM, and what spaCy does before the component. They don't count as overhead.
LLM, TOKENIZER = "LLM", "spaCy's tokenizer"
OTHER = "other"
TEMPLATES = (
    "{PERSON} met {PERSON} in {PLACE} , where both had worked for {ORG} in the spring",
    "the old bridge near {PLACE} was closed for repairs last week , and nobody complained about it",
    "{ORG} sold its share of the harbour to {ORG} for an undisclosed sum , according to {PERSON}",
    "nobody in the village remembered who had painted the boat or when it had first come up the river",
    "critics praised {WORK} , although {PERSON} had finished it in only three weeks",
    "the train to {PLACE} was late again , so we drank tea and talked about the weather",
    "after the meeting the members voted to plant more trees along the road and to repair the school",
    "in {WORK} , a young engineer from {PLACE} builds a clock that runs backwards",
)


class Stopwatch:
    """Measures the CPU time of steps. Each moment counts for the step that was entered last."""

    def __init__(self) -> None:
        self.seconds: Dict[str, float] = {}
        self._running = [OTHER]
        self._since = time.process_time()

    def reset(self) -> None:
        self.seconds.clear()
        self._since = time.process_time()

    def stop(self) -> Dict[str, float]:
        """RETURNS (Dict[str, float]): The seconds of each step since the last `reset`."""
        self._count()
        return dict(self.seconds)

    def watch(self, steps: Dict[str, List[str]]) -> None:
        """Measure functions.

        steps (Dict[str, List[str]]): By step: "module:function" or "module:class.function". Those that this
            version of the package doesn't have are ignored.
        """
        for step, places in steps.items():
            for place in places:
                module, _, path = place.partition(":")
                *owners, name = path.split(".")
                try:
                    owner: Any = importlib.import_module(module)
                    for part in owners:
                        owner = getattr(owner, part)
                    setattr(owner, name, self._timed(getattr(owner, name), step))
                except (ImportError, AttributeError):
                    continue

    def _timed(self, function: Callable, step: str) -> Callable:
        def timed(*args: Any, **kwargs: Any) -> Any:
            self._count()
            self._running.append(step)
            try:
                return function(*args, **kwargs)
            finally:
                self._count()
                self._running.pop()

        return timed

    def _count(self) -> None:
        now = time.process_time()
        step = self._running[-1]
        self.seconds[step] = self.seconds.get(step, 0.0) + now - self._since
        self._since = now


def alternate(
    module: str, old: Path, arguments: List[str], rounds: int
) -> Dict[str, List[Dict[str, Any]]]:
    """Run a benchmark's worker in two versions of the package, in turns.

    module (str): The benchmark, which calls `answer` if its first argument is "--worker".
    old (Path): Folder of the old version, such as a git worktree.
    arguments (List[str]): Further arguments of the worker.
    rounds (int): How often each version measures. One more round warms up.
    RETURNS (Dict[str, List[Dict[str, Any]]]): The answers of "before" and "after".
    """
    workers = {
        name: _start([sys.executable, "-m", module, "--worker", str(folder.resolve()), *arguments])
        for name, folder in (("before", old), ("after", ROOT))
    }
    answers: Dict[str, List[Dict[str, Any]]] = {name: [] for name in workers}
    for k in range(rounds + 1):
        for name in sorted(workers, reverse=bool(k % 2)):
            workers[name].stdin.write("measure\n")
            workers[name].stdin.flush()
            row = json.loads(workers[name].stdout.readline())
            if k:
                answers[name].append(row)
            print(k, name, {step: round(x, 2) for step, x in row["steps"].items()}, flush=True)
    for worker in workers.values():
        worker.stdin.close()
        worker.wait()
    return answers


def summary(answers: Dict[str, List[Dict[str, Any]]], network: str = "") -> Dict[str, Any]:
    """Summarize the answers of `alternate`.

    network (str): The step that is a neural network of its own, if there is one.
    RETURNS (Dict[str, Any]): For each version, the median time of each step and their sums. The LLM and
        spaCy's tokenizer are left out of the sums. Also, whether both versions found the same.
    """
    results: Dict[str, Any] = {}
    for name, rows in answers.items():
        steps = {step: median(row["steps"][step] for row in rows) for step in rows[0]["steps"]}
        sums = [
            sum(us for step, us in row["steps"].items() if step not in (LLM, TOKENIZER, network))
            for row in rows
        ]
        results[name] = {"us": steps, "sum": median(sums)}
    first, second = (rows[0]["found"] for rows in answers.values())
    pairs = list(zip(first, second))
    differences = [
        abs(a["spans"].get(key, 0.5) - b["spans"].get(key, 0.5))
        for a, b in pairs
        for key in {**a["spans"], **b["spans"]}
    ]
    return {
        **results,
        "entities": sum(len(doc["ents"]) for doc in second),
        "same_entities": all(a["ents"] == b["ents"] for a, b in pairs),
        "max_score_difference": max(differences, default=0.0),
    }


def found(doc: Any) -> Dict[str, Any]:
    """RETURNS (Dict[str, Any]): The entities of a Doc, and the scores of all spans."""
    group = doc.spans["llmner"]
    keys = [f"{s.start_char} {s.end_char} {s.label_}" for s in group]
    return {
        "ents": [f"{e.start_char} {e.end_char} {e.label_}" for e in doc.ents],
        "spans": dict(zip(keys, group.attrs["scores"])),
    }


def use_version(folder: str) -> None:
    """Import `spacy_llmner` from a folder. Must be called before its first import."""
    assert "spacy_llmner" not in sys.modules
    sys.path.insert(0, folder)


def answer(measure: Callable[[], Dict[str, Any]]) -> None:
    """Measure once for each line of the standard input, and print the result as JSON."""
    out, sys.stdout = sys.stdout, sys.stderr
    for _ in sys.stdin:
        print(json.dumps(measure()), file=out, flush=True)


def _start(command: List[str]) -> Any:
    env = {**os.environ, "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
    return subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=env, cwd=ROOT
    )


def tiny_llm(folder: Path, tokenizer: str, **sizes: int) -> None:
    """Write an LLM of one layer with random weights.

    folder (Path): The new folder.
    tokenizer (str): Name of the LLM in the catalogue whose tokenizer is used.
    sizes: Settings of LlamaConfig that differ from the default.
    """
    import torch
    from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

    from spacy_llmner.models import catalogue

    hf = AutoTokenizer.from_pretrained(catalogue.download(tokenizer, progress=False))
    config = {
        "hidden_size": 64,
        "intermediate_size": 64,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "max_position_embeddings": 2048,
        "vocab_size": len(hf),
        "bos_token_id": hf.bos_token_id,
        "eos_token_id": hf.eos_token_id,
    }
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = LlamaForCausalLM(LlamaConfig(**{**config, **sizes}))
    with torch.no_grad():
        model.model.embed_tokens.weight.normal_(generator=torch.Generator().manual_seed(0))
    model.save_pretrained(folder)
    hf.save_pretrained(folder)


def made_up_texts(n: int, seed: int = 0) -> List[Tuple[str, List[Tuple[int, int, str]]]]:
    """RETURNS (List[Tuple[str, List[Tuple[int, int, str]]]]): Texts of one or two sentences, and the
    (start, end, label) of their entities, in characters."""
    rng = random.Random(seed)
    return [_join(rng, rng.sample(TEMPLATES, rng.randint(1, 2))) for _ in range(n)]


def _join(rng: random.Random, sentences: List[str]) -> Tuple[str, List[Tuple[int, int, str]]]:
    text, ents = "", []
    for piece in " . ".join(sentences).split() + ["."]:
        label = piece.strip("{}")
        word = _name(rng, label) if piece.startswith("{") else piece
        space = " " if text and word not in (".", ",") else ""
        if word != piece:
            start = len(text) + len(space)
            ents.append((start, start + len(word), label))
        text += space + word
    return text, ents


def _name(rng: random.Random, label: str) -> str:
    words = [next(_words(rng)) for _ in range(rng.randint(1, 2))]
    if label == "ORG":
        words.append(rng.choice(["Society", "Works", "Bank"]))
    elif label == "WORK":
        words = ["The", *words, "of", next(_words(rng))]
    elif label == "PERSON":
        words = [rng.choice(["Mira", "Oskar", "Ilda", "Tomas"]), words[0]]
    return " ".join(words)


def _words(rng: random.Random) -> Iterator[str]:
    while True:
        syllables = [
            rng.choice("bdfglmnprstv") + rng.choice("aeiou") for _ in range(rng.randint(2, 3))
        ]
        yield "".join(syllables).capitalize()
