"""Milliseconds a sentence: `padellm_ner`, the published way to run it, and the autoregressive baseline.

    python benchmarks/padellm_speed.py training/padellm_ner/model-best \
        training/autoreg_ner/model-best corpus/en_test.spacy

All methods read the same sentences in one process, in turn sentence by sentence, the order rotated;
each sentence counts with its median over the rounds. CPU times of one thread (on a GPU: wall times).
The published way and `generate` use the components' own weights. Weights that learnt `loss = "allowed"`
know only what to choose among what is allowed, and not when an unconstrained answer ends: the published
way is then forced to write what our own run gave, and `generate` is left out, as are all unconstrained ways
of a baseline that learnt so. With the published wording
it always is, so that a model trained on another wording does as many steps as one trained on this. First
it is made sure that our speed-ups change nothing: all sentences, against plain constrained decoding, and
some against the constrained published way.

"Published way, a GPU for each sequence" is PaDeLLM_Multi as its authors simulate it: the time of the
slowest count and of the slowest mention.

With `--gold` all methods write the gold answers, so that no model's mistakes play a part; `generate` is
left out, and nothing is compared or scored.
"""

import time
from dataclasses import replace
from pathlib import Path
from typing import Any, Callable, Dict, List

import numpy as np
import spacy
import torch
import typer
from autoreg import AutoReg
from common import clock_of, read_examples, save, strict_scores
from published_way import Alone, LeanLoop, PlainGenerate, Strings, Work, listed, published
from same_outcome import exactness, plain, with_settings
from spacy.language import Language
from spacy.tokens import Doc
from spacy.training import Example
from told import Answers, tell

from spacy_llmner.decoding import forward as passes
from spacy_llmner.padellm_ner.component import PaDeLLM
from spacy_llmner.padellm_ner.templates import TEMPLATES, TemplateEncoder

BATCH = 8


def main(
    pipeline: Path,
    autoreg: Path,
    test: Path,
    sentences: int = typer.Option(40, help="How many are timed"),
    rounds: int = 3,
    compared: int = typer.Option(0, help="On how many outcomes are compared; 0: on all"),
    seed: int = 0,
    gold: bool = typer.Option(False, help="All methods write the gold answers"),
    name: str = "padellm_speed",
) -> None:
    nlp, ar_nlp = spacy.load(pipeline), spacy.load(autoreg)
    pipe, ar = only(nlp, PaDeLLM), only(ar_nlp, AutoReg)
    examples = [eg for eg in read_examples(nlp, test) if len(eg.predicted)]
    order = np.random.default_rng(seed).permutation(len(examples))
    docs = [examples[i].predicted for i in order]
    timed_examples = [examples[i] for i in order[:sentences]]
    exact, scores = {}, {}
    if gold:
        tell(pipe, timed_examples)
        tell(ar, timed_examples)
    else:
        exact = exactness(pipe, ar, docs[: compared or len(docs)], sentences)
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


class Ours:
    """A component on the decoding engine.

    settings (Any): How it decodes: FindSettings of `padellm_ner`, attributes of the baseline.
    """

    def __init__(self, pipe: PaDeLLM, settings: Any) -> None:
        self.pipe = pipe
        self.settings = settings
        self.work = Work()

    def __call__(self, docs: List[Doc]) -> Any:
        with_settings(self.pipe, self.settings)
        return self.pipe.predict(docs)

    def count(self, docs: List[Doc]) -> None:
        """The same, with passes and tokens counted."""
        with_settings(self.pipe, self.settings)
        made = []
        get = self.pipe._decoder

        def decoder() -> Any:
            made.append(get())
            return made[-1]

        self.pipe._decoder = decoder  # type: ignore[method-assign]
        try:
            self.pipe.predict(docs)
        finally:
            self.pipe._decoder = get  # type: ignore[method-assign]
        self.work.passes += made[0][0].passes
        self.work.tokens += made[0][0].tokens


class Other:
    """A method that reads Docs one by one.

    write (Union[LeanLoop, PlainGenerate]): Decodes and counts.
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


class Launched(Ours):
    """Without CUDA graphs."""

    def __call__(self, docs: List[Doc]) -> Any:
        sizes, passes.SIZES = passes.SIZES, (0,)
        try:
            return super().__call__(docs)
        finally:
            passes.SIZES = sizes


class Simulated(Other):
    """Takes the time that Alone says."""

    def __call__(self, docs: List[Doc]) -> Any:
        self.write.seconds = 0.0
        return super().__call__(docs)


def methods(pipe: PaDeLLM, ar: AutoReg, gold: bool) -> Dict[str, Any]:
    llm, view, prompt_encoder = pipe.adapted_llm()
    _, ar_view, ar_wording = ar.adapted_llm()
    words = pipe.settings.label_words
    long = TemplateEncoder(TEMPLATES["published_en"], llm.tokenizer, words)
    own = pipe.settings.loss == "raw" and not gold
    short_answers, answers = Answers(pipe, prompt_encoder), Answers(pipe, long)

    def in_short(doc: Doc, write: Any) -> Strings:
        return published(
            pipe, prompt_encoder, doc, write, forced=None if own else short_answers(doc)
        )

    out = {
        "ours": Ours(pipe, pipe.decoding_settings),
        "ours, no drafts": Ours(pipe, replace(pipe.decoding_settings, draft=0)),
        "ours, no look-ahead": Ours(pipe, replace(pipe.decoding_settings, look_ahead=False)),
        "ours, neither": Ours(pipe, plain(pipe)),
        "published way": Other(LeanLoop(llm, view), in_short),
        "published way and wording": Other(
            LeanLoop(llm, view), lambda d, w: published(pipe, long, d, w, forced=answers(d))
        ),
        "published way, a GPU for each sequence": Simulated(
            Alone(llm, view, clock_of(llm.device, time.thread_time)), in_short
        ),
        "generate": Other(
            PlainGenerate(llm, view), lambda d, w: published(pipe, prompt_encoder, d, w)
        ),
        "autoregressive": Ours(ar, {}),
        "autoregressive, no look-up": Ours(ar, {"draft": 0}),
        "autoregressive, unconstrained": Ours(ar, {"constrained": False}),
        "autoregressive, unconstrained, no look-up": Ours(ar, {"constrained": False, "draft": 0}),
        "autoregressive, generate": Other(
            PlainGenerate(llm, ar_view), lambda d, w: listed(ar, ar_wording, d, w)
        ),
    }
    if llm.device.type == "cuda":
        out["ours, no CUDA graphs"] = Launched(pipe, pipe.decoding_settings)
        out["autoregressive, no CUDA graphs"] = Launched(ar, {})
    if not own:
        del out["generate"]
    if gold:
        del out["autoregressive, generate"]
    return without_ends_unlearnt(out, ar, gold)


def without_ends_unlearnt(runs: Dict[str, Any], ar: AutoReg, gold: bool) -> Dict[str, Any]:
    """RETURNS (Dict[str, Any]): Those methods that the baseline's weights can do."""
    if gold or ar.settings.loss == "raw":
        return runs
    free = ("autoregressive, unconstrained", "autoregressive, generate")
    return {name: run for name, run in runs.items() if not name.startswith(free)}


def batch_methods(pipe: PaDeLLM, ar: AutoReg, gold: bool) -> Dict[str, Any]:
    out = {
        "ours": Ours(pipe, pipe.decoding_settings),
        "ours, neither": Ours(pipe, plain(pipe)),
        "autoregressive": Ours(ar, {}),
        "autoregressive, no look-up": Ours(ar, {"draft": 0}),
        "autoregressive, unconstrained": Ours(ar, {"constrained": False}),
    }
    return without_ends_unlearnt(out, ar, gold)


def measure(
    runs: Dict[str, Any], chunks: List[List[Doc]], rounds: int, pipe: PaDeLLM
) -> Dict[str, Any]:
    """RETURNS (Dict[str, Any]): By method: ms a sentence, shape (rounds, chunks), passes and tokens a
    sentence, and sentences of each chunk."""
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
    with_settings(pipe, None)
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
    if isinstance(method, Simulated):
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
    """RETURNS (Dict[str, Dict[str, Any]]): How many times as long the other methods take: ratio of
    means with 95 % bootstrap interval over sentences, and of each round."""
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


def only(nlp: Language, kind: type) -> Any:
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
