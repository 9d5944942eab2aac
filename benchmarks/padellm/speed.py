"""Milliseconds per sentence of `padellm_ner`, of the published inference, and of the autoregressive
baseline.

    python -m benchmarks.padellm.speed training/padellm_ner/model-best \
        training/autoreg_ner/model-best corpus/en_test.spacy

All methods read the same sentences in one process. They alternate on each sentence, in rotated order, and
each sentence counts with its median over the rounds. Times are CPU times of one thread (on a GPU:
wall-clock times). The published way and `generate` use the components' own weights. Weights that were
trained with `loss = "allowed"` only learnt to choose among the allowed tokens, so an unconstrained answer
may never end. In that case the published way is forced to write the answers of `padellm_ner`, and
`generate` and the unconstrained methods of such a baseline are left out. With the published template,
answers are always forced, so that a model trained with another template takes as many steps as one trained
with this template. Before the measurement, the benchmark checks that the speed-ups change nothing: all
sentences are compared with plain constrained decoding, and some with the constrained published way.

"Published way, a GPU for each sequence" is PaDeLLM_Multi as its authors simulate it: the time of the
slowest count and of the slowest mention.

With `--gold` all methods write the gold answers, so that mistakes of the models have no influence.
`generate` is left out, and nothing is compared or scored.
"""

import time
from dataclasses import replace
from pathlib import Path
from typing import Any, Callable, Dict, List

import numpy as np
import spacy
import torch
import typer
from spacy.language import Language
from spacy.tokens import Doc
from spacy.training import Example

from benchmarks.lib.common import clock_of, read_examples, save, strict_scores
from benchmarks.padellm.autoreg import AutoReg
from benchmarks.padellm.equivalence import (
    WaySettings,
    apply_settings,
    check_equivalence,
    without_speedups,
)
from benchmarks.padellm.forced_answers import OwnAnswers, force_gold_answers
from benchmarks.padellm.published_inference import (
    GreedyLoop,
    HFGenerate,
    SimulatedParallel,
    Strings,
    Work,
    autoregressive_answers,
    published_mentions,
)
from spacy_llmner.decoding import forward
from spacy_llmner.padellm_ner.component import PaDeLLM
from spacy_llmner.padellm_ner.templates import TEMPLATES, TemplateEncoder

BATCH = 8


def main(
    pipeline: Path,
    autoreg: Path,
    test: Path,
    sentences: int = typer.Option(40, help="Number of sentences that are timed"),
    rounds: int = 3,
    compared: int = typer.Option(0, help="Number of sentences to compare; 0 compares all"),
    seed: int = 0,
    gold: bool = typer.Option(False, help="All methods write the gold answers"),
    name: str = "padellm_speed",
) -> None:
    nlp, ar_nlp = spacy.load(pipeline), spacy.load(autoreg)
    pipe, ar = pipe_of_type(nlp, PaDeLLM), pipe_of_type(ar_nlp, AutoReg)
    examples = [eg for eg in read_examples(nlp, test) if len(eg.predicted)]
    order = np.random.default_rng(seed).permutation(len(examples))
    docs = [examples[i].predicted for i in order]
    timed_examples = [examples[i] for i in order[:sentences]]
    exact, scores = {}, {}
    if gold:
        force_gold_answers(pipe, timed_examples)
        force_gold_answers(ar, timed_examples)
    else:
        exact = check_equivalence(pipe, ar, docs[: compared or len(docs)], sentences)
        print(exact, flush=True)
        for what, component in (("ours", pipe), ("autoregressive", ar)):
            scores[what] = f1(timed_examples, component)
    docs = docs[:sentences]
    single = measure(methods(pipe, ar, gold), [[doc] for doc in docs], rounds, pipe)
    chunks = [docs[i : i + BATCH] for i in range(0, len(docs), BATCH)]
    batched = measure(batch_methods(pipe, ar, gold), chunks, rounds, pipe)
    save(
        name,
        {
            "llm": pipe.llm.spec.name,
            "llm_device": str(pipe.shared_llm().device),
            "test": test.stem,
            "labels": len(pipe.labels),
            "sentences": len(docs),
            "rounds": rounds,
            "gold_answers": gold,
            "f1": scores,
            "same_outcome": exact,
            "batch_1": table(single),
            "batch_8": table(batched),
            "ratios": {
                "batch_1": ratios(single, "ours"),
                "batch_8": ratios(batched, "ours"),
            },
        },
    )
    for title, part in (("batch 1", single), ("batch 8", batched)):
        for method, row in table(part).items():
            print(title, method, row)
        print(ratios(part, "ours"))


class EngineMethod:
    """A component that uses the decoding engine.

    pipe (PaDeLLM): The component.
    settings (WaySettings): How it decodes: settings of `padellm_ner`, or attributes of the baseline.
    """

    def __init__(self, pipe: PaDeLLM, settings: WaySettings) -> None:
        self.pipe = pipe
        self.settings = settings
        self.work = Work()

    def __call__(self, docs: List[Doc]) -> Any:
        apply_settings(self.pipe, self.settings)
        return self.pipe.predict(docs)

    def count(self, docs: List[Doc]) -> None:
        """Do the same, and count forward passes and tokens."""
        apply_settings(self.pipe, self.settings)
        created = []
        create = self.pipe._engine

        def engine() -> Any:
            created.append(create())
            return created[-1]

        self.pipe._engine = engine  # type: ignore[method-assign]
        try:
            self.pipe.predict(docs)
        finally:
            self.pipe._engine = create  # type: ignore[method-assign]
        self.work.passes += created[0][0].passes
        self.work.tokens += created[0][0].tokens


class PerDocMethod:
    """A method that reads Docs one by one.

    write (Union[GreedyLoop, HFGenerate]): Decodes, and counts forward passes and tokens.
    read (Callable[[Doc, Any], Any]): Finds the mentions of a Doc by means of `write`.
    """

    def __init__(self, write: Any, read: Callable[[Doc, Any], Any]) -> None:
        self.write = write
        self.read = read
        self.work = Work()

    def __call__(self, docs: List[Doc]) -> Any:
        return [self.read(doc, self.write) for doc in docs]

    def count(self, docs: List[Doc]) -> None:
        self.write.work = self.work
        self(docs)
        self.write.work = Work()


class WithoutCUDAGraphs(EngineMethod):
    """A component that uses the decoding engine without CUDA graphs."""

    def __call__(self, docs: List[Doc]) -> Any:
        sizes, forward.SIZES = forward.SIZES, (0,)  # type: ignore[assignment]
        try:
            return super().__call__(docs)
        finally:
            forward.SIZES = sizes


class SimulatedMethod(PerDocMethod):
    """A method whose time is that of the simulated GPUs."""

    def __call__(self, docs: List[Doc]) -> Any:
        self.write.seconds = 0.0
        return super().__call__(docs)


def methods(pipe: PaDeLLM, ar: AutoReg, gold: bool) -> Dict[str, Any]:
    llm, view, prompt_encoder = pipe.adapted_llm()
    _, ar_view, ar_encoder = ar.adapted_llm()
    words = pipe.settings.label_words
    published = TemplateEncoder(TEMPLATES["published_en"], llm.tokenizer, words)
    # Whether the published way can write answers of its own.
    free = pipe.settings.loss == "raw" and not gold
    own_answers = OwnAnswers(pipe, prompt_encoder)
    published_answers = OwnAnswers(pipe, published)

    def with_own_template(doc: Doc, write: Any) -> Strings:
        forced = None if free else own_answers(doc)
        return published_mentions(pipe, prompt_encoder, doc, write, forced=forced)

    out = {
        "ours": EngineMethod(pipe, pipe.decoding_settings),
        "ours, no drafts": EngineMethod(pipe, replace(pipe.decoding_settings, draft=0)),
        "ours, no look-ahead": EngineMethod(
            pipe, replace(pipe.decoding_settings, look_ahead=False)
        ),
        "ours, neither": EngineMethod(pipe, without_speedups(pipe)),
        "published way": PerDocMethod(GreedyLoop(llm, view), with_own_template),
        "published way and wording": PerDocMethod(
            GreedyLoop(llm, view),
            lambda d, w: published_mentions(pipe, published, d, w, forced=published_answers(d)),
        ),
        "published way, a GPU for each sequence": SimulatedMethod(
            SimulatedParallel(llm, view, clock_of(llm.device, time.thread_time)), with_own_template
        ),
        "generate": PerDocMethod(
            HFGenerate(llm, view), lambda d, w: published_mentions(pipe, prompt_encoder, d, w)
        ),
        "autoregressive": EngineMethod(ar, {}),
        "autoregressive, no look-up": EngineMethod(ar, {"draft": 0}),
        "autoregressive, unconstrained": EngineMethod(ar, {"constrained": False}),
        "autoregressive, unconstrained, no look-up": EngineMethod(
            ar, {"constrained": False, "draft": 0}
        ),
        "autoregressive, generate": PerDocMethod(
            HFGenerate(llm, ar_view), lambda d, w: autoregressive_answers(ar, ar_encoder, d, w)
        ),
    }
    if llm.device.type == "cuda":
        out["ours, no CUDA graphs"] = WithoutCUDAGraphs(pipe, pipe.decoding_settings)
        out["autoregressive, no CUDA graphs"] = WithoutCUDAGraphs(ar, {})
    if not free:
        del out["generate"]
    if gold:
        del out["autoregressive, generate"]
    return without_endless(out, ar, gold)


def without_endless(runs: Dict[str, Any], ar: AutoReg, gold: bool) -> Dict[str, Any]:
    """RETURNS (Dict[str, Any]): The methods, without those whose answers may never end with the baseline's
    weights."""
    if gold or ar.settings.loss == "raw":
        return runs
    endless = ("autoregressive, unconstrained", "autoregressive, generate")
    return {name: run for name, run in runs.items() if not name.startswith(endless)}


def batch_methods(pipe: PaDeLLM, ar: AutoReg, gold: bool) -> Dict[str, Any]:
    out = {
        "ours": EngineMethod(pipe, pipe.decoding_settings),
        "ours, neither": EngineMethod(pipe, without_speedups(pipe)),
        "autoregressive": EngineMethod(ar, {}),
        "autoregressive, no look-up": EngineMethod(ar, {"draft": 0}),
        "autoregressive, unconstrained": EngineMethod(ar, {"constrained": False}),
    }
    return without_endless(out, ar, gold)


def measure(
    runs: Dict[str, Any], chunks: List[List[Doc]], rounds: int, pipe: PaDeLLM
) -> Dict[str, Any]:
    """Time the methods on chunks of sentences.

    runs (Dict[str, Any]): The methods.
    chunks (List[List[Doc]]): The sentences that are read together.
    RETURNS (Dict[str, Any]): For each method: "ms", milliseconds per sentence, shape (rounds, chunks);
        "passes" per sentence, or per chunk if chunks have several; "tokens" per sentence; "sizes", the
        number of sentences in each chunk.
    """
    device = pipe.shared_llm().device
    ms = {name: np.zeros((rounds, len(chunks))) for name in runs}
    names = list(runs)
    for method in runs.values():
        method(chunks[0])  # warms up
    for c, chunk in enumerate(chunks):
        for r in range(rounds):
            for k in range(len(names)):
                method = names[(k + c + r) % len(names)]
                step = runs[method] if r else runs[method].count
                ms[method][r, c] = timed(step, chunk, device) / len(chunk)
        done = {name: round(float(np.median(ms[name][:, : c + 1], axis=0).mean())) for name in ms}
        print(c + 1, done, flush=True)
    apply_settings(pipe, None)
    n = sum(len(chunk) for chunk in chunks)
    return {
        name: {
            "ms": ms[name],
            "passes": method.work.passes / (n if len(chunks[0]) == 1 else len(chunks)),
            "tokens": method.work.tokens / n,
            "sizes": np.array([len(chunk) for chunk in chunks]),
        }
        for name, method in runs.items()
    }


def timed(method: Callable[[List[Doc]], Any], docs: List[Doc], device: torch.device) -> float:
    """RETURNS (float): Milliseconds."""
    clock = clock_of(device, time.thread_time)
    start = clock()
    method(docs)
    if isinstance(method, SimulatedMethod):
        return 1e3 * method.write.seconds
    return 1e3 * (clock() - start)


def table(measured: Dict[str, Any]) -> Dict[str, Dict[str, float]]:
    out = {}
    for name, m in measured.items():
        each = np.median(m["ms"], axis=0)
        out[name] = {
            "mean_ms": float((each * m["sizes"]).sum() / m["sizes"].sum()),
            "median_ms": float(np.median(each)),
            "p95_ms": float(np.percentile(each, 95)),
            "passes": m["passes"],
            "tokens": m["tokens"],
        }
    return out


def ratios(measured: Dict[str, Any], base: str) -> Dict[str, Dict[str, Any]]:
    """Compare the times of the other methods with those of `base`.

    RETURNS (Dict[str, Dict[str, Any]]): For each method, the ratio of mean times with a 95 % bootstrap
        interval over the sentences, the ratio of medians, and the ratio of each round.
    """
    sizes = measured[base]["sizes"]
    mine = np.median(measured[base]["ms"], axis=0) * sizes
    rng = np.random.default_rng(0)
    draws = rng.integers(0, len(sizes), (5000, len(sizes)))
    out = {}
    for name, m in measured.items():
        if name == base:
            continue
        theirs = np.median(m["ms"], axis=0) * sizes
        drawn = theirs[draws].sum(1) / mine[draws].sum(1)
        low, high = np.percentile(drawn, [2.5, 97.5])
        each = (m["ms"] * sizes).sum(1) / (measured[base]["ms"] * sizes).sum(1)
        out[name] = {
            "ratio": float(theirs.sum() / mine.sum()),
            "low": float(low),
            "high": float(high),
            "of_medians": float(np.median(theirs) / np.median(mine)),
            "rounds": [float(x) for x in each],
        }
    return out


def pipe_of_type(nlp: Language, kind: type) -> Any:
    return next(pipe for _, pipe in nlp.pipeline if type(pipe) is kind)


def f1(examples: List[Example], pipe: PaDeLLM) -> float:
    docs = [
        Doc(doc.vocab, [t.text for t in doc], [bool(t.whitespace_) for t in doc])
        for doc in (eg.reference for eg in examples)
    ]
    return strict_scores([eg.reference for eg in examples], pipe.pipe(docs, batch_size=BATCH))["f"]


if __name__ == "__main__":
    torch.set_num_threads(1)
    typer.run(main)
