"""F1 of `padellm_ner` and of the autoregressive baseline after the same training budget.

    python benchmarks/padellm_quality.py conll-sentences train.spacy dev.spacy test.spacy --minutes 40
    python benchmarks/padellm_quality.py ... --component autoreg_ner
    python benchmarks/padellm_quality.py ... --component ner

The .spacy files come from scripts/convert.py. Both components train the same adapter by the same
recipe for the same CPU time, and share post-processing. Settings of the decoding are chosen on dev; the
ablations are scored on test with the same weights. `--save DIR` keeps the trained pipelines, `--saved DIR`
scores them again instead of training; `--first-seed 1` goes on behind the lower seeds of an earlier result.
`ner` is spaCy's own, trained until its patience ends; it can't learn overlapping spans.

On a GPU, `--epochs` is the budget: how often each text is read. `--minutes`, of wall time there, ends it
before.
"""

import json
import random
import statistics
from pathlib import Path
from typing import Any, Callable, Dict, Iterator, List, Optional, Tuple

import spacy
import torch
import typer
from autoreg import AutoReg  # noqa: F401  registers autoreg_ner
from common import clock_of, earlier_runs, read_examples, save, train_spacy_ner
from spacy.language import Language
from spacy.tokens import Doc
from spacy.training import Example
from spacy.util import fix_random_seed
from thinc.api import Adam

WARMUP = 0.05
TRAINING = "training.json"
FITTED = ("texts_seen", "steps", "train_seconds")
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
    minutes: float = 40.0,
    epochs: int = typer.Option(0, help="Train so often on each text, if the time allows"),
    dtype: str = "auto",
    device: str = "auto",
    max_batch_tokens: int = 1024,
    seeds: int = 3,
    first_seed: int = 0,
    batch_size: int = 8,
    rate: float = 0.003,
    rank: int = 16,
    first_layer: int = -1,
    template: str = "compact",
    loss: str = "allowed",
    label_words: str = typer.Option("", help="PER=person,LOC=location"),
    train_spans: Optional[str] = None,
    dev_docs: int = 300,
    test_docs: int = typer.Option(0, help="A sample of the test set; 0 takes all"),
    ablation_docs: int = 1000,
    lang: str = "en",
    save_to: Optional[Path] = typer.Option(None, "--save", help="Folder for the pipelines"),
    saved: Optional[Path] = typer.Option(None, help="Score the pipelines of this folder again"),
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
            training = {k: v for k, v in run.items() if k in FITTED}
            (save_to / pipeline / TRAINING).write_text(json.dumps(training))
        test_examples = read_examples(nlp, test)
        test_examples = sample(test_examples, test_docs or len(test_examples))
        run["test"] = evaluate(nlp, test_examples, train_spans, each=True)
        if component == "padellm_ner" and seed == 0:
            run["ablations"] = {}
            part = sample(test_examples, ablation_docs)
            for what, setting in ABLATIONS.items():
                if loss == "allowed" and "probability" in setting:
                    continue  # nothing was learnt about what is not allowed
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


def fit(
    nlp: Language,
    examples: List[Example],
    minutes: float,
    batch_size: int,
    rate: float,
    seed: int,
    epochs: int = 0,
) -> Dict[str, Any]:
    """Train for some CPU minutes or epochs; the learning rate falls to 0 with them."""
    nlp.initialize(lambda: examples)
    pipe: Any = nlp.get_pipe(nlp.pipe_names[0])
    clock = clock_of(pipe.shared_llm().device)
    if epochs:
        pipe.make_training_batch = Kept(pipe.make_training_batch)
    started = clock()
    seen = steps = 0

    def share() -> float:
        spent = (clock() - started) / (60 * minutes)
        return min(max(spent, seen / (epochs * len(examples)) if epochs else 0.0), 1.0)

    def rates() -> Iterator[float]:
        while True:
            yield rate * min(share() / WARMUP + 0.01, 1.0) * (1.0 - share())

    optimizer = Adam(rates(), L2=0.0, grad_clip=1.0, use_averages=False)
    rng = random.Random(seed)
    losses: Dict[str, float] = {}
    while share() < 1.0:
        order = rng.sample(examples, len(examples))
        for k in range(0, len(order), batch_size):
            nlp.update(order[k : k + batch_size], sgd=optimizer, losses=losses)
            optimizer.step_schedules()
            seen += len(order[k : k + batch_size])
            steps += 1
            if steps % 20 == 0:
                print(f"  {share():.0%} {seen} texts, loss {losses}", flush=True)
                losses = {}
            if share() >= 1.0:
                break
    pipe.__dict__.pop("make_training_batch", None)
    return {"texts_seen": seen, "steps": steps, "train_seconds": clock() - started}


class Kept:
    """What is learnt from an example, made once. `nlp.update` copies examples, but not their references."""

    def __init__(self, packed: Callable[[List[Example]], Any]) -> None:
        self.make = packed
        self.made: Dict[int, Any] = {}

    def __call__(self, examples: List[Example]) -> List[Any]:
        for eg in examples:
            if id(eg.reference) not in self.made:
                self.made[id(eg.reference)] = self.make([eg])
        return [packed for eg in examples for packed in self.made[id(eg.reference)]]


def sample(examples: List[Example], n: int) -> List[Example]:
    return random.Random(0).sample(examples, min(n, len(examples)))


def evaluate(
    nlp: Language, examples: List[Example], spans_key: Optional[str], each: bool = False
) -> Dict[str, Any]:
    """Strict span F1 and the paper's set F1 (strings by label and text), in percent."""
    pipe: Any = nlp.get_pipe(nlp.pipe_names[-1])
    on_llm = hasattr(pipe, "shared_llm")
    clock = clock_of(pipe.shared_llm().device if on_llm else torch.device("cpu"))
    started = clock()
    fresh = [Example(eg.predicted.copy(), eg.reference) for eg in examples]
    docs = nlp.pipe([eg.predicted for eg in fresh], batch_size=64)
    spans, sets, violations = [], [], 0
    for doc, eg in zip(docs, fresh):
        gold = mentions(eg.reference, spans_key)
        found = mentions(doc, "llmner" if spans_key and on_llm else None)
        violations += sum(
            1
            for s in doc.spans.get("llmner", doc.ents)
            if doc.text[s.start_char : s.end_char] != s.text
        )
        spans.append((len(gold & found), len(found), len(gold)))
        gold_set, found_set = ({(label, text) for _, _, label, text in m} for m in (gold, found))
        sets.append((len(gold_set & found_set), len(found_set), len(gold_set)))
    p, r, f = prf(spans)
    out: Dict[str, Any] = {"p": p, "r": r, "f": f, "set_f": prf(sets)[2], "violations": violations}
    out["ms_each"] = 1000 * (clock() - started) / max(len(fresh), 1)
    if each:
        out["each"] = spans  # for paired intervals
    return out


def mentions(doc: Doc, spans_key: Optional[str]) -> set:
    spans = doc.ents if spans_key is None else doc.spans.get(spans_key, [])
    return {(s.start_char, s.end_char, s.label_, s.text) for s in spans}


def prf(counts: List[Tuple[int, int, int]]) -> Tuple[float, float, float]:
    right, found, gold = (sum(c[k] for c in counts) for k in range(3))
    p, r = right / max(found, 1), right / max(gold, 1)
    return 100 * p, 100 * r, 200 * p * r / max(p + r, 1e-9)


if __name__ == "__main__":
    torch.set_num_threads(1)
    typer.run(main)
