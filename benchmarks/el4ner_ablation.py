"""`el4ner_ensemble` against each of its LLMs alone, and against itself with a stage left out or replaced.

    python benchmarks/el4ner_ablation.py wnut17 train.spacy test.spacy --docs 30

All variants see the same texts with the same labelled texts to choose from; what the LLMs find in these
without demonstrations is found once; a single LLM sees only what it found itself. Verification is left
out by leaving its answers out, which is the same. F1 is strict. LLMs this small find little: what counts
is which stage earns its place.

"Fitted": `calibrate` on held-out texts of the training part, and the threshold of the verifier that is
best on these (0 keeps all); the same for an LLM alone.
"""

import time
from contextlib import closing, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, Dict, Iterator, List, NamedTuple, Optional

import numpy as np
import spacy
import srsly
import typer
from common import RESULTS, read_examples, save
from remembering import Remembering
from spacy.training import Example

from spacy_llmner.el4ner_ensemble.component import EL4NER
from spacy_llmner.el4ner_ensemble.demonstrations.pool import pool_texts
from spacy_llmner.el4ner_ensemble.stages import union_of
from spacy_llmner.pipeline.spans import Mention, filter_overlapping

THRESHOLDS = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
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
    held_out: int = typer.Option(30, help="Texts of the training part to fit on"),
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
    shown = {example.text for example in full.pool.index.examples}
    others = [eg for eg in labelled if 4 < len(eg.predicted) < 60 and eg.text not in shown]
    order = np.random.default_rng(seed).permutation(len(others))
    fitted_on = [others[i] for i in sorted(order[:held_out])]
    variants: Dict[str, Dict[str, Any]] = {
        "ensemble": {},
        "gemma": {"llms": ["gemma"]},
        "smollm2": {"llms": ["smollm2"]},
        "no retrieval": {"retrieval": "none"},
        "random retrieval": {"retrieval": "random"},
        "sentence retrieval": {"retrieval": "sentence"},
    }
    limits = {
        "set": name,
        "texts": len(examples),
        "entities": sum(len(eg.reference.ents) for eg in examples),
        "labels": list(full.labels),
        "pool": len(full.pool),
        "seconds_pool": seconds_pool,
        "k": k,
        "verifier": verifier,
        "threshold": threshold,
        "held_out": len(fitted_on),
        "seed": seed,
    }
    rows: Dict[str, Any] = earlier_variants(f"el4ner_ablation_{name}", limits) if only else {}
    for variant, change in variants.items():
        if only and variant not in only.split(","):
            continue
        pipe = changed(full, settings, labelled, **change)
        start = time.perf_counter()
        found = run(pipe, examples)
        seconds = (time.perf_counter() - start) / len(examples)
        counts = {"seconds": seconds, "calls": pipe.call_counts.calls / len(examples)}
        counts["tokens"] = pipe.call_counts.tokens / len(examples)
        counts["alike"] = alike(pipe, examples)
        made = {variant: {**score(examples, found, threshold), **counts}}
        made[f"{variant}, not verified"] = score(examples, found, 0.0)
        if variant == "ensemble":
            limits["stages"] = {
                "before": pre_extracted(pipe, examples),
                **stages(pipe, examples),
                "verifier": auc(examples, found),
            }
            with setting(pipe, vote="probability"):
                found = run(pipe, examples)
            made[f"{variant}, by probability"] = score(examples, found, threshold)
            made[f"{variant}, by probability, not verified"] = score(examples, found, 0.0)
        if variant in ("ensemble", "sentence retrieval", *LLMS):
            made[f"{variant}, fitted"] = fitted(pipe, fitted_on, examples)
        for name_of_row, row in made.items():
            print(
                f"{name_of_row:40}",
                {x: y and round(y, 1) for x, y in row.items() if x != "each"},
                flush=True,
            )
        rows.update(made)
        # After each variant, since they take long.
        save(f"el4ner_ablation_{name}", {**limits, "variants": rows})


def earlier_variants(result: str, limits: Dict[str, Any]) -> Dict[str, Any]:
    """RETURNS (Dict[str, Any]): What an earlier result has measured, if there is one.
    RAISES (ValueError): If it was measured with other texts or settings."""
    path = RESULTS / f"{result}.json"
    earlier = srsly.read_json(path) if path.exists() else {"variants": {}, **limits}
    others = [x for x in limits if x != "seconds_pool" and earlier[x] != limits[x]]
    limits.update({x: earlier[x] for x in ("stages",) if x in earlier})
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
    pipe: Any = nlp.add_pipe("el4ner_ensemble", config={"llms": config, **settings})
    pipe.voters = {key: Remembering(voter) for key, voter in pipe.voters.items()}
    return pipe


@contextmanager
def setting(pipe: EL4NER, **cfg: Any) -> Iterator[None]:
    before = {key: pipe.cfg[key] for key in cfg}
    pipe.cfg.update(cfg)
    yield
    pipe.cfg.update(before)


def fitted(pipe: EL4NER, held_out: List[Example], examples: List[Example]) -> Dict[str, Any]:
    """RETURNS (Dict[str, Any]): Scores, and the threshold."""
    with setting(pipe, factors={}, weights={}):
        pipe.calibrate(held_out)
        found = run(pipe, held_out)
        best = max(THRESHOLDS, key=lambda t: score(held_out, found, t)["f"])
        return {**score(examples, run(pipe, examples), best), "threshold": best}


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


def alike(pipe: EL4NER, examples: List[Example]) -> Optional[float]:
    """RETURNS (Optional[float]): Of how many demonstrations, in percent, an entity has a label of the text
    that they stand in front of. Texts without entities don't count."""
    docs_tasks = [pipe._read(eg.predicted) for eg in examples]
    pipe._demonstrate(pipe._ensemble(), docs_tasks)
    shared = [
        any(entity[2] in labels for entity in shown.entities)
        for eg, doc_tasks in zip(examples, docs_tasks)
        if (labels := {ent.label_ for ent in eg.reference.ents})
        for task in doc_tasks.tasks
        for shown in task.demonstrations
    ]
    return 100 * float(np.mean(shared)) if shared else None


def pre_extracted(pipe: EL4NER, examples: List[Example]) -> List[int]:
    """RETURNS (List[int]): Without demonstrations: entities whose span is found, and spans."""
    tasks = [task for eg in examples for task in pipe._read(eg.predicted).tasks]
    right = n = 0
    for eg, by_voter in zip(examples, pipe._ensemble().pre_extract(tasks)):
        found = union_of(by_voter)
        right += len({(ent.start_char, ent.end_char) for ent in eg.reference.ents} & set(found))
        n += len(found)
    return [right, n]


def stages(pipe: EL4NER, examples: List[Example]) -> Dict[str, Any]:
    """RETURNS (Dict[str, Any]): What each stage knows: "found", by voter and for "union", of how many
    entities the span is found, and how many spans are; "types", by voter, of how many of the union's it
    gives the right label the highest probability among labels."""
    ensemble, docs_tasks = pipe._ensemble(), [pipe._read(eg.predicted) for eg in examples]
    pipe._demonstrate(ensemble, docs_tasks)
    tasks = [task for doc_tasks in docs_tasks for task in doc_tasks.tasks]
    assert len(tasks) == len(examples), "texts of one window each"
    of_text = iter(examples)
    found = {name: np.zeros(2, dtype=int) for name in (*pipe.voters, "union")}
    types = dict.fromkeys(pipe.voters, 0)
    with closing(ensemble._polls(tasks)) as polls:
        for poll in polls:
            proposed = ensemble._propose(poll)
            unions = [union_of(by_voter) for by_voter in proposed]
            said = ensemble._classify(poll, unions)
            for by_voter, union, of_spans in zip(proposed, unions, said):
                ents = next(of_text).reference.ents
                gold = {(ent.start_char, ent.end_char): ent.label_ for ent in ents}
                for name, spans in {**by_voter, "union": union}.items():
                    found[name] += [len(gold.keys() & set(spans)), len(spans)]
                for span, answers in zip(union, of_spans):
                    for name, p in answers.items():
                        likeliest = max(pipe.labels, key=lambda label: p.get(label, 0.0))
                        types[name] += gold.get(span) == likeliest
    return {"found": {name: n.tolist() for name, n in found.items()}, "types": types}


def auc(examples: List[Example], found: List[List[Voted]]) -> float:
    """RETURNS (float): How often the verifier takes a right claim for likelier than a wrong one; 0.5 if it
    knows nothing."""
    right: List[float] = []
    wrong: List[float] = []
    for eg, of_text in zip(examples, found):
        gold = {(e.start_char, e.end_char, e.label_) for e in eg.reference.ents}
        for m, verified in of_text:
            if verified is not None:
                (right if (m.start, m.end, m.label) in gold else wrong).append(verified)
    pairs = [(a > b) + 0.5 * (a == b) for a in right for b in wrong]
    return float(np.mean(pairs)) if pairs else float("nan")


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


def score(examples: List[Example], found: List[List[Voted]], threshold: float) -> Dict[str, Any]:
    """RETURNS (Dict[str, Any]): Strict micro scores in percent, and "each": right, found and gold of each
    text. With a threshold of 0, unverified.

    What could not be verified is kept, as by the component."""
    each = []
    for eg, of_text in zip(examples, found):
        if not threshold:
            mentions = [m for m, _ in of_text]
        else:
            mentions = [
                m if v is None else replace(m, score=m.score * v)
                for m, v in of_text
                if v is None or v >= threshold
            ]
        gold = {(e.start_char, e.end_char, e.label_) for e in eg.reference.ents}
        mine = {(m.start, m.end, m.label) for m in filter_overlapping(mentions)}
        each.append((len(gold & mine), len(mine), len(gold)))
    right, n_found, n_gold = (sum(counts) for counts in zip(*each))
    p, r = right / max(n_found, 1), right / max(n_gold, 1)
    return {"p": 100 * p, "r": 100 * r, "f": 100 * 2 * p * r / max(p + r, 1e-9), "each": each}


if __name__ == "__main__":
    typer.run(main)
