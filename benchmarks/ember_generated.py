"""F1 on text that the LLM wrote, before and after training on such text.

    python benchmarks/ember_generated.py corpus/en_train.spacy corpus/en_test.spacy

The .spacy files are those of `python -m spacy project run all`. An annotator, the finished-text preset,
is trained on the written sentences and on documents made of them, and gives the LLM's continuations of
train and test sentences their silver labels. Then the default preset, but without its prefix, is trained
in as many steps on three sets: the written sentences, those and the documents made of them, those and the
generated train part. Only what the LLM wrote counts on generated text. Without a prefix this preset finds
in finished text what it finds while streaming (tests/ember_probe/test_stream.py), so finished text is
scored here.
"""

import random
import statistics
import time
from pathlib import Path
from typing import Any, Dict, List

import spacy
import torch
import typer
from common import read_examples, save, strict_scores
from ember_quality import batches
from spacy.language import Language
from spacy.tokens import Doc
from spacy.training import Example
from spacy.util import fix_random_seed
from thinc.api import Adam
from thinc.schedules import warmup_linear

from spacy_llmner.ember_probe.generated_data import generate_examples

# Nothing is read in front of a text, as when the LLM has just begun to write.
PROBE = {"@architectures": "spacy_llmner.EmberProbe.v1", "prefix": ""}
ANNOTATOR = {**PROBE, "look_right": True, "read_twice": True}
# Sentences of a written document. A generated text is about as long.
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
    vocab_of = spacy.blank("en")
    sentences = read_examples(vocab_of, train, sentences=False)
    written_test = read_examples(vocab_of, test, sentences=False)
    documents = joined(sentences)
    annotator = trained(sentences + documents, ANNOTATOR, llm, 0, steps, batch_words)
    print("annotator", written := scored(annotator, written_test), flush=True)
    generated = {}
    for part, examples, n in (("train", sentences, prompts), ("test", written_test, test_prompts)):
        texts = [eg.reference.text for eg in examples]
        random.Random(0).shuffle(texts)
        made = generate_examples(
            annotator.get_pipe("ember_probe").shared_llm(),
            texts[:n],
            annotator,
            max_new_tokens=max_new_tokens,
            batch_size=16,
        )
        generated[part] = list(made)
        print(part, size := counts(generated[part]), time.process_time() - started, flush=True)
        generated[f"{part}_size"] = size
    sets = {
        "written sentences": sentences,
        "and documents made of them": sentences + documents,
        "and generated text": sentences + generated["train"],
    }
    rows = []
    for name, examples in sets.items():
        runs = []
        for seed in range(seeds):
            nlp = trained(examples, PROBE, llm, seed, steps, batch_words)
            run = {
                "generated": scored(nlp, generated["test"]),
                "written": scored(nlp, written_test),
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
            "generated_train": generated["train_size"],
            "generated_test": generated["test_size"],
            "steps": steps,
            "batch_words": batch_words,
            "rows": rows,
        },
    )


def trained(
    examples: List[Example],
    model: Dict[str, Any],
    llm: str,
    seed: int,
    steps: int,
    batch_words: int,
) -> Language:
    """Train a preset with the settings of configs/ember_probe.cfg. The averaged weights stay in place."""
    fix_random_seed(seed)
    rng = random.Random(seed)
    nlp = spacy.blank("en")
    nlp.add_pipe("ember_probe", config={"llm": {"name": llm}, "model": model})
    fresh = [Example(copied(eg.reference), eg.reference) for eg in examples]
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


def joined(examples: List[Example]) -> List[Example]:
    """Make documents of consecutive sentences."""
    groups = [examples[k : k + DOCS_OF] for k in range(0, len(examples), DOCS_OF)]
    docs = [Doc.from_docs([eg.reference for eg in group]) for group in groups]
    return [Example(copied(doc), doc) for doc in docs]


def copied(doc: Doc) -> Doc:
    """RETURNS (Doc): Only the words."""
    spaces = [bool(token.whitespace_) for token in doc]
    return Doc(doc.vocab, words=[token.text for token in doc], spaces=spaces)


def scored(nlp: Language, examples: List[Example]) -> Dict[str, float]:
    """Score entities that have no word about which nothing is known, such as those of a prompt."""
    docs = list(nlp.pipe([copied(eg.reference) for eg in examples], batch_size=64))
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
