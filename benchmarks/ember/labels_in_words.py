"""F1 of labels in words without training, on corpora with labels that the matcher may never have seen.

    python scripts/matcher_data.py DATA CORPORA
    python -m benchmarks.ember.labels_in_words CORPORA/test corpus/en_test.spacy smollm2-135m-instruct \\
        --weights seed0 --weights seed1
    python -m benchmarks.ember.labels_in_words CORPORA/test corpus/en_test.spacy smollm2-135m-instruct \\
        --ask-llm

The labels are asked for by the words in configs/matcher_labels.json. CrossNER's `misc` is left out, since
it means nothing in words. Nothing is tuned on these corpora. With --train, "annotated" are the labels whose
words name a label of the corpora that the matcher was trained on. It knows the others from WordNet's types,
or not at all.
"""

import statistics
import time
from collections import defaultdict
from pathlib import Path
from typing import Any, Dict, List, Optional, Set

import spacy
import typer
from spacy.tokens import DocBin

from benchmarks.lib.common import ROOT, read_examples, read_once, save
from spacy_llmner.ember_probe.matcher.corpora import read_labels

NAMES = ROOT / "configs" / "matcher_labels.json"
LEFT_OUT = {"misc"}
DOMAINS = ("ai", "literature", "music", "politics", "science")


class Counts:
    """Correct, found and annotated mentions."""

    def __init__(self) -> None:
        self.correct = self.found = self.annotated = 0

    def add(self, found: Set[Any], gold: Set[Any]) -> None:
        self.correct += len(found & gold)
        self.found += len(found)
        self.annotated += len(gold)

    @property
    def f(self) -> float:
        return 200 * self.correct / max(self.found + self.annotated, 1)


def main(
    tests: Path,
    own: Path,
    llm: str,
    weights: List[str] = typer.Option(
        [], help="Matchers, one for each seed [default: the package's]"
    ),
    train: Optional[Path] = typer.Option(None, help="Training corpora, for the kinds of labels"),
    width: int = 256,
    limit: int = typer.Option(0, help="Texts per corpus; 0 for all"),
    only: str = typer.Option("", help="Corpora whose names begin like this"),
    ask_llm: bool = typer.Option(False, "--ask-llm", help="Let the LLM choose the labels"),
) -> None:
    known = annotated_words(train) if train else set()
    corpora = {path.stem: path for path in sorted(tests.glob("*.spacy"))} | {"own": own}
    corpora = {name: path for name, path in corpora.items() if name.startswith(only)}
    rows: Dict[str, List[Dict[str, Any]]] = defaultdict(list)
    for name, path in corpora.items():
        features: Dict[str, Any] = {}
        for folder in weights or [""]:
            rows[name].append(measure(llm, folder, width, path, limit, features, known, ask_llm))
            print(
                name, folder, {k: v for k, v in rows[name][-1].items() if k != "labels"}, flush=True
            )
    summary = {name: mean_of(runs) for name, runs in rows.items()}
    domains = [f"crossner_{domain}" for domain in DOMAINS]
    result: Dict[str, Any] = {
        "llm": llm,
        "ask_llm": ask_llm,
        "limit": limit,
        "corpora": summary,
        "runs": rows,
    }
    if all(domain in rows for domain in domains):
        n = len(rows[domains[0]])
        means = [statistics.mean(rows[d][k]["f"] for d in domains) for k in range(n)]
        result["crossner"] = {"f": statistics.mean(means), "runs": means}
        for kind in ("annotated", "other"):
            of_kind = [merged(rows, domains, k, kind) for k in range(n)]
            result["crossner"][f"f_{kind}"] = statistics.mean(of_kind)
        print(result["crossner"])
    name = f"ember_labels_in_words_{Path(llm).name}" + ("_asked" if ask_llm else "")
    save(name + (f"_{limit}" if limit else ""), result)


def annotated_words(train: Path) -> Set[str]:
    """RETURNS (Set[str]): The words of all labels of the training corpora, and of their parents."""
    labels, out = read_labels(NAMES), set()
    vocab = spacy.blank("en").vocab
    for path in train.glob("*.spacy"):
        for doc in DocBin().from_disk(path).get_docs(vocab):
            out.update(ent.label_ for ent in doc.ents)
    out |= {labels.parents[label] for label in out if label in labels.parents}
    return {name for label in out for name in labels.names_of(label)}


def measure(
    llm: str,
    weights: str,
    width: int,
    path: Path,
    limit: int,
    features: Dict[str, Any],
    known: Set[str],
    ask_llm: bool,
) -> Dict[str, Any]:
    """Find the entities of a corpus, and score them. The LLM reads each text once for all weights."""
    nlp = spacy.blank("en")
    examples = read_examples(nlp, path)[: limit or None]
    found_labels = {ent.label_ for eg in examples for ent in eg.reference.ents} - LEFT_OUT
    names = read_labels(NAMES)
    words = {label: names.names_of(label)[0] for label in found_labels}
    model = {
        "@architectures": "spacy_llmner.EmberMatch.v1",
        "weights": weights or None,
        "width": width,
        "label_words": words,
    }
    labels = sorted(found_labels)
    config = {"llm": {"name": llm}, "model": model, "labels": labels, "ask_llm": ask_llm}
    ember: Any = nlp.add_pipe("ember_probe", config=config)
    read_once(ember, features)
    ember.predictor()  # reads the labels
    started = time.process_time()
    docs = list(nlp.pipe(eg.predicted for eg in examples))
    seconds = time.process_time() - started
    typed, untyped, right_spans = Counts(), Counts(), 0
    by_label: Dict[str, Counts] = defaultdict(Counts)
    for doc, eg in zip(docs, examples):
        gold = {(e.start, e.end, e.label_) for e in eg.reference.ents if e.label_ not in LEFT_OUT}
        found = {(e.start, e.end, e.label_) for e in doc.ents}
        typed.add(found, gold)
        untyped.add({m[:2] for m in found}, {m[:2] for m in gold})
        for label in found_labels:
            of_label = [{m for m in mentions if m[2] == label} for mentions in (found, gold)]
            by_label[label].add(*of_label)
    right_spans = untyped.correct
    return {
        "weights": Path(weights).name,
        "texts": len(examples),
        "words_per_cpu_second": sum(len(doc) for doc in docs) / seconds,
        "f": typed.f,
        "untyped_f": untyped.f,
        "label_accuracy": 100 * typed.correct / max(right_spans, 1),
        "labels": {
            words[label]: {
                "f": counts.f,
                "counts": [counts.correct, counts.found, counts.annotated],
                "kind": "annotated" if words[label] in known else "other",
            }
            for label, counts in sorted(by_label.items())
        },
    }


def merged(rows: Dict[str, List[Dict[str, Any]]], domains: List[str], k: int, kind: str) -> float:
    """RETURNS (float): F1 over all labels of a kind in all domains."""
    total = Counts()
    for domain in domains:
        for label in rows[domain][k]["labels"].values():
            if label["kind"] == kind:
                correct, found, annotated = label["counts"]
                total.correct += correct
                total.found += found
                total.annotated += annotated
    return total.f


def mean_of(runs: List[Dict[str, Any]]) -> Dict[str, float]:
    keys = ("f", "untyped_f", "label_accuracy")
    return {key: round(statistics.mean(run[key] for run in runs), 2) for key in keys}


if __name__ == "__main__":
    typer.run(main)
