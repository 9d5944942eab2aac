"""Time per document of `el4ner_ensemble`, and of the same prompts without shared encodings.

    python -m benchmarks.el4ner.speed training/el4ner_ensemble/model-best corpus/en_test.spacy --docs 8

The naive method encodes instruction, demonstrations, text and question again for each prompt, document by
document: for each list, for the type of each span, and for each claim. A second method, "by stage", asks
for the types of all spans of a text in one prompt, as the paper counts calls. The answers must be the same.
The methods alternate on each document. Times are CPU times of one thread (on a GPU: wall-clock times).

The calls of `el4ner_ensemble` are checked with the formula: n lists + n lists + n classifications + claims.
"""

import time
from collections import Counter
from functools import partial
from pathlib import Path
from typing import Any, Dict, Generator, List, Sequence, Type

import numpy as np
import spacy
import torch
import typer
from spacy.tokens import Doc

from benchmarks.lib.common import clock_of, read_examples, save
from spacy_llmner.decoding.tree import Tree
from spacy_llmner.el4ner_ensemble.call_counts import CallCounts
from spacy_llmner.el4ner_ensemble.component import EL4NER
from spacy_llmner.el4ner_ensemble.interfaces import Claim
from spacy_llmner.el4ner_ensemble.voter.llm_voter import LLMVoter
from spacy_llmner.el4ner_ensemble.voter.session import LLMSession, TaskSession
from spacy_llmner.util import CharSpan


class NaiveSession(LLMSession):
    """A session with one prompt per question.

    prompts (Counter): Number of prompts, by stage.
    """

    def __init__(self, prompts: Counter, *args: Any) -> None:
        super().__init__(*args, keep=False)
        self.prompts = prompts

    def extract(self) -> List[List[CharSpan]]:
        self.prompts["list"] += len(self.task_sessions)
        return super().extract()

    def classify(self, spans: Sequence[Sequence[CharSpan]]) -> List[List[Dict[str, float]]]:
        self.prompts["type"] += sum(map(len, spans))
        return [
            [
                self._one(task_session, partial(self._type, task_session, of_task, span))
                for span in of_task
            ]
            for task_session, of_task in zip(self.task_sessions, spans)
        ]

    def verify(
        self, spans: Sequence[Sequence[CharSpan]], claims: Sequence[Sequence[Claim]]
    ) -> List[List[float]]:
        self.prompts["check"] += sum(map(len, claims))
        return [
            [
                self._one(
                    task_session, partial(task_session.verify, spans=of_task, claims=[claim])
                )[0]
                for claim in of_claims
            ]
            for task_session, of_task, of_claims in zip(self.task_sessions, spans, claims)
        ]

    def _one(self, task_session: TaskSession, job: Any) -> Any:
        task_session.job = job
        return self.engine.run([task_session.once])[0]

    def _type(
        self, task_session: TaskSession, spans: Sequence[CharSpan], span: CharSpan, tree: Tree
    ) -> Generator[None, None, Any]:
        return (
            yield from task_session.classify_strings(
                tree, spans, [task_session.task.text[slice(*span)]]
            )
        )[0]


class StageSession(NaiveSession):
    """A session with one prompt for the types of all spans of a text."""

    def classify(self, spans: Sequence[Sequence[CharSpan]]) -> List[List[Dict[str, float]]]:
        self.prompts["type"] += sum(1 for of_task in spans if of_task)
        return LLMSession.classify(self, spans)


class NaiveVoter(LLMVoter):
    """A voter that opens naive sessions.

    kind (Type[NaiveSession]): The class of its sessions.
    prompts (Counter): Number of prompts, by stage.
    voter (LLMVoter): The voter with the same settings.
    """

    def __init__(self, kind: Type[NaiveSession], prompts: Counter, voter: LLMVoter) -> None:
        super().__init__(voter.llm, voter.prompts, voter.chat, voter.weight)
        self.adapter = voter.adapter
        self.kind = kind
        self.prompt_counts = prompts

    def session(self, tasks: Any, label_set: Any, *, keep: bool) -> NaiveSession:
        encoder = self._prompt_encoder(label_set)
        return self.kind(self.prompt_counts, self._make_engine(), encoder, tasks)


def main(
    pipeline: Path,
    test: Path,
    docs: int = typer.Option(8, help="Number of documents that are timed"),
    rounds: int = 1,
    seed: int = 0,
    name: str = "el4ner_speed",
) -> None:
    nlp = spacy.load(pipeline)
    ours: EL4NER = next(p for _, p in nlp.pipeline if isinstance(p, EL4NER))
    prompts: Dict[str, Counter] = {"naive": Counter(), "by stage": Counter()}
    pipes = {
        "ours": ours,
        "naive": make_naive(ours, nlp, NaiveSession, prompts["naive"]),
        "by stage": make_naive(ours, nlp, StageSession, prompts["by stage"]),
    }
    examples = [eg for eg in read_examples(nlp, test) if len(eg.predicted)]
    order = np.random.default_rng(seed).permutation(len(examples))[: docs + 1]
    texts = [examples[i].predicted for i in order]
    for pipe in pipes.values():  # warms up
        pipe.predict(texts[:1])
    texts = texts[1:]
    for pipe in pipes.values():
        pipe.call_counts = CallCounts()
    for counts in prompts.values():
        counts.clear()
    ms: Dict[str, List[float]] = {way: [] for way in pipes}
    distance = 0.0
    for k, doc in enumerate(texts):
        found: Dict[str, Any] = {}
        for way in list(pipes)[:: 1 if k % 2 else -1]:
            times = [timed(pipes[way], doc, found, way) for _ in range(rounds)]
            ms[way].append(float(np.median(times)))
        for way in prompts:
            distance = max(distance, compare(found["ours"], found[way]))
        print(k, {way: round(np.mean(x)) for way, x in ms.items()}, flush=True)
    n_windows = rounds * sum(len(ours._read(doc).tasks) for doc in texts)
    check_calls(ours, n_windows, prompts["by stage"])
    n = rounds * len(texts)
    tokens = {way: pipe.call_counts.tokens / n for way, pipe in pipes.items()}
    save(
        name,
        {
            "documents": len(texts),
            "rounds": rounds,
            "seed": seed,
            "k": ours.cfg["k"],
            "calls": ours.call_counts.calls / n,
            "prompts": {way: sum(counts.values()) / n for way, counts in prompts.items()},
            "ms": {way: float(np.mean(x)) for way, x in ms.items()},
            "tokens": tokens,
            "times_faster": float(np.sum(ms["naive"]) / np.sum(ms["ours"])),
            "times_faster_by_stage": float(np.sum(ms["by stage"]) / np.sum(ms["ours"])),
            "times_fewer_tokens": tokens["naive"] / tokens["ours"],
            "scores_apart": distance,
        },
    )


def make_naive(pipe: EL4NER, nlp: Any, kind: Type[NaiveSession], prompts: Counter) -> EL4NER:
    """RETURNS (EL4NER): An ensemble with the same voters and pool, but naive sessions."""
    members: Dict[str, Any] = pipe.voters
    voters = {name: NaiveVoter(kind, prompts, voter) for name, voter in members.items()}
    out = EL4NER(nlp, voters, pipe.pool.encoder, pipe.name)
    out.from_bytes(pipe.to_bytes())
    return out


def check_calls(pipe: EL4NER, n_windows: int, prompts: Counter) -> None:
    """Check the number of calls with the formula.

    pipe (EL4NER): The ensemble.
    n_windows (int): Number of windows it has read.
    prompts (Counter): Prompts of the naive method on the same windows, by stage.
    RAISES (AssertionError): If there are not n + n + n + claims for each window, without the last two where
        nothing was found.
    """
    work, n = pipe.call_counts, len(pipe.voters)
    assert work.extraction == n * n_windows
    assert work.pre_extraction == (n * n_windows if pipe._demonstrations().by_spans else 0)
    assert work.pre_extraction + work.extraction == prompts["list"]
    assert work.classification == prompts["type"] <= n * n_windows
    assert work.verification == prompts["check"]


def timed(pipe: EL4NER, doc: Doc, found: Dict[str, Any], way: str) -> float:
    """RETURNS (float): Milliseconds."""
    clock = clock_of(
        torch.device(next(iter(pipe.voters.values())).llm_key.device), time.thread_time
    )
    start = clock()
    found[way] = pipe.predict([doc])[0]
    return 1e3 * (clock() - start)


def compare(one: Any, other: Any) -> float:
    """Compare the predictions for a Doc.

    RETURNS (float): The largest difference in score.
    RAISES (AssertionError): If the spans differ.
    """
    a = {(s.start, s.end, s.label): s.score for s in one.spans}
    b = {(s.start, s.end, s.label): s.score for s in other.spans}
    assert a.keys() == b.keys(), f"the spans differ: {a.keys() ^ b.keys()}"
    return max((abs(a[key] - b[key]) for key in a), default=0.0)


if __name__ == "__main__":
    torch.set_num_threads(1)
    typer.run(main)
