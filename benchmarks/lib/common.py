"""Shared by all benchmarks: results as JSON, clocks, corpora, strict scores and spaCy's own `ner`."""

import json
import os
import platform
import shlex
import sys
import time
from datetime import date
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Callable, Dict, Iterable, List, Tuple

import spacy
import torch
from spacy.cli.init_config import init_config
from spacy.language import Language
from spacy.tokens import Doc, DocBin
from spacy.training import Example
from spacy.training.initialize import init_nlp
from spacy.training.loop import train as spacy_train
from spacy.util import load_model_from_config

ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / "benchmarks" / "results"


def save(name: str, results: Dict[str, Any]) -> None:
    """Write results/NAME.json with the machine, the date and the command.

    name (str): Name of the file, without its ending.
    results (Dict[str, Any]): The measurements.
    """
    cpu = platform.processor() or platform.machine()
    for line in Path("/proc/cpuinfo").read_text().splitlines() if os.name == "posix" else []:
        if line.startswith("model name"):
            cpu = line.split(":", 1)[1].strip()
            break
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else cpu
    record = {
        "command": command_line(sys.argv),
        "date": date.today().isoformat(),
        "device": device,
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "spacy": spacy.__version__,
        **results,
    }
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{name}.json"
    path.write_text(json.dumps(record, indent=1) + "\n")
    print(f"saved {path.name}")


def command_line(argv: List[str]) -> str:
    """Give the command that runs a benchmark again.

    argv (List[str]): Path of the benchmark's file, and its arguments.
    RETURNS (str): The command, to be run in the root of the repository.
    """
    path = Path(argv[0]).resolve().relative_to(ROOT).with_suffix("")
    return f"python -m {shlex.join(['.'.join(path.parts), *argv[1:]])}"


def clock_of(
    device: torch.device, on_cpu: Callable[[], float] = time.process_time
) -> Callable[[], float]:
    """Choose the clock for a device.

    device (torch.device): Where the LLM runs.
    on_cpu (Callable[[], float]): Clock for a CPU.
    RETURNS (Callable[[], float]): Gives CPU seconds on a CPU. On a GPU it waits for all kernels and gives
        wall-clock seconds.
    """
    if device.type == "cpu":
        return on_cpu

    def clock() -> float:
        torch.cuda.synchronize(device)
        return time.perf_counter()

    return clock


def earlier_runs(name: str, first_seed: int) -> List[Dict[str, Any]]:
    """Read earlier runs, to add runs with further seeds to them.

    RETURNS (List[Dict[str, Any]]): The runs in results/NAME.json with seeds below `first_seed`.
    """
    path = RESULTS / f"{name}.json"
    if not first_seed or not path.exists():
        return []
    runs = json.loads(path.read_text())["runs"]
    return [run for run in runs if run["seed"] < first_seed]


def read_examples(nlp: Language, path: Path, sentences: bool = True) -> List[Example]:
    """Read a .spacy file. The predicted Docs have the words of the reference.

    sentences (bool): Copy the sentence boundaries, too.
    """
    out = []
    for doc in DocBin().from_disk(path).get_docs(nlp.vocab):
        starts = [t.is_sent_start is True for t in doc] if sentences else None
        predicted = Doc(
            nlp.vocab,
            words=[t.text for t in doc],
            spaces=[bool(t.whitespace_) for t in doc],
            sent_starts=starts,  # type: ignore[arg-type]
        )
        out.append(Example(predicted, doc))
    return out


def read_once(ember: Any, features: Dict[str, Any]) -> None:
    """Let the LLM read each text only once for several pipelines.

    ember (EmberProbe): The component of one of them, which is changed.
    features (Dict[str, Any]): The features by text, shared by all of them.
    """
    read = ember.read

    def cached(docs: List[Any]) -> List[Any]:
        new = [doc for doc in docs if doc.text not in features]
        features.update(zip([doc.text for doc in new], read(new) if new else []))
        return [features[doc.text] for doc in docs]

    ember.read = cached


def strict_scores(references: Iterable[Doc], predictions: Iterable[Doc]) -> Dict[str, float]:
    """Compute the micro precision, recall and F1 of (start, end, label), in percent."""
    right = n_gold = n_found = 0
    for reference, predicted in zip(references, predictions):
        gold = {(e.start_char, e.end_char, e.label_) for e in reference.ents}
        found = {(e.start_char, e.end_char, e.label_) for e in predicted.ents}
        right += len(gold & found)
        n_gold += len(gold)
        n_found += len(found)
    precision, recall = right / max(n_found, 1), right / max(n_gold, 1)
    f1 = 2 * precision * recall / max(precision + recall, 1e-9)
    return {"p": 100 * precision, "r": 100 * recall, "f": 100 * f1}


def train_spacy_ner(train: Path, dev: Path, seed: int, lang: str) -> Tuple[Language, float]:
    """Train spaCy's `ner` with the efficiency config, one sentence per example, until early stopping.

    RETURNS (Tuple[Language, float]): The best pipeline, and the CPU seconds of its training.
    """
    config = init_config(lang=lang, pipeline=["ner"], optimize="efficiency", gpu=False)
    config["paths"].update(train=str(train), dev=str(dev), vectors=None)
    config["initialize"]["vectors"] = None
    config["training"]["seed"] = config["system"]["seed"] = seed
    for part in ("train", "dev"):
        config["corpora"][part]["gold_preproc"] = True
    started = time.process_time()
    with TemporaryDirectory() as folder:
        spacy_train(init_nlp(config), Path(folder))
        best = spacy.load(Path(folder) / "model-best")
    return best, time.process_time() - started


def spacy_ner() -> Language:
    """Create spaCy's `ner` with the efficiency config, untrained: its speed doesn't depend on its
    weights."""
    config = init_config(lang="en", pipeline=["ner"], optimize="efficiency", gpu=False)
    config["initialize"]["vectors"] = None
    nlp = load_model_from_config(config, auto_fill=True)
    ner: Any = nlp.get_pipe("ner")
    for label in ("PERSON", "ORG", "LOC", "PRODUCT", "EVENT", "WORK"):
        ner.add_label(label)
    nlp.initialize()
    return nlp
