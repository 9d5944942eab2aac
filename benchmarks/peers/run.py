"""`ember_probe` and what a user would pick instead, by number of labelled sentences.

    python -m benchmarks.peers.run NAME train.spacy dev.spacy test.spacy 100 500 1000

Systems:

- "ember_probe": the default probe, with the schedule that `spacy llmner init config` chooses.
- "from words": the same, trained from the weights for labels in words (EmberMatch).
- "ner": spaCy's `ner`, efficiency config, until early stopping.
- "encoder": all-MiniLM-L6-v2, fine-tuned with a linear layer, for 10 epochs and at least 300 batches of
  16 sentences.

All train on the same sentences and are tested on the same ones, on one CPU thread. CPU seconds include
reading the training corpus with the LLM. The dev corpus has a fifth as many sentences as the training
corpus; "encoder" does not use it. Results of other sizes and systems are kept.
"""

import json
import statistics
import tempfile
import time
from pathlib import Path
from typing import Callable, Dict, List

import spacy
import torch
import typer
from spacy.tokens import Doc
from spacy.training.initialize import init_nlp
from spacy.training.loop import train as spacy_train
from thinc.api import Config

from benchmarks.ember.schedule import make, save_sample
from benchmarks.lib.common import RESULTS, read_examples, save, strict_scores, train_spacy_ner
from benchmarks.peers.encoder import BATCH, Encoder

SYSTEMS = ("ember_probe", "from words", "ner", "encoder")


def main(
    name: str,
    train: Path,
    dev: Path,
    test: Path,
    sizes: List[int],
    system: List[str] = typer.Option(list(SYSTEMS), help="Systems to run"),
    seeds: int = 1,
    test_sentences: int = 500,
    epochs: int = 10,
    min_steps: int = 300,
    rate: float = 3e-4,
    encoder: str = "all-minilm-l6-v2",
) -> None:
    result = f"peers_{name}"
    path = RESULTS / f"{result}.json"
    rows = json.loads(path.read_text())["rows"] if path.exists() else []
    for size in sizes:
        with tempfile.TemporaryDirectory() as folder:
            parts = [Path(folder) / f"{part}.spacy" for part in ("train", "dev", "test")]
            numbers = (size, max(size // 5, 20), test_sentences)
            for source, part, number in zip((train, dev, test), parts, numbers):
                save_sample(source, part, number)
            for kind in system:
                runs = []
                for seed in range(seeds):
                    if kind == "encoder":
                        n = max(epochs, -(-min_steps // -(-size // BATCH)))
                        runs.append(run_encoder(*parts, seed, encoder, n, rate))
                    elif kind == "ner":
                        nlp, seconds = train_spacy_ner(*parts[:2], seed, "en")
                        runs.append(scored(parts[2], seconds, lambda d, nlp=nlp: list(nlp.pipe(d))))
                    else:
                        runs.append(run_ember(*parts, seed, from_words=kind == "from words"))
                    print(size, kind, runs[-1], flush=True)
                rows = [r for r in rows if (r["sentences"], r["system"]) != (size, kind)]
                rows.append(
                    {
                        "sentences": size,
                        "system": kind,
                        "f": statistics.mean(run["f"] for run in runs),
                        "train_cpu_seconds": statistics.mean(r["train_cpu_seconds"] for r in runs),
                        "words_per_cpu_second": statistics.mean(
                            r["words_per_cpu_second"] for r in runs
                        ),
                        "runs": runs,
                    }
                )
                rows.sort(key=lambda r: (r["sentences"], SYSTEMS.index(r["system"])))
                save(result, {"set": name, "test_sentences": test_sentences, "rows": rows})


def scored(test: Path, seconds: float, pipe: Callable[[List[Doc]], List[Doc]]) -> Dict[str, float]:
    """RETURNS (Dict[str, float]): F1, CPU seconds of the training, and words per CPU second of the test."""
    examples = read_examples(spacy.blank("en"), test)
    started = time.process_time()
    docs = pipe([eg.predicted for eg in examples])
    needed = time.process_time() - started
    scores = strict_scores([eg.reference for eg in examples], docs)
    n_words = sum(len(doc) for doc in docs)
    return {
        "f": scores["f"],
        "train_cpu_seconds": seconds,
        "words_per_cpu_second": n_words / needed,
    }


def run_ember(train: Path, dev: Path, test: Path, seed: int, from_words: bool) -> Dict[str, float]:
    with tempfile.TemporaryDirectory() as folder:
        config: Config = make(train, dev, seed, fixed=False)[0]
        component = config["components"]["ember_probe"]
        # Each run reads its corpus with the LLM.
        component["feature_cache"] = f"{folder}/features"
        if from_words:
            component["model"] = {"@architectures": "spacy_llmner.EmberMatch.v1"}
        started = time.process_time()
        spacy_train(init_nlp(config), Path(folder))
        seconds = time.process_time() - started
        nlp = spacy.load(Path(folder) / "model-best")
    return scored(test, seconds, lambda docs: list(nlp.pipe(docs, batch_size=256)))


def run_encoder(
    train: Path, dev: Path, test: Path, seed: int, encoder: str, epochs: int, rate: float
) -> Dict[str, float]:
    made = Encoder(encoder, seed)
    docs = [eg.reference for eg in read_examples(spacy.blank("en"), train)]
    return scored(test, made.train(docs, epochs, rate), made.pipe)


if __name__ == "__main__":
    torch.set_num_threads(1)
    typer.run(main)
