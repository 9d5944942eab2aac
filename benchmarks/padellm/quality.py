"""F1 of `padellm_ner` and of the autoregressive baseline after the same training budget.

    python -m benchmarks.padellm.quality conll-sentences train.spacy dev.spacy test.spacy --minutes 40
    python -m benchmarks.padellm.quality ... --component autoreg_ner
    python -m benchmarks.padellm.quality ... --component ner

The .spacy files come from scripts/convert.py. Both components train the same adapter with the same recipe
for the same CPU time, and share the postprocessing. Decoding settings are chosen on dev; the ablations are
scored on test with the same weights. `--save DIR` stores the trained pipelines, `--saved DIR` scores them
again instead of training. `--first-seed 1` adds seeds to an earlier result. `ner` is spaCy's own component,
trained until early stopping; it can't learn overlapping spans.

On a GPU, set the budget with `--epochs`. `--minutes` is then a limit on the wall-clock time.
"""

import json
import statistics
from pathlib import Path
from typing import Any, Dict, List, Optional

import spacy
import torch
import typer
from spacy.util import fix_random_seed

from benchmarks.lib.common import earlier_runs, read_examples, save, train_spacy_ner
from benchmarks.padellm import autoreg  # noqa: F401  registers autoreg_ner
from benchmarks.padellm.recipe import evaluate, fit, sample

# File in a saved pipeline with these values of its training.
TRAINING = "training.json"
TRAINING_KEYS = ("texts_seen", "steps", "train_seconds")
# Settings that dev chooses from.
CHOICES: List[Dict[str, Any]] = [
    {"count": "argmax"},
    *({"count": "calibrated", "count_threshold": t} for t in (0.1, 0.15, 0.2, 0.3)),
]
ABLATIONS: Dict[str, Dict[str, Any]] = {
    "argmax": {"count": "argmax"},
    "calibrated": {"count": "calibrated"},
    "deduplicate none": {"deduplicate": "none"},
    "deduplicate string": {"deduplicate": "string"},
    "deduplicate span": {"deduplicate": "span"},
    "confidence mean": {"confidence": "mean"},
    "probability raw": {"probability": "raw"},
}


def main(
    name: str,
    train: Path,
    dev: Path,
    test: Path,
    component: str = "padellm_ner",
    llm: str = "smollm2-135m-instruct",
    minutes: float = typer.Option(40.0, help="Limit on the training time"),
    epochs: int = typer.Option(0, help="Limit on the epochs; 0 for none"),
    dtype: str = "auto",
    device: str = "auto",
    max_batch_tokens: int = 1024,
    seeds: int = 3,
    first_seed: int = typer.Option(0, help="Add runs to an earlier result from this seed on"),
    batch_size: int = 8,
    rate: float = 0.003,
    rank: int = 16,
    first_layer: int = -1,
    template: str = "compact",
    loss: str = "allowed",
    label_words: str = typer.Option("", help="Words for labels: PER=person,LOC=location"),
    train_spans: Optional[str] = None,
    dev_docs: int = 300,
    test_docs: int = typer.Option(0, help="Size of a sample of the test set; 0 uses all"),
    ablation_docs: int = 1000,
    lang: str = "en",
    save_to: Optional[Path] = typer.Option(None, "--save", help="Folder to store the pipelines in"),
    saved: Optional[Path] = typer.Option(None, help="Folder of stored pipelines to score again"),
) -> None:
    words = dict(pair.split("=") for pair in label_words.split(",") if pair)
    config = {
        "llm": {"name": llm, "dtype": dtype, "device": device},
        "model": {
            "@architectures": "spacy_llmner.PaDeLLM.v1",
            "template": template,
            "label_words": words,
            "rank": rank,
            "first_layer": None if first_layer < 0 else first_layer,
            "loss": loss,
        },
        "train_spans": train_spans,
        "max_batch_tokens": max_batch_tokens,
    }
    result = f"padellm_quality_{name}_{component}"
    runs = earlier_runs(result, first_seed)
    for seed in range(first_seed, first_seed + seeds):
        fix_random_seed(seed)
        run: Dict[str, Any] = {"seed": seed}
        pipeline = f"{name}_{component}_{seed}"
        if component == "ner":
            nlp, run["train_seconds"] = train_spacy_ner(train, dev, seed, lang)
        elif saved is not None:
            nlp = spacy.load(saved / pipeline)
            run.update(json.loads((saved / pipeline / TRAINING).read_text()))
        else:
            nlp = spacy.blank(lang)
            nlp.add_pipe(component, config=config)
            train_examples = read_examples(nlp, train)
            run.update(fit(nlp, train_examples, minutes, batch_size, rate, seed, epochs))
        pipe: Any = nlp.get_pipe(component)
        dev_examples = sample(read_examples(nlp, dev), dev_docs)
        if component == "padellm_ner":
            dev_f1 = []
            for choice in CHOICES:
                pipe.cfg.update(choice)
                dev_f1.append(evaluate(nlp, dev_examples, train_spans)["f"])
                print("  dev", choice, dev_f1[-1], flush=True)
            run["chosen"] = CHOICES[max(range(len(CHOICES)), key=lambda k: dev_f1[k])]
            run["dev_f1"] = max(dev_f1)
            pipe.cfg.update(run["chosen"])
        if save_to is not None:
            save_to.mkdir(parents=True, exist_ok=True)
            nlp.to_disk(save_to / pipeline)
            training = {k: v for k, v in run.items() if k in TRAINING_KEYS}
            (save_to / pipeline / TRAINING).write_text(json.dumps(training))
        test_examples = read_examples(nlp, test)
        test_examples = sample(test_examples, test_docs or len(test_examples))
        run["test"] = evaluate(nlp, test_examples, train_spans, each=True)
        if component == "padellm_ner" and seed == 0:
            run["ablations"] = {}
            part = sample(test_examples, ablation_docs)
            for what, setting in ABLATIONS.items():
                if loss == "allowed" and "probability" in setting:
                    continue  # this loss only trains the scores of allowed tokens
                before = {key: pipe.cfg[key] for key in setting}
                pipe.cfg.update(setting)
                run["ablations"][what] = evaluate(nlp, part, train_spans)
                pipe.cfg.update(before)
        runs.append(run)
        print(seed, {k: v for k, v in run["test"].items() if k != "each"}, flush=True)
        f1 = [r["test"]["f"] for r in runs]
        model = None if component == "ner" else pipe.shared_llm()
        save(
            result,
            {
                "set": name,
                "component": component,
                "llm": model and llm,
                "llm_device": model and str(model.device),
                "dtype": model and str(model.model.dtype),
                "minutes": model and minutes,
                "loss": model and loss,
                "epochs": epochs or None,
                "test_docs": len(test_examples),
                "ablation_docs": ablation_docs,
                "test_f1_mean": statistics.mean(f1),
                "test_f1_spread": max(f1) - min(f1),
                "runs": runs,
            },
        )


if __name__ == "__main__":
    torch.set_num_threads(1)
    typer.run(main)
