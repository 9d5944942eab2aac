"""`el4ner_ensemble` against each of its LLMs alone, and against itself with a stage left out or replaced.

    python benchmarks/el4ner_ablation.py wnut17 train.spacy test.spacy --docs 30

All variants see the same texts with the same labelled texts to choose from; what the LLMs find in these
without demonstrations is found once; a single LLM sees only what it found itself. Verification is left
out by leaving its answers out, which is the same. F1 is strict. LLMs this small find little: what counts
is which stage earns its place.
"""

import time
from dataclasses import replace
from pathlib import Path
from typing import Any, Dict, List, NamedTuple, Optional

import numpy as np
import spacy
import srsly
import typer
from common import RESULTS, read_examples, save
from spacy.training import Example

from spacy_llmner.align import Mention, flat
from spacy_llmner.el4ner_ensemble.component import EL4NER
from spacy_llmner.el4ner_ensemble.pool import pool_texts

LLMS = {"gemma": "gemma-3-270m", "smollm2": "smollm2-135m-instruct"}


class Voted(NamedTuple):
    """A mention as it was voted for, and what the verifier said; None if it could not say anything."""

    mention: Mention
    verified: Optional[float]


def main(
    name: str,
    train: Path,
    test: Path,
    docs: int = typer.Option(30, help="How many texts are read"),
    pool: int = typer.Option(60, help="Labelled texts to choose demonstrations from"),
    k: int = 3,
    verifier: str = "smollm2",
    threshold: float = 0.5,
    seed: int = 0,
    only: str = typer.Option(
        "", help="Variants to add to an earlier result, with commas; all if empty"
    ),
) -> None:
    blank = spacy.blank("en")
    examples = [eg for eg in read_examples(blank, test) if 4 < len(eg.predicted) < 60]
    order = np.random.default_rng(seed).permutation(len(examples))
    examples = [examples[i] for i in sorted(order[:docs])]
    labelled = read_examples(blank, train)
    settings = {"k": k, "pool_size": pool, "verifier": verifier, "verify_threshold": 0.0}
    full = make(LLMS, **settings)
    start = time.perf_counter()
    full.initialize(lambda: labelled)
    seconds_pool = time.perf_counter() - start
    variants: Dict[str, Dict[str, Any]] = {
        "ensemble": {},
        "gemma": {"llms": ["gemma"]},
        "smollm2": {"llms": ["smollm2"]},
        "no retrieval": {"retrieval": "none"},
        "random retrieval": {"retrieval": "random"},
        "sentence retrieval": {"retrieval": "sentence"},
    }
    facts = {
        "set": name,
        "texts": len(examples),
        "entities": sum(len(eg.reference.ents) for eg in examples),
        "labels": list(full.labels),
        "pool": len(full.pool),
        "seconds_pool": seconds_pool,
        "k": k,
        "verifier": verifier,
        "threshold": threshold,
        "seed": seed,
    }
    rows: Dict[str, Any] = earlier_variants(f"el4ner_ablation_{name}", facts) if only else {}
    for variant, change in variants.items():
        if only and variant not in only.split(","):
            continue
        pipe = changed(full, settings, labelled, **change)
        start = time.perf_counter()
        found = run(pipe, examples)
        seconds = (time.perf_counter() - start) / len(examples)
        counts = {"seconds": seconds, "calls": pipe.work.calls / len(examples)}
        counts["tokens"] = pipe.work.tokens / len(examples)
        rows[variant] = {**score(examples, found, threshold), **counts}
        rows[f"{variant}, not verified"] = score(examples, found, None)
        for shown in (variant, f"{variant}, not verified"):
            print(f"{shown:32}", {x: round(y, 1) for x, y in rows[shown].items()}, flush=True)
        # After each variant, since they take long.
        save(f"el4ner_ablation_{name}", {**facts, "variants": rows})


def earlier_variants(result: str, facts: Dict[str, Any]) -> Dict[str, Any]:
    """RETURNS (Dict[str, Any]): What an earlier result has measured, if there is one.
    RAISES (ValueError): If it was measured with other texts or settings."""
    path = RESULTS / f"{result}.json"
    earlier = srsly.read_json(path) if path.exists() else {"variants": {}, **facts}
    others = [x for x in facts if x != "seconds_pool" and earlier[x] != facts[x]]
    if others:
        raise ValueError(f"{path} was measured with other {', '.join(others)}")
    return earlier["variants"]


def make(llms: Dict[str, str], **settings: Any) -> EL4NER:
    config = {
        key: {
            "@misc": "spacy_llmner.Voter.v1",
            "llm": {"@misc": "spacy_llmner.LLM.v1", "name": name},
        }
        for key, name in llms.items()
    }
    nlp = spacy.blank("en")
    return nlp.add_pipe("el4ner_ensemble", config={"llms": config, **settings})  # type: ignore


def changed(
    full: EL4NER, settings: Dict[str, Any], labelled: List[Example], **change: Any
) -> EL4NER:
    """RETURNS (EL4NER): Another ensemble with the same labelled texts, and of what was found in them with
    that which its own voters found."""
    names = change.pop("llms", list(LLMS))
    if len(names) == 1:
        settings = {**settings, "verifier": names[0]}
    pipe = make({name: LLMS[name] for name in names}, **{**settings, **change})
    pipe.set_labels(full.labels)
    if names == list(LLMS):
        pipe.pool.from_bytes(full.pool.to_bytes())
        return pipe
    texts = {text.example: text for text in pool_texts(eg.reference for eg in labelled)}
    found = [
        {name: [(a, b) for a, b, by in spans.proposed if name in by] for name in names}
        for spans in full.pool.spans
    ]
    pipe.pool.fill([texts[example] for example in full.pool.index.examples], found)
    return pipe


def run(pipe: EL4NER, examples: List[Example]) -> List[List[Voted]]:
    out: List[List[Voted]] = []
    pipe.cfg["provenance"] = True
    for found in pipe.predict([eg.predicted for eg in examples]):
        doc = examples[len(out)].predicted
        mentions = []
        for span in found.spans:
            start, end = doc[span.start].idx, doc[span.end - 1].idx + len(doc[span.end - 1])
            trace = found.traces[start, end]  # type: ignore[attr-defined]
            mention = Mention(start, end, span.label, trace["voted"])
            mentions.append(Voted(mention, trace["verified"]))
        out.append(mentions)
    return out


def score(
    examples: List[Example], found: List[List[Voted]], threshold: Optional[float]
) -> Dict[str, float]:
    """RETURNS (Dict[str, float]): Strict micro scores in percent. Without a threshold, unverified.

    What could not be verified is kept, as by the component."""
    right = n_found = n_gold = 0
    for eg, of_text in zip(examples, found):
        if threshold is None:
            mentions = [m for m, _ in of_text]
        else:
            mentions = [
                m if v is None else replace(m, score=m.score * v)
                for m, v in of_text
                if v is None or v >= threshold
            ]
        gold = {(e.start_char, e.end_char, e.label_) for e in eg.reference.ents}
        mine = {(m.start, m.end, m.label) for m in flat(mentions)}
        right += len(gold & mine)
        n_found += len(mine)
        n_gold += len(gold)
    p, r = right / max(n_found, 1), right / max(n_gold, 1)
    return {"p": 100 * p, "r": 100 * r, "f": 100 * 2 * p * r / max(p + r, 1e-9)}


if __name__ == "__main__":
    typer.run(main)
