"""F1 of the few-shot model by the number of labelled sentences, on this project's English corpus.

    python -m benchmarks.ember.fewshot corpus/en_train.spacy corpus/en_dev.spacy corpus/en_test.spacy

The .spacy files are those of `python -m spacy project run all`. For each seed, the training sentences are
shuffled, and `fit` takes the first k sentences of each label and the first k without an entity. No setting
is tuned: all have their defaults, except for what the variant changes.
"""

import json
import random
import statistics
from pathlib import Path
from typing import Any, Dict, List

import spacy
import torch
import typer
from spacy.language import Language

from benchmarks.lib.common import RESULTS, read_examples, save, strict_scores
from spacy_llmner.ember_probe.probes.fewshot import choose

VARIANTS: Dict[str, Dict[str, Any]] = {
    "default": {},
    "no prefix": {"prefix": ""},
    "read twice": {"read_twice": True},
    "read twice, no prefix": {"read_twice": True, "prefix": ""},
    "attention next": {"attention": "next"},
}
KS = [1, 5, 20]


def main(
    train: Path,
    dev: Path,
    test: Path,
    llm: str = "smollm2-135m-instruct",
    seeds: int = 3,
    only: List[str] = typer.Option([], help="Variants to measure; the others keep their result"),
) -> None:
    path = RESULTS / "ember_fewshot.json"
    measured = only or list(VARIANTS)
    rows = json.loads(path.read_text())["rows"] if path.exists() else []
    rows = [row for row in rows if row["variant"] not in measured]
    for variant in measured:
        model = VARIANTS[variant]
        features: Dict[Path, Any] = {}
        for k in KS:
            runs = []
            for seed in range(seeds):
                nlp = spacy.blank("en")
                settings = {"@architectures": "spacy_llmner.EmberFewShot.v2", "k": k, **model}
                config = {"llm": {"name": llm}, "model": settings}
                ember: Any = nlp.add_pipe("ember_probe", config=config)
                pool = read_examples(nlp, train, sentences=False)
                random.Random(seed).shuffle(pool)
                ember.fit(pool)
                run: Dict[str, Any] = {"seed": seed, "sentences": len(choose(pool, k))}
                for part, path in (("dev", dev), ("test", test)):
                    run[part] = score(nlp, path, features)
                runs.append(run)
                print(variant, k, run, flush=True)
            rows.append({"variant": variant, "k": k, "runs": runs, **summary(runs)})
    rows.sort(key=lambda row: (list(VARIANTS).index(row["variant"]), row["k"]))
    save("ember_fewshot", {"llm": llm, "seeds": seeds, "rows": rows})


def score(nlp: Language, path: Path, features: Dict[Path, Any]) -> Dict[str, float]:
    """Score a corpus.

    features (Dict[Path, Any]): Cache of the LLM's features of each corpus, so that the LLM reads it only
        once for all runs of a variant.
    RETURNS (Dict[str, float]): Strict precision, recall and F1, in percent.
    """
    ember: Any = nlp.get_pipe("ember_probe")
    examples = read_examples(nlp, path, sentences=False)
    docs = [eg.predicted for eg in examples]
    if path not in features:
        features[path] = ember.word_reader.read(ember.shared_llm(), docs)
    predictor = ember.predictor()
    found = [predictor.decode(doc, predictor.rows(doc, f)) for doc, f in zip(docs, features[path])]
    ember.set_annotations(docs, found)
    return strict_scores([eg.reference for eg in examples], docs)


def summary(runs: List[Dict[str, Any]]) -> Dict[str, float]:
    out = {"sentences_mean": statistics.mean(run["sentences"] for run in runs)}
    for part in ("dev", "test"):
        f1 = [run[part]["f"] for run in runs]
        out.update({f"{part}_f1_mean": statistics.mean(f1), f"{part}_f1_spread": max(f1) - min(f1)})
    return out


if __name__ == "__main__":
    torch.set_num_threads(1)
    typer.run(main)
