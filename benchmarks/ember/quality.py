"""F1 of the presets of `ember_probe`, of spaCy's own `ner` and of simple baselines, over several seeds.

    python -m benchmarks.ember.quality NAME train.spacy dev.spacy test.spacy --preset default

The .spacy files come from scripts/convert.py (`--docs-of 10` for documents). The LLM reads each text once:
its features are cached, so only the first run waits for it. All choices are made on dev; test is scored
once per seed.

`--random-llm` probes an LLM of the same shape with random weights: its score is what the probe learns from
the words alone. `--preset majority` finds the strings that are mentions in the training data, the longest
first, with their most frequent label there.
"""

import random
import statistics
import tempfile
import time
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any, Dict, List, Tuple

import spacy
import torch
import typer
from spacy.language import Language
from spacy.tokens import Span
from spacy.training import Example
from spacy.util import fix_random_seed
from thinc.api import Adam
from thinc.schedules import warmup_linear
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from benchmarks.lib.common import earlier_runs, read_examples, save, strict_scores, train_spacy_ner
from spacy_llmner.llm.location import resolve_path
from spacy_llmner.pipeline.scorers import calibration_error, scored_entities

PRESETS: Dict[str, Dict[str, Any]] = {
    "default": {"@architectures": "spacy_llmner.EmberProbe.v1"},
    "finished": {
        "@architectures": "spacy_llmner.EmberProbe.v1",
        "look_right": True,
        "read_twice": True,
    },
    "finished-once": {"@architectures": "spacy_llmner.EmberProbe.v1", "look_right": True},
    "paper": {"@architectures": "spacy_llmner.EmberPaper.v1"},
    "paper-next": {"@architectures": "spacy_llmner.EmberPaper.v1", "attention": "next"},
    "paper-current": {"@architectures": "spacy_llmner.EmberPaper.v1", "attention": "current"},
}
LLM = "smollm2-135m-instruct"
THRESHOLDS = [0.02, 0.05, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.6]


def main(
    name: str,
    train: Path,
    dev: Path,
    test: Path,
    preset: str = "default",
    llm: str = LLM,
    seeds: int = 3,
    first_seed: int = typer.Option(0, help="Add runs to an earlier result from this seed on"),
    epochs: int = 6,
    batch_words: int = 3000,
    rate: float = 0.003,
    dropout: float = 0.4,
    tune_threshold: bool = typer.Option(False, help="Choose the threshold on dev"),
    random_llm: bool = typer.Option(False, "--random-llm", help="Give the LLM random weights"),
    lang: str = typer.Option("en", help="Language of the corpus"),
) -> None:
    notes = ["LLM of random weights"] * random_llm + [Path(llm).name] * (llm != LLM)
    result = "_".join(["ember_quality", name, preset, *notes]).replace(" ", "-")
    runs = earlier_runs(result, first_seed)
    for seed in range(first_seed, first_seed + seeds):
        if preset == "spacy-ner":
            runs.append(run_spacy(train, dev, test, seed, lang))
        elif preset == "majority":
            runs.append(run_majority(train, dev, test, seed))
        else:
            settings = (epochs, batch_words, rate, dropout)
            with tempfile.TemporaryDirectory() as folder:
                used = randomized(llm, Path(folder), seed) if random_llm else llm
                blank = spacy.blank(lang)
                run = run_ember(
                    blank, train, dev, test, preset, used, seed, settings, tune_threshold
                )
                runs.append(run)
        print(seed, runs[-1], flush=True)
        f1 = [r["test"]["f"] for r in runs]
        save(
            result,
            {
                "set": name,
                "preset": preset,
                "llm": None if preset in ("spacy-ner", "majority") else llm,
                **({"note": ", ".join(notes)} if notes else {}),
                "test_f1_mean": statistics.mean(f1),
                "test_f1_spread": max(f1) - min(f1),
                "runs": runs,
            },
        )


def run_ember(
    nlp: Language,
    train: Path,
    dev: Path,
    test: Path,
    preset: str,
    llm: str,
    seed: int,
    settings: Any,
    tune: bool,
) -> Dict[str, Any]:
    epochs, batch_words, rate, dropout = settings
    fix_random_seed(seed)
    rng = random.Random(seed)
    config = {"llm": {"name": llm}, "model": PRESETS[preset]}
    ember: Any = nlp.add_pipe("ember_probe", config=config)
    examples = read_examples(nlp, train)
    started = time.process_time()
    nlp.initialize(lambda: examples)
    n_batches = len(batches(examples, batch_words, rng))
    total = n_batches * epochs
    optimizer = Adam(
        warmup_linear(rate, total // 10, total + 1),
        beta1=0.9,
        beta2=0.99,
        L2=0.02,
        grad_clip=1.0,
        use_averages=True,
    )
    for epoch in range(epochs):
        losses: Dict[str, float] = {}
        for batch in batches(examples, batch_words, rng):
            nlp.update(batch, sgd=optimizer, drop=dropout, losses=losses)
            optimizer.step_schedules()
        print(f"  epoch {epoch} loss {losses['ember_probe'] / n_batches:.4f}", flush=True)
    run: Dict[str, Any] = {"seed": seed, "train_cpu_seconds": time.process_time() - started}
    with nlp.use_params(optimizer.averages):
        if tune:
            scores = {}
            for threshold in THRESHOLDS:
                ember.cfg["threshold"] = threshold
                scores[threshold] = score(nlp, dev)["f"]
            ember.cfg["threshold"] = run["threshold"] = max(scores, key=lambda t: scores[t])
        dev_examples = predict(nlp, dev)
        run["dev"] = strict_scores(*zip(*((eg.reference, eg.predicted) for eg in dev_examples)))
        run["dev_ece_before"] = calibration_error(scored_entities(dev_examples, "llmner"))
        ember.score(dev_examples)  # calibrates on dev, as the training loop does
        ember._start_training()  # so that the features of test are cached for the next seed
        test_examples = predict(nlp, test)
        run["test"] = strict_scores(*zip(*((eg.reference, eg.predicted) for eg in test_examples)))
        run["test_ece"] = calibration_error(scored_entities(test_examples, "llmner"))
        if any(sum(1 for t in eg.reference if t.is_sent_start) > 1 for eg in test_examples):
            run["test_without_boundaries"] = score(nlp, test, sentences=False)
    run["parameters"] = sum(p.numel() for p in ember.module.parameters())
    return run


def batches(examples: List[Example], n_words: int, rng: random.Random) -> List[List[Example]]:
    """RETURNS (List[List[Example]]): Shuffled batches of documents of similar length, with about `n_words`
    words each after padding."""
    order = sorted(rng.sample(examples, len(examples)), key=lambda eg: len(eg.reference) // 4)
    out: List[List[Example]] = [[]]
    for eg in order:
        if out[-1] and len(eg.reference) * (len(out[-1]) + 1) > n_words:
            out.append([])
        out[-1].append(eg)
    rng.shuffle(out)
    return out


def predict(nlp: Language, path: Path, sentences: bool = True) -> List[Example]:
    examples = read_examples(nlp, path, sentences)
    docs = nlp.pipe([eg.predicted for eg in examples], batch_size=256)
    return [Example(doc, eg.reference) for doc, eg in zip(docs, examples)]


def score(nlp: Language, path: Path, sentences: bool = True) -> Dict[str, float]:
    examples = predict(nlp, path, sentences)
    return strict_scores([eg.reference for eg in examples], [eg.predicted for eg in examples])


def randomized(llm: str, folder: Path, seed: int) -> str:
    """RETURNS (str): Folder of an LLM with the same shape and tokenizer, and random weights."""
    path = resolve_path(llm)
    AutoTokenizer.from_pretrained(path).save_pretrained(folder)
    torch.manual_seed(seed)
    AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(path)).save_pretrained(folder)
    return str(folder)


def run_majority(train: Path, dev: Path, test: Path, seed: int) -> Dict[str, Any]:
    nlp = spacy.blank("en")
    counts: Dict[Tuple[str, ...], Counter] = defaultdict(Counter)
    for eg in read_examples(nlp, train):
        for ent in eg.reference.ents:
            counts[tuple(t.text for t in ent)][ent.label_] += 1
    labels = {words: count.most_common(1)[0][0] for words, count in counts.items()}
    longest = max(map(len, labels))

    def score_of(path: Path) -> Dict[str, float]:
        examples = read_examples(nlp, path)
        for eg in examples:
            words, ents, start = [t.text for t in eg.predicted], [], 0
            while start < len(words):
                ends = range(min(start + longest, len(words)), start, -1)
                end = next((e for e in ends if tuple(words[start:e]) in labels), None)
                if end is not None:
                    label = labels[tuple(words[start:end])]
                    ents.append(Span(eg.predicted, start, end, label=label))
                start = end or start + 1
            eg.predicted.set_ents(ents)
        return strict_scores(*zip(*((eg.reference, eg.predicted) for eg in examples)))

    return {"seed": seed, "train_cpu_seconds": 0.0, "dev": score_of(dev), "test": score_of(test)}


def run_spacy(train: Path, dev: Path, test: Path, seed: int, lang: str) -> Dict[str, Any]:
    best, seconds = train_spacy_ner(train, dev, seed, lang)
    return {
        "seed": seed,
        "train_cpu_seconds": seconds,
        "dev": score(best, dev),
        "test": score(best, test),
    }


if __name__ == "__main__":
    torch.set_num_threads(1)
    typer.run(main)
