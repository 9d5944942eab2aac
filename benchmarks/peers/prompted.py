"""Labels in words without training: `ember_probe`, and spacy-llm with the same local LLM.

    pip install spacy-llm==0.7.4
    python -m benchmarks.peers.prompted smollm2-135m-instruct qwen2.5-coder-0.5b-instruct

spacy-llm has no model class for these LLMs (its extra for local ones asks for torch below 2.0), so it gets
the LLM as a function: the chat template, then transformers' `generate`, greedy. Its tasks are
"spacy.NER.v2", which asks for a list for each label, and "spacy.NER.v3", which asks for reasons, too. The
texts are sentences of this project's English test corpus.
"""

import time
from typing import Any, Callable, Dict, Iterable, List

import spacy
import torch
import typer
from spacy.language import Language
from transformers import AutoModelForCausalLM, AutoTokenizer

from benchmarks.lib.common import save, strict_scores
from benchmarks.scaling.run import LABEL_WORDS, own_corpus, without_annotation
from spacy_llmner.errors import LLMNERError
from spacy_llmner.llm.location import resolve_path

MAX_NEW_TOKENS = 128


def main(llms: List[str], sentences: int = 20) -> None:
    nlp = spacy.blank("en")
    docs = own_corpus(nlp, sentences)["test"]
    rows: List[Dict[str, Any]] = []
    for llm in llms:
        pipelines: Dict[str, Callable[[], Language]] = {
            "spacy-llm, NER.v2": lambda llm=llm: spacy_llm(llm, "spacy.NER.v2"),
            "spacy-llm, NER.v3": lambda llm=llm: spacy_llm(llm, "spacy.NER.v3"),
            "ember_probe": lambda llm=llm: ember_probe(llm, ask_llm=False),
            "ember_probe, ask_llm": lambda llm=llm: ember_probe(llm, ask_llm=True),
        }
        for name, make in pipelines.items():
            try:
                made = make()
                list(made.pipe(["This is read first."]))
            except LLMNERError as err:  # no weights for this LLM
                print(name, llm, err)
                continue
            started = time.process_time()
            found = list(made.pipe([without_annotation(made, doc) for doc in docs]))
            seconds = time.process_time() - started
            scores = strict_scores(docs, found)
            rows.append(
                {"system": name, "llm": llm, "seconds_per_text": seconds / len(docs), **scores}
            )
            print(rows[-1], flush=True)
    entities = sum(len(doc.ents) for doc in docs)
    save("prompted", {"sentences": len(docs), "entities": entities, "rows": rows})


def spacy_llm(llm: str, task: str) -> Language:
    from spacy_llm.registry import registry

    path = resolve_path(llm)
    tokenizer = AutoTokenizer.from_pretrained(path)
    model = AutoModelForCausalLM.from_pretrained(path, torch_dtype=torch.float32).eval()

    def answer(prompt: str) -> str:
        inputs = tokenizer.apply_chat_template(
            [{"role": "user", "content": prompt}], add_generation_prompt=True, return_tensors="pt"
        )
        with torch.inference_mode():
            out = model.generate(
                inputs,
                attention_mask=torch.ones_like(inputs),
                max_new_tokens=MAX_NEW_TOKENS,
                do_sample=False,
                temperature=None,
                top_p=None,
                pad_token_id=tokenizer.eos_token_id,
            )
        return tokenizer.decode(out[0, inputs.shape[1] :], skip_special_tokens=True)

    @registry.llm_models("benchmarks.local.v1")
    def local() -> Callable[[Iterable[Iterable[str]]], Iterable[Iterable[str]]]:
        def answers(prompts: Iterable[Iterable[str]]) -> Iterable[Iterable[str]]:
            return [[answer(prompt) for prompt in of_doc] for of_doc in prompts]

        return answers

    nlp = spacy.blank("en")
    names = {words: label for label, words in LABEL_WORDS.items()}
    config = {"task": {"@llm_tasks": task, "labels": list(names)}, "save_io": False}
    nlp.add_pipe("llm", config={**config, "model": {"@llm_models": "benchmarks.local.v1"}})
    return with_labels(nlp, names)


def ember_probe(llm: str, ask_llm: bool) -> Language:
    nlp = spacy.blank("en")
    model = {
        "@architectures": "spacy_llmner.EmberMatch.v1",
        "label_words": LABEL_WORDS,
    }
    config = {"llm": {"name": llm}, "labels": list(LABEL_WORDS), "model": model, "ask_llm": ask_llm}
    nlp.add_pipe("ember_probe", config=config)
    return nlp


def with_labels(nlp: Language, names: Dict[str, str]) -> Language:
    """Give entities the corpus' labels in place of their words."""

    @Language.component("corpus_labels")
    def corpus_labels(doc: Any) -> Any:
        spans = [doc[ent.start : ent.end] for ent in doc.ents]
        labels = [names.get(ent.label_, ent.label_) for ent in doc.ents]
        doc.set_ents(
            [spacy.tokens.Span(doc, s.start, s.end, label=la) for s, la in zip(spans, labels)]
        )
        return doc

    nlp.add_pipe("corpus_labels")
    return nlp


if __name__ == "__main__":
    torch.set_num_threads(1)
    typer.run(main)
