"""What sharing the context is worth: `ra_it_ner` asks for all types of a text behind one encoding of
examples and passage, where the published way encodes both again for every type.

    python benchmarks/ra_it_speed.py training/ra_it_ner/model-best corpus/en_test.spacy --docs 24

Same weights, same examples, same constraint; the ways take turns on each text. Answers are compared.
"""

from pathlib import Path
from statistics import mean, median
from time import perf_counter
from typing import Any, Callable, Dict, List, Tuple

import torch
import typer
from common import save
from spacy.tokens import Doc, DocBin
from spacy.util import load_model

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
    """Time the ways of asking."""
    nlp = load_model(model)
    pipe: Any = nlp.get_pipe(component)
    pipe.cfg["use_examples"] = "always"
    texts = [doc.text for doc in DocBin().from_disk(corpus).get_docs(nlp.vocab)][:docs]
    passages = [read(pipe, nlp.make_doc(text)) for text in texts]
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
                ours = places(answers["shared"])
                differing += any(places(other) != ours for other in answers.values())
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


def read(pipe: RAIT, doc: Doc) -> Passage:
    llm, _, prompt_encoder = pipe.adapted_llm()
    (passage,) = pipe._passages([doc], llm, prompt_encoder)
    return passage


def shared(pipe: RAIT, passage: Passage, text: str) -> Tuple[Dict[str, Any], int, int]:
    """All types behind one encoding."""
    llm, view, prompt_encoder = pipe.adapted_llm()
    decoder = DecodingEngine(llm, view, max_slots=pipe.max_batch_tokens)
    (answers,) = decoder.run([pipe._request(prompt_encoder, passage, text, pipe._budget(llm))])
    return answers, decoder.tokens, decoder.passes


def again(pipe: RAIT, passage: Passage, text: str) -> Tuple[Dict[str, Any], int, int]:
    """One type after the other, each with an encoding of its own."""
    llm, view, prompt_encoder = pipe.adapted_llm()
    decoder = DecodingEngine(llm, view, max_slots=pipe.max_batch_tokens)
    answers: Dict[str, Any] = {}
    for label in passage.labels:
        answers.update(decoder.run([one(pipe, passage, text, label)])[0])
    return answers, decoder.tokens, decoder.passes


def again_batched(pipe: RAIT, passage: Passage, text: str) -> Tuple[Dict[str, Any], int, int]:
    """All types in one batch, each with an encoding of its own."""
    llm, view, prompt_encoder = pipe.adapted_llm()
    decoder = DecodingEngine(llm, view, max_slots=1_000_000)
    answers: Dict[str, Any] = {}
    for found in decoder.run([one(pipe, passage, text, label) for label in passage.labels]):
        answers.update(found)
    return answers, decoder.tokens, decoder.passes


def one(pipe: RAIT, passage: Passage, text: str, label: str) -> Any:
    _, _, prompt_encoder = pipe.adapted_llm()
    prompt = prompt_encoder.encode(passage.text, passage.selected.examples, label)
    return ask_types(prompt_encoder, {label: prompt}, text, passage.bounds, pipe.decoding_settings)


def places(answers: Dict[str, Any]) -> Dict[str, Any]:
    return {label: [answer.places for answer in listed] for label, listed in answers.items()}


WAYS: Dict[str, Way] = {"shared": shared, "again": again, "again, batched": again_batched}


if __name__ == "__main__":
    torch.set_grad_enabled(False)
    typer.run(main)
