"""Time of a document with `el4ner_ensemble`, and with the same LLMs asked as if nothing were shared.

    python benchmarks/el4ner_speed.py training/el4ner_ensemble/model-best corpus/en_test.spacy --docs 8

The naive way reads instruction, demonstrations, text and question again for each LLM call, document by
document: for each list, for the type of each span, and for each claim. Its answers must be the same. CPU
times of one thread, in turn document by document; on a GPU wall times.
"""

import time
from functools import partial
from pathlib import Path
from typing import Any, Dict, Generator, List, Sequence

import numpy as np
import spacy
import torch
import typer
from common import read_examples, save
from spacy.tokens import Doc

from spacy_llmner.el4ner_ensemble.component import EL4NER
from spacy_llmner.el4ner_ensemble.session import Desk, LLMSession
from spacy_llmner.el4ner_ensemble.tasks import Chars, Claim
from spacy_llmner.el4ner_ensemble.voters import LLMVoter
from spacy_llmner.llm.decoding import Decoder, Tree


class NaiveSession(LLMSession):
    """One call, one prompt."""

    def __init__(self, *args: Any, **settings: Any) -> None:
        super().__init__(*args, **{**settings, "keep": False})

    def classify(self, spans: Sequence[Sequence[Chars]]) -> List[List[Dict[str, float]]]:
        return [
            [self._one(desk, partial(self._type, desk, of_task, span)) for span in of_task]
            for desk, of_task in zip(self.desks, spans)
        ]

    def verify(
        self, spans: Sequence[Sequence[Chars]], claims: Sequence[Sequence[Claim]]
    ) -> List[List[float]]:
        return [
            [
                self._one(desk, partial(desk.verify, spans=of_task, claims=[claim]))[0]
                for claim in said
            ]
            for desk, of_task, said in zip(self.desks, spans, claims)
        ]

    def _one(self, desk: Desk, job: Any) -> Any:
        desk.job = job
        return self.decoder.run([desk.once])[0]

    def _type(
        self, desk: Desk, spans: Sequence[Chars], span: Chars, tree: Tree
    ) -> Generator[None, None, Any]:
        return (yield from desk.types(tree, spans, [desk.task.text[slice(*span)]]))[0]


class NaiveVoter(LLMVoter):
    def session(self, tasks: Any, asked: Any, *, keep: bool) -> NaiveSession:
        return NaiveSession(Decoder(self._load()), self._wording(asked), tasks, keep=False)


def main(
    pipeline: Path,
    test: Path,
    docs: int = typer.Option(8, help="How many documents are timed"),
    rounds: int = 1,
    seed: int = 0,
    name: str = "el4ner_speed",
) -> None:
    nlp = spacy.load(pipeline)
    ours: EL4NER = next(p for _, p in nlp.pipeline if isinstance(p, EL4NER))
    naive = naively(ours, nlp)
    examples = [eg for eg in read_examples(nlp, test) if len(eg.predicted)]
    order = np.random.default_rng(seed).permutation(len(examples))[: docs + 1]
    texts = [examples[i].predicted for i in order]
    for pipe in (ours, naive):  # warms up
        pipe.predict(texts[:1])
    texts = texts[1:]
    ms: Dict[str, List[float]] = {"ours": [], "naive": []}
    before = {"ours": ours.work.tokens, "naive": naive.work.tokens}
    calls = ours.work.calls
    apart = 0.0
    for k, doc in enumerate(texts):
        found: Dict[str, Any] = {}
        for way, pipe in (("ours", ours), ("naive", naive))[:: 1 if k % 2 else -1]:
            times = [timed(pipe, doc, found, way) for _ in range(rounds)]
            ms[way].append(float(np.median(times)))
        apart = max(apart, compare(found["ours"], found["naive"]))
        print(k, {way: round(np.mean(x)) for way, x in ms.items()}, flush=True)
    tokens = {
        way: (pipe.work.tokens - before[way]) / rounds / len(texts)
        for way, pipe in (("ours", ours), ("naive", naive))
    }
    save(
        name,
        {
            "documents": len(texts),
            "rounds": rounds,
            "seed": seed,
            "k": ours.cfg["k"],
            "calls": (ours.work.calls - calls) / rounds / len(texts),
            "ms": {way: float(np.mean(x)) for way, x in ms.items()},
            "tokens": tokens,
            "times_faster": float(np.sum(ms["naive"]) / np.sum(ms["ours"])),
            "times_fewer_tokens": tokens["naive"] / tokens["ours"],
            "scores_apart": apart,
        },
    )


def naively(pipe: EL4NER, nlp: Any) -> EL4NER:
    """RETURNS (EL4NER): The same ensemble with the same pool, asked the naive way."""
    voters = {
        name: NaiveVoter(voter.llm, voter.prompts, voter.chat, voter.weight)
        for name, voter in pipe.voters.items()
        if isinstance(voter, LLMVoter)
    }
    out = EL4NER(nlp, voters, pipe.pool.encoder, pipe.name)
    out.from_bytes(pipe.to_bytes())
    return out


def timed(pipe: EL4NER, doc: Doc, found: Dict[str, Any], way: str) -> float:
    """RETURNS (float): Milliseconds."""
    on_gpu = torch.cuda.is_available()
    clock = time.perf_counter if on_gpu else time.thread_time
    start = clock()
    found[way] = pipe.predict([doc])[0]
    if on_gpu:
        torch.cuda.synchronize()
    return 1e3 * (clock() - start)


def compare(one: Any, other: Any) -> float:
    """RETURNS (float): How far scores are apart at most.
    RAISES (AssertionError): If other spans were found."""
    a = {(s.start, s.end, s.label): s.score for s in one.spans}
    b = {(s.start, s.end, s.label): s.score for s in other.spans}
    assert a.keys() == b.keys(), f"other spans: {a.keys() ^ b.keys()}"
    return max((abs(a[key] - b[key]) for key in a), default=0.0)


if __name__ == "__main__":
    torch.set_num_threads(1)
    typer.run(main)
