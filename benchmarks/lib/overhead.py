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
from tempfile import TemporaryDirectory
from typing import Any, Callable, Dict, Iterator, List, Tuple

from benchmarks.lib.common import ROOT

# The forward passes of the LLM, and what spaCy does before the component. They don't count as overhead.
LLM, TOKENIZER = "LLM", "spaCy's tokenizer"
OTHER = "other"
# Called with the pipeline and the texts. Returns a function that returns the size of what was processed
# since its last call.
Counter = Callable[[Any, List[str]], Callable[[], int]]
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


def alternate(module: str, old: Path, n_texts: int, rounds: int) -> Dict[str, List[Dict[str, Any]]]:
    """Run a pipeline in two versions of the package, in turns. The old version trains it, since the new one
    can read what the old one writes.

    module (str): The benchmark, which calls `run`.
    old (Path): Folder of the old version, such as a git worktree.
    n_texts (int): Number of texts.
    rounds (int): How often each version measures. One more round warms up.
    RETURNS (Dict[str, List[Dict[str, Any]]]): The answers of "before" and "after".
    """
    versions = {"before": old.resolve(), "after": ROOT}
    answers: Dict[str, List[Dict[str, Any]]] = {name: [] for name in versions}
    with TemporaryDirectory() as folder:
        if _start(module, "--train", versions["before"], folder, n_texts).wait():
            raise SystemExit("The old version can't train the pipeline.")
        workers = {
            name: _start(module, "--measure", version, folder, n_texts)
            for name, version in versions.items()
        }
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


def run(
    main: Callable,
    pipeline: Callable[[Path], None],
    steps: Dict[str, List[str]],
    count: Counter,
    **settings: Any,
) -> None:
    """Run a benchmark: its `main`, or what `alternate` has started this process for.

    main (Callable): Its parameters become command-line options.
    pipeline (Callable[[Path], None]): Writes the pipeline to a folder. See `train`.
    steps (Dict[str, List[str]]): What to measure, for `Stopwatch.watch`.
    count (Counter): Starts to count what the time is divided by.
    settings: Settings of `nlp.pipe`.
    """
    if sys.argv[1:2] not in (["--train"], ["--measure"]):
        import typer

        return typer.run(main)
    _, task, version, folder, n_texts = sys.argv
    assert "spacy_llmner" not in sys.modules
    sys.path.insert(0, version)
    if task == "--train":
        return pipeline(Path(folder))
    import spacy
    import torch

    torch.set_num_threads(1)
    nlp = spacy.load(Path(folder) / "pipeline")
    texts = [text for text, _ in made_up_texts(int(n_texts))]
    size = count(nlp, texts)
    stopwatch = Stopwatch()
    stopwatch.watch(steps)
    # Only answers go to the standard output: one for each line of the standard input.
    out, sys.stdout = sys.stdout, sys.stderr
    for _ in sys.stdin:
        stopwatch.reset()
        docs = list(nlp.pipe(texts, **settings))
        seconds, n = stopwatch.stop(), size()
        us = {step: 1e6 * spent / n for step, spent in seconds.items()}
        row = {"steps": us, "size": n, "found": [found(doc) for doc in docs]}
        print(json.dumps(row), file=out, flush=True)


def train(
    folder: Path,
    component: str,
    config: Dict[str, Any],
    *,
    n_texts: int,
    n_steps: int,
    sgd: Dict[str, float],
    drop: float = 0.0,
) -> None:
    """Write an LLM of one tiny layer, and a pipeline that was trained with it.

    folder (Path): The folder.
    component (str): Name of the component's factory.
    config (Dict[str, Any]): Its settings, without the LLM.
    n_texts (int): Training texts. A tenth of them are a batch.
    n_steps (int): Training steps.
    sgd (Dict[str, float]): Settings of Adam.
    drop (float): Dropout rate.
    """
    import spacy
    import torch
    from spacy.training import Example
    from thinc.api import Adam

    torch.set_num_threads(1)
    spacy.util.fix_random_seed(0)
    tiny_llm(folder / "llm", "smollm2-135m-instruct")
    nlp = spacy.blank("en")
    llm = {"@misc": "spacy_llmner.LLM.v1", "name": str(folder / "llm"), "device": "cpu"}
    nlp.add_pipe(component, config={"llm": llm, **config})
    examples = [
        Example.from_dict(nlp.make_doc(text), {"entities": ents})
        for text, ents in made_up_texts(n_texts, seed=1)
    ]
    nlp.initialize(lambda: examples)
    optimizer = Adam(**sgd)
    size = n_texts // 10
    for step in range(n_steps):
        nlp.update(examples[size * (step % 10) :][:size], sgd=optimizer, drop=drop)
    nlp.to_disk(folder / "pipeline")


def _start(module: str, task: str, version: Path, folder: str, n_texts: int) -> Any:
    command = [sys.executable, "-m", module, task, str(version), folder, str(n_texts)]
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
