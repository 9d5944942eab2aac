"""The effect of sharing the context: `ra_it_ner` encodes examples and passage once for all types of a text,
the published way encodes both again for each type.

    python -m benchmarks.ra_it.speed training/ra_it_ner/model-best corpus/en_test.spacy --docs 24

All ways use the same weights, examples and constraint. They alternate on each text, and their answers are
compared.
"""

from pathlib import Path
from statistics import mean, median
from time import perf_counter
from typing import Any, Callable, Dict, List, Tuple

import torch
import typer
from spacy.tokens import Doc, DocBin
from spacy.util import load_model

from benchmarks.lib.common import save
from spacy_llmner.decoding.engine import DecodingEngine
from spacy_llmner.ra_it_ner.component import RAIT
from spacy_llmner.ra_it_ner.decoding import ask_types
from spacy_llmner.ra_it_ner.prompts import Passage

Way = Callable[[RAIT, Passage, str], Tuple[Dict[str, Any], int, int]]


def main(
    model: Path,
    corpus: Path,
    docs: int = 24,
    rounds: int = 2,
    component: str = "ra_it_ner",
    name: str = "ra_it_speed",
) -> None:
    """Time the ways, compare their answers, and save the results."""
    nlp = load_model(model)
    pipe: Any = nlp.get_pipe(component)
    pipe.cfg["use_examples"] = "always"
    texts = [doc.text for doc in DocBin().from_disk(corpus).get_docs(nlp.vocab)][:docs]
    passages = [make_passage(pipe, nlp.make_doc(text)) for text in texts]
    llm, _, prompt_encoder = pipe.adapted_llm()
    seconds: Dict[str, List[float]] = {way: [] for way in WAYS}
    tokens: Dict[str, int] = dict.fromkeys(WAYS, 0)
    passes: Dict[str, int] = dict.fromkeys(WAYS, 0)
    differing = 0
    for round_ in range(rounds):
        for passage, text in zip(passages, texts):
            answers = {}
            for way, ask in WAYS.items():
                start = perf_counter()
                answers[way], read_tokens, n_passes = ask(pipe, passage, text)
                seconds[way].append(perf_counter() - start)
                tokens[way] += read_tokens
                passes[way] += n_passes
            if round_ == 0:
                ours = occurrences(answers["shared"])
                differing += any(occurrences(other) != ours for other in answers.values())
    shown = [len(p.selected.examples) for p in passages]
    context = [
        len(prompt_encoder.encode(p.text, p.selected.examples, p.labels[0]))
        - len(prompt_encoder.encode(p.text, (), p.labels[0]))
        for p in passages
    ]
    save(
        name,
        {
            "llm": pipe.llm.spec.name,
            "texts": len(texts),
            "rounds": rounds,
            "types": len(passages[0].labels),
            "examples_mean": mean(shown),
            "tokens_of_examples_mean": mean(context),
            "texts_with_other_answers": differing,
            "ways": {
                way: {
                    "seconds_median": median(seconds[way]),
                    "seconds_mean": mean(seconds[way]),
                    "tokens_per_text": tokens[way] / len(seconds[way]),
                    "passes_per_text": passes[way] / len(seconds[way]),
                    "times_ours_median": median(
                        a / b for a, b in zip(seconds[way], seconds["shared"])
                    ),
                    "times_ours_mean": mean(seconds[way]) / mean(seconds["shared"]),
                }
                for way in WAYS
            },
        },
    )


def make_passage(pipe: RAIT, doc: Doc) -> Passage:
    llm, _, prompt_encoder = pipe.adapted_llm()
    (passage,) = pipe._passages([doc], llm, prompt_encoder)
    return passage


def shared(pipe: RAIT, passage: Passage, text: str) -> Tuple[Dict[str, Any], int, int]:
    """Ask for all types after one encoding of the context."""
    llm, view, prompt_encoder = pipe.adapted_llm()
    engine = DecodingEngine(llm, view, max_slots=pipe.max_batch_tokens)
    (answers,) = engine.run([pipe._request(prompt_encoder, passage, text, pipe._budget(llm))])
    return answers, engine.tokens, engine.passes


def separate(pipe: RAIT, passage: Passage, text: str) -> Tuple[Dict[str, Any], int, int]:
    """Ask for one type after another, each with its own encoding of the context."""
    llm, view, prompt_encoder = pipe.adapted_llm()
    engine = DecodingEngine(llm, view, max_slots=pipe.max_batch_tokens)
    answers: Dict[str, Any] = {}
    for label in passage.labels:
        answers.update(engine.run([request_for(pipe, passage, text, label)])[0])
    return answers, engine.tokens, engine.passes


def separate_batched(pipe: RAIT, passage: Passage, text: str) -> Tuple[Dict[str, Any], int, int]:
    """Ask for all types in one batch, each with its own encoding of the context."""
    llm, view, prompt_encoder = pipe.adapted_llm()
    engine = DecodingEngine(llm, view, max_slots=1_000_000)
    answers: Dict[str, Any] = {}
    for found in engine.run([request_for(pipe, passage, text, label) for label in passage.labels]):
        answers.update(found)
    return answers, engine.tokens, engine.passes


def request_for(pipe: RAIT, passage: Passage, text: str, label: str) -> Any:
    _, _, prompt_encoder = pipe.adapted_llm()
    prompt = prompt_encoder.encode(passage.text, passage.selected.examples, label)
    return ask_types(prompt_encoder, {label: prompt}, text, passage.bounds, pipe.decoding_settings)


def occurrences(answers: Dict[str, Any]) -> Dict[str, Any]:
    return {label: [answer.occurrences for answer in listed] for label, listed in answers.items()}


WAYS: Dict[str, Way] = {"shared": shared, "again": separate, "again, batched": separate_batched}


if __name__ == "__main__":
    torch.set_grad_enabled(False)
    typer.run(main)
