"""When to show examples: the calibrated rule against the published one, always and never.

    python benchmarks/ra_it_calibrated.py DATA --minutes 8 --docs 25 --held-out 25

DATA and the tuning are those of ra_it_transfer. For each of the five CrossNER domains `calibrate` reads
held-out texts of its dev part, and texts of its test part are read by each rule: with the tuning texts as
examples, and with those and the domain's own train part. `misc` is left out.
"""

from pathlib import Path
from statistics import mean
from typing import Any, Dict, List

import typer
from common import save
from ra_it_transfer import DOMAINS, bare, f1, read_docs, sampled, span, tune
from spacy.language import Language
from spacy.tokens import Doc
from spacy.training import Example

POOLS = ("tuning texts", "and own domain")
# What the setting use_examples is for each rule; without the threshold "auto" is the published one.
RULES = {"never": "never", "always": "always", "published": "auto", "calibrated": "auto"}


def main(
    data: Path,
    minutes: float = 8.0,
    docs: int = 25,
    held_out: int = 25,
    seeds: int = 1,
    pool: int = 1000,
    llm: str = "smollm2-135m-instruct",
    device: str = "cpu",
) -> None:
    runs: List[Dict[str, Any]] = []
    facts: Dict[str, Any] = {
        "processor_minutes_of_tuning": minutes,
        "seeds": seeds,
        "held_out_texts_per_domain": held_out,
        "test_texts_per_domain": docs,
        "texts_to_tune_on": pool,
    }
    for seed in range(seeds):
        nlp, *_ = tune(data, 2, seed, minutes, pool, llm, device)
        pipe: Any = nlp.get_pipe("ra_it_ner")
        own = pipe.index
        for domain in DOMAINS:
            test = sampled(nlp, data, domain, "test", docs)
            dev = sampled(nlp, data, domain, "dev", held_out)
            train = list(read_docs(nlp, data / "crossner" / domain / "train.txt"))
            pipe.set_labels(sorted({ent.label_ for doc in train for ent in doc.ents} - {"misc"}))
            for name in POOLS:
                # What was encoded is not encoded again.
                pipe.set_index(type(own)(pipe.encoder).from_bytes(own.to_bytes()))
                if name != POOLS[0]:
                    pipe.add_examples(train)
                scores = by_rule(nlp, test, dev)
                runs.append({"seed": seed, "domain": domain, "examples": name, **scores})
                print(runs[-1], flush=True)
                save("ra_it_calibrated", {**facts, "mean": means(runs), "runs": runs})
        pipe.set_index(own)


def by_rule(nlp: Language, test: List[Doc], dev: List[Doc]) -> Dict[str, Any]:
    """RETURNS (Dict[str, Any]): Strict F1 by rule, for how many texts examples are shown, the threshold."""
    pipe: Any = nlp.get_pipe("ra_it_ner")
    out: Dict[str, Any] = {"f": {}, "shown": {}}
    labels = set(pipe.labels)
    try:
        for rule, setting in RULES.items():
            if rule == "calibrated":
                out["threshold"] = pipe.calibrate(
                    Example(bare(nlp, doc), of(doc, labels)) for doc in dev
                )
            pipe.cfg["use_examples"] = setting
            found = list(nlp.pipe(bare(nlp, doc) for doc in test))
            pairs = [
                ({span(e) for e in a.ents}, {span(e) for e in b.ents if e.label_ in labels})
                for a, b in zip(found, test)
            ]
            out["f"][rule] = f1(pairs)
            out["shown"][rule] = sum(any(c["examples"] for c in d._.llmner_examples) for d in found)
    finally:
        pipe.cfg.update(use_examples="auto", example_threshold=None)
    return out


def of(doc: Doc, labels: Any) -> Doc:
    """RETURNS (Doc): The same with entities of these labels only."""
    out = doc.copy()
    out.set_ents([ent for ent in out.ents if ent.label_ in labels])
    return out


def means(runs: List[Dict[str, Any]]) -> Dict[str, Dict[str, float]]:
    return {
        name: {
            rule: mean(run["f"][rule] for run in runs if run["examples"] == name) for rule in RULES
        }
        for name in dict.fromkeys(run["examples"] for run in runs)
    }


if __name__ == "__main__":
    typer.run(main)
