"""F1 on text that the LLM generated, with and without training on such text.

    python -m benchmarks.ember.generated corpus/en_train.spacy corpus/en_test.spacy

The .spacy files are those of `python -m spacy project run all`. An annotator, the finished-text preset, is
trained on the sentences of the corpus and on documents joined from them, and adds silver labels to the
LLM's continuations of training and test sentences. Then the default preset without its prefix is trained
for the same number of steps on three sets: the sentences; the sentences and the documents; the sentences
and the generated training texts. On generated text, only the words of the LLM are scored, not the prompt.
Without a prefix, this preset finds the same entities in finished text as when streaming
(tests/ember_probe/test_stream.py), so finished text is scored here.
"""

import random
import statistics
import time
from pathlib import Path
from typing import Any, Dict, List

import spacy
import torch
import typer
from spacy.language import Language
from spacy.tokens import Doc
from spacy.training import Example
from spacy.util import fix_random_seed
from thinc.api import Adam
from thinc.schedules import warmup_linear

from benchmarks.ember.quality import batches
from benchmarks.lib.common import read_examples, save, strict_scores
from spacy_llmner.ember_probe.generated_data import generate_examples

# Without a prefix, as at the beginning of a stream.
PROBE = {"@architectures": "spacy_llmner.EmberProbe.v1", "prefix": ""}
ANNOTATOR = {**PROBE, "look_right": True, "read_twice": True}
# Sentences per document. A generated text has about the same length.
DOCS_OF = 4


def main(
    train: Path,
    test: Path,
    llm: str = "smollm2-135m-instruct",
    prompts: int = 100,
    test_prompts: int = 50,
    max_new_tokens: int = 60,
    steps: int = 150,
    batch_words: int = 800,
    seeds: int = 3,
) -> None:
    started = time.process_time()
    blank = spacy.blank("en")
    sentences = read_examples(blank, train, sentences=False)
    written_test = read_examples(blank, test, sentences=False)
    documents = join_sentences(sentences)
    annotator = train_preset(sentences + documents, ANNOTATOR, llm, 0, steps, batch_words)
    ember: Any = annotator.get_pipe("ember_probe")
    print("annotator", written := score(annotator, written_test), flush=True)
    generated: Dict[str, List[Example]] = {}
    sizes: Dict[str, Dict[str, int]] = {}
    for part, examples, n in (("train", sentences, prompts), ("test", written_test, test_prompts)):
        texts = [eg.reference.text for eg in examples]
        random.Random(0).shuffle(texts)
        generated[part] = list(
            generate_examples(
                ember.shared_llm(),
                texts[:n],
                annotator,
                max_new_tokens=max_new_tokens,
                batch_size=16,
            )
        )
        sizes[part] = counts(generated[part])
        print(part, sizes[part], time.process_time() - started, flush=True)
    sets = {
        "written sentences": sentences,
        "and documents made of them": sentences + documents,
        "and generated text": sentences + generated["train"],
    }
    rows = []
    for name, examples in sets.items():
        runs = []
        for seed in range(seeds):
            nlp = train_preset(examples, PROBE, llm, seed, steps, batch_words)
            run = {
                "generated": score(nlp, generated["test"]),
                "written": score(nlp, written_test),
            }
            runs.append({"seed": seed, **run})
            print(name, runs[-1], time.process_time() - started, flush=True)
        rows.append({"trained_on": name, "docs": len(examples), "runs": runs, **summary(runs)})
    save(
        "ember_generated",
        {
            "llm": llm,
            "annotator": "finished-text preset",
            "annotator_written": written,
            "generated_train": sizes["train"],
            "generated_test": sizes["test"],
            "steps": steps,
            "batch_words": batch_words,
            "rows": rows,
        },
    )


def train_preset(
    examples: List[Example],
    model: Dict[str, Any],
    llm: str,
    seed: int,
    steps: int,
    batch_words: int,
) -> Language:
    """Train a preset with the settings of configs/ember_probe.cfg.

    RETURNS (Language): The pipeline, with the averaged weights.
    """
    fix_random_seed(seed)
    rng = random.Random(seed)
    nlp = spacy.blank("en")
    nlp.add_pipe("ember_probe", config={"llm": {"name": llm}, "model": model})
    fresh = [Example(without_annotation(eg.reference), eg.reference) for eg in examples]
    nlp.initialize(lambda: fresh)
    schedule = warmup_linear(0.003, steps // 10, steps + 1)
    optimizer = Adam(schedule, beta1=0.9, beta2=0.99, L2=0.02, grad_clip=1.0, use_averages=True)
    waiting: List[List[Example]] = []
    for _ in range(steps):
        waiting = waiting or batches(fresh, batch_words, rng)
        nlp.update(waiting.pop(), sgd=optimizer, drop=0.4)
        optimizer.step_schedules()
    pipe: Any = nlp.get_pipe("ember_probe")
    for name, p in pipe.module.named_parameters():
        p.data.copy_(optimizer.averages[pipe.model.id, name])
    return nlp


def join_sentences(examples: List[Example]) -> List[Example]:
    """Join consecutive sentences into documents."""
    groups = [examples[k : k + DOCS_OF] for k in range(0, len(examples), DOCS_OF)]
    docs = [Doc.from_docs([eg.reference for eg in group]) for group in groups]
    return [Example(without_annotation(doc), doc) for doc in docs]


def without_annotation(doc: Doc) -> Doc:
    """RETURNS (Doc): A Doc with the same words."""
    spaces = [bool(token.whitespace_) for token in doc]
    return Doc(doc.vocab, words=[token.text for token in doc], spaces=spaces)


def score(nlp: Language, examples: List[Example]) -> Dict[str, float]:
    """Compute strict scores. Entities that contain a word with a missing annotation, such as those in a
    prompt, are dropped before."""
    docs = list(nlp.pipe([without_annotation(eg.reference) for eg in examples], batch_size=64))
    for doc, eg in zip(docs, examples):
        known = [token.ent_iob != 0 for token in eg.reference]
        doc.ents = [ent for ent in doc.ents if all(known[ent.start : ent.end])]
    return strict_scores([eg.reference for eg in examples], docs)


def counts(examples: List[Example]) -> Dict[str, int]:
    refs = [eg.reference for eg in examples]
    words = sum(1 for ref in refs for token in ref if token.ent_iob != 0)
    return {"texts": len(refs), "words": words, "entities": sum(len(ref.ents) for ref in refs)}


def summary(runs: List[Dict[str, Any]]) -> Dict[str, float]:
    out = {}
    for part in ("generated", "written"):
        f1 = [run[part]["f"] for run in runs]
        out.update({f"{part}_f1_mean": statistics.mean(f1), f"{part}_f1_spread": max(f1) - min(f1)})
    return out


if __name__ == "__main__":
    torch.set_num_threads(1)
    typer.run(main)
