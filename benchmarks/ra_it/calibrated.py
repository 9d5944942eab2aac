"""When to show examples: the calibrated rule compared with the published one, with always and with never.

    python -m benchmarks.ra_it.calibrated DATA --minutes 8 --docs 25 --held-out 25

DATA and the tuning are those of benchmarks.ra_it.transfer. For each of the five CrossNER domains,
`calibrate` uses held-out dev texts, and each rule is scored on test texts: with the tuning texts as the
pool of examples, and with these and the domain's own training data. The label `misc` is left out.
"""

from pathlib import Path
from statistics import mean
from typing import Any, Dict, List

import typer
from spacy.language import Language
from spacy.tokens import Doc
from spacy.training import Example

from benchmarks.lib.common import save
from benchmarks.ra_it.corpora import DOMAINS, read_docs, sample, without_entities
from benchmarks.ra_it.transfer import f1, span, tune

POOLS = ("tuning texts", "and own domain")
# The setting `use_examples` of each rule. Without a threshold, "auto" is the published rule.
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
            test = sample(nlp, data, domain, "test", docs)
            dev = sample(nlp, data, domain, "dev", held_out)
            train = list(read_docs(nlp, data / "crossner" / domain / "train.txt"))
            pipe.set_labels(sorted({ent.label_ for doc in train for ent in doc.ents} - {"misc"}))
            for name in POOLS:
                # A copy, so that the tuning texts are not encoded again.
                pipe.set_index(type(own)(pipe.encoder).from_bytes(own.to_bytes()))
                if name != POOLS[0]:
                    pipe.add_examples(train)
                scores = by_rule(nlp, test, dev)
                runs.append({"seed": seed, "domain": domain, "examples": name, **scores})
                print(runs[-1], flush=True)
                save("ra_it_calibrated", {**facts, "mean": means(runs), "runs": runs})
        pipe.set_index(own)


def by_rule(nlp: Language, test: List[Doc], dev: List[Doc]) -> Dict[str, Any]:
    """Score each rule.

    test (List[Doc]): Texts to score.
    dev (List[Doc]): Texts to calibrate on.
    RETURNS (Dict[str, Any]): By rule, the strict F1 ("f") and the number of texts with examples ("shown");
        and the calibrated "threshold".
    """
    pipe: Any = nlp.get_pipe("ra_it_ner")
    out: Dict[str, Any] = {"f": {}, "shown": {}}
    labels = set(pipe.labels)
    try:
        for rule, setting in RULES.items():
            if rule == "calibrated":
                out["threshold"] = pipe.calibrate(
                    Example(without_entities(nlp, doc), with_labels(doc, labels)) for doc in dev
                )
            pipe.cfg["use_examples"] = setting
            found = list(nlp.pipe(without_entities(nlp, doc) for doc in test))
            pairs = [
                ({span(e) for e in a.ents}, {span(e) for e in b.ents if e.label_ in labels})
                for a, b in zip(found, test)
            ]
            out["f"][rule] = f1(pairs)
            out["shown"][rule] = sum(any(c["examples"] for c in d._.llmner_examples) for d in found)
    finally:
        pipe.cfg.update(use_examples="auto", example_threshold=None)
    return out


def with_labels(doc: Doc, labels: Any) -> Doc:
    """RETURNS (Doc): A copy that only has the entities with these labels."""
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
