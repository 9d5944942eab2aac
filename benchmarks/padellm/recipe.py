"""Train and score a component: the recipe that several benchmarks of `padellm_ner` share."""

import random
from typing import Any, Callable, Dict, Iterator, List, Optional, Set, Tuple

import torch
from spacy.language import Language
from spacy.tokens import Doc
from spacy.training import Example
from thinc.api import Adam

from benchmarks.lib.common import clock_of

# Share of the training in which the learning rate rises.
WARMUP = 0.05


def fit(
    nlp: Language,
    examples: List[Example],
    minutes: float,
    batch_size: int,
    rate: float,
    seed: int,
    epochs: int = 0,
) -> Dict[str, Any]:
    """Train a pipeline with one component. The learning rate rises for a short time, then falls to 0.

    examples (List[Example]): The training examples.
    minutes (float): Limit on the training time: CPU minutes, or wall-clock minutes on a GPU.
    batch_size (int): Examples per update.
    rate (float): Highest learning rate.
    epochs (int): Limit on the number of epochs; 0 for no limit.
    RETURNS (Dict[str, Any]): Number of examples and updates, and the seconds.
    """
    nlp.initialize(lambda: examples)
    pipe: Any = nlp.get_pipe(nlp.pipe_names[0])
    clock = clock_of(pipe.shared_llm().device)
    if epochs:
        pipe.make_training_batch = TrainingBatchCache(pipe.make_training_batch)
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


class TrainingBatchCache:
    """Replaces a component's `make_training_batch` and packs each example only once. The key is the
    reference Doc, since `nlp.update` copies examples, but not their references.

    make (Callable[[List[Example]], Any]): The component's method.
    """

    def __init__(self, make: Callable[[List[Example]], Any]) -> None:
        self.make = make
        self.cached: Dict[int, Any] = {}

    def __call__(self, examples: List[Example]) -> List[Any]:
        for eg in examples:
            if id(eg.reference) not in self.cached:
                self.cached[id(eg.reference)] = self.make([eg])
        return [packed for eg in examples for packed in self.cached[id(eg.reference)]]


def sample(examples: List[Example], n: int) -> List[Example]:
    """RETURNS (List[Example]): Up to `n` examples, the same ones at each call."""
    return random.Random(0).sample(examples, min(n, len(examples)))


def evaluate(
    nlp: Language, examples: List[Example], spans_key: Optional[str], each: bool = False
) -> Dict[str, Any]:
    """Compute the strict F1 of spans and the paper's F1 of sets of strings, in percent.

    spans_key (Optional[str]): Span group of the gold annotation; None for doc.ents.
    each (bool): Also return the counts of each example, for paired intervals.
    RETURNS (Dict[str, Any]): The scores, the number of spans whose string is not the text at their offsets,
        and the milliseconds per example.
    """
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
        out["each"] = spans
    return out


def mentions(doc: Doc, spans_key: Optional[str]) -> Set[Tuple[int, int, str, str]]:
    """RETURNS (Set[Tuple[int, int, str, str]]): Start and end character, label and text of each span."""
    spans = doc.ents if spans_key is None else doc.spans.get(spans_key, [])
    return {(s.start_char, s.end_char, s.label_, s.text) for s in spans}


def prf(counts: List[Tuple[int, int, int]]) -> Tuple[float, float, float]:
    """Compute scores from counts of correct, predicted and gold spans.

    RETURNS (Tuple[float, float, float]): Precision, recall and F1, in percent.
    """
    right, found, gold = (sum(c[k] for c in counts) for k in range(3))
    p, r = right / max(found, 1), right / max(gold, 1)
    return 100 * p, 100 * r, 200 * p * r / max(p + r, 1e-9)
