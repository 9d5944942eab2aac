"""`el4ner_ensemble` compared with each of its LLMs alone, and with variants that omit or replace a stage.

    python -m benchmarks.el4ner.ablation wnut17 train.spacy test.spacy --docs 30

All variants read the same texts and choose demonstrations from the same labelled texts. What the LLMs find
in these without demonstrations is computed once; a single LLM only uses what it found itself. "Not
verified" ignores the answers of the verifier, which is equivalent to no verification. F1 is strict. LLMs
this small find little: the purpose is to see which stages help.

"Fitted": `calibrate` on held-out texts of the training data, with the verification threshold that is best
on these (0 drops nothing). The same is done for single LLMs.
"""

import json
import time
from contextlib import closing, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, Dict, Iterator, List, NamedTuple, Optional

import numpy as np
import spacy
import typer
from spacy.training import Example

from benchmarks.el4ner.caching_voter import CachingVoter
from benchmarks.lib.common import RESULTS, read_examples, save
from spacy_llmner.el4ner_ensemble.component import EL4NER
from spacy_llmner.el4ner_ensemble.demonstrations.pool import pool_texts
from spacy_llmner.el4ner_ensemble.stages import union_of
from spacy_llmner.pipeline.spans import Mention, filter_overlapping

THRESHOLDS = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
LLMS = {"gemma": "gemma-3-270m", "smollm2": "smollm2-135m-instruct"}


class Voted(NamedTuple):
    """A mention, and the verifier's probability that it is correct.

    mention (Mention): The mention with the score of the vote.
    verified (Optional[float]): The probability; None if the verifier failed.
    """

    mention: Mention
    verified: Optional[float]


def main(
    name: str,
    train: Path,
    test: Path,
    docs: int = typer.Option(30, help="Number of test texts"),
    pool: int = typer.Option(60, help="Labelled texts to choose demonstrations from"),
    k: int = 3,
    verifier: str = "smollm2",
    threshold: float = 0.5,
    held_out: int = typer.Option(30, help="Texts of the training data to fit on"),
    seed: int = 0,
    only: str = typer.Option(
        "", help="Variants to add to an earlier result, separated by commas; empty runs all"
    ),
) -> None:
    blank = spacy.blank("en")
    examples = [eg for eg in read_examples(blank, test) if 4 < len(eg.predicted) < 60]
    order = np.random.default_rng(seed).permutation(len(examples))
    examples = [examples[i] for i in sorted(order[:docs])]
    labelled = read_examples(blank, train)
    settings = {"k": k, "pool_size": pool, "verifier": verifier, "verify_threshold": 0.0}
    full = make_ensemble(LLMS, **settings)
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
    conditions: Dict[str, Any] = {
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
    rows: Dict[str, Any] = earlier_variants(f"el4ner_ablation_{name}", conditions) if only else {}
    for variant, change in variants.items():
        if only and variant not in only.split(","):
            continue
        pipe = make_variant(full, settings, labelled, **change)
        start = time.perf_counter()
        found = run(pipe, examples)
        seconds = (time.perf_counter() - start) / len(examples)
        counts = {
            "seconds": seconds,
            "calls": pipe.call_counts.calls / len(examples),
            "tokens": pipe.call_counts.tokens / len(examples),
            "alike": label_overlap(pipe, examples),
        }
        new_rows = {variant: {**score(examples, found, threshold), **counts}}
        new_rows[f"{variant}, not verified"] = score(examples, found, 0.0)
        if variant == "ensemble":
            conditions["stages"] = {
                "before": pre_extracted(pipe, examples),
                **stages(pipe, examples),
                "verifier": auc(examples, found),
            }
            with temporary_settings(pipe, vote="probability"):
                found = run(pipe, examples)
            new_rows[f"{variant}, by probability"] = score(examples, found, threshold)
            new_rows[f"{variant}, by probability, not verified"] = score(examples, found, 0.0)
        if variant in ("ensemble", "sentence retrieval", *LLMS):
            new_rows[f"{variant}, fitted"] = fitted(pipe, fitted_on, examples)
        for name_of_row, row in new_rows.items():
            print(
                f"{name_of_row:40}",
                {x: y and round(y, 1) for x, y in row.items() if x != "each"},
                flush=True,
            )
        rows.update(new_rows)
        # After each variant, since each takes long.
        save(f"el4ner_ablation_{name}", {**conditions, "variants": rows})


def earlier_variants(result: str, conditions: Dict[str, Any]) -> Dict[str, Any]:
    """Read the variants of an earlier result, if there is one.

    result (str): Name of the result.
    conditions (Dict[str, Any]): Texts and settings. The "stages" of the earlier result are added.
    RETURNS (Dict[str, Any]): The scores of each variant.
    RAISES (ValueError): If the earlier result was measured with other texts or settings.
    """
    path = RESULTS / f"{result}.json"
    earlier = json.loads(path.read_text()) if path.exists() else {"variants": {}, **conditions}
    different = [x for x in conditions if x != "seconds_pool" and earlier[x] != conditions[x]]
    conditions.update({x: earlier[x] for x in ("stages",) if x in earlier})
    if different:
        raise ValueError(f"{path} was measured with other values of: {', '.join(different)}")
    return earlier["variants"]


def make_ensemble(llms: Dict[str, str], **settings: Any) -> EL4NER:
    config = {
        key: {
            "@misc": "spacy_llmner.Voter.v1",
            "llm": {"@misc": "spacy_llmner.LLM.v1", "name": name},
        }
        for key, name in llms.items()
    }
    nlp = spacy.blank("en")
    pipe: Any = nlp.add_pipe("el4ner_ensemble", config={"llms": config, **settings})
    pipe.voters = {key: CachingVoter(voter) for key, voter in pipe.voters.items()}
    return pipe


@contextmanager
def temporary_settings(pipe: EL4NER, **cfg: Any) -> Iterator[None]:
    before = {key: pipe.cfg[key] for key in cfg}
    pipe.cfg.update(cfg)
    yield
    pipe.cfg.update(before)


def fitted(pipe: EL4NER, held_out: List[Example], examples: List[Example]) -> Dict[str, Any]:
    """Calibrate on held-out texts, and choose the verification threshold on them.

    RETURNS (Dict[str, Any]): Scores on `examples`, and the threshold.
    """
    with temporary_settings(pipe, factors={}, weights={}):
        pipe.calibrate(held_out)
        found = run(pipe, held_out)
        best = max(THRESHOLDS, key=lambda t: score(held_out, found, t)["f"])
        return {**score(examples, run(pipe, examples), best), "threshold": best}


def make_variant(
    full: EL4NER, settings: Dict[str, Any], labelled: List[Example], **change: Any
) -> EL4NER:
    """Create an ensemble with other settings and the same labelled texts.

    full (EL4NER): The ensemble of all LLMs.
    change (Any): Settings that differ; "llms" are the names of its voters.
    RETURNS (EL4NER): The ensemble. Its pool contains only spans that its own voters found.
    """
    names = change.pop("llms", list(LLMS))
    if len(names) == 1:
        settings = {**settings, "verifier": names[0]}
    pipe = make_ensemble({name: LLMS[name] for name in names}, **{**settings, **change})
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


def label_overlap(pipe: EL4NER, examples: List[Example]) -> Optional[float]:
    """RETURNS (Optional[float]): Percentage of demonstrations with an entity whose label occurs in the text
    they are shown for. Texts without entities are ignored. None without demonstrations."""
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
    """RETURNS (List[int]): Number of entities whose span is found without demonstrations, and of spans
    found."""
    tasks = [task for eg in examples for task in pipe._read(eg.predicted).tasks]
    right = n = 0
    for eg, by_voter in zip(examples, pipe._ensemble().pre_extract(tasks)):
        found = union_of(by_voter)
        right += len({(ent.start_char, ent.end_char) for ent in eg.reference.ents} & set(found))
        n += len(found)
    return [right, n]


def stages(pipe: EL4NER, examples: List[Example]) -> Dict[str, Any]:
    """Score the stages one by one.

    RETURNS (Dict[str, Any]): "found": for each voter and for their "union", the number of entities whose
        span is found, and the number of spans found. "types": for each voter, the number of entities in the
        union for which the correct label has the highest probability of all labels.
    """
    ensemble, docs_tasks = pipe._ensemble(), [pipe._read(eg.predicted) for eg in examples]
    pipe._demonstrate(ensemble, docs_tasks)
    tasks = [task for doc_tasks in docs_tasks for task in doc_tasks.tasks]
    assert len(tasks) == len(examples), "each text must fit one window"
    of_text = iter(examples)
    found = {name: np.zeros(2, dtype=int) for name in (*pipe.voters, "union")}
    types = dict.fromkeys(pipe.voters, 0)
    with closing(ensemble._polls(tasks)) as polls:
        for poll in polls:
            proposed = ensemble._propose(poll)
            unions = [union_of(by_voter) for by_voter in proposed]
            probabilities = ensemble._classify(poll, unions)
            for by_voter, union, of_spans in zip(proposed, unions, probabilities):
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
    """RETURNS (float): Share of pairs of a correct and a wrong claim in which the verifier considers the
    correct one more likely (area under the ROC curve). 0.5 is chance."""
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
    """Compute strict micro scores.

    threshold (float): Mentions that the verifier considers less likely are dropped. 0 ignores the verifier.
        Mentions that could not be verified are not dropped, as in the component.
    RETURNS (Dict[str, Any]): Scores in percent, and "each": counts of correct, predicted and gold mentions
        of each text.
    """
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
