"""The effect of `padellm_ner`'s constraint: the same weights decode with and without it.

    python -m benchmarks.padellm.constraint conll-sentences training/padellm_ner/model-best test.spacy

The pipeline must be trained with `loss = "raw"`, as published. Both ways decode greedily, with the
published count, and are scored before deduplication. Without the constraint, only numbers and substrings of
the text count (the paper's filter).
"""

from collections import Counter
from pathlib import Path
from typing import Any, Dict, List, Set, Tuple

import spacy
import torch
import typer

from benchmarks.lib.common import read_examples, save
from benchmarks.padellm.published_inference import GreedyLoop, published_mentions
from benchmarks.padellm.recipe import prf, sample


def main(name: str, pipeline: Path, test: Path, docs: int = 200) -> None:
    nlp = spacy.load(pipeline)
    pipe: Any = nlp.get_pipe("padellm_ner")
    llm, view, prompt_encoder = pipe.adapted_llm()
    loop = GreedyLoop(llm, view)
    examples = sample(read_examples(nlp, test), docs)
    results: Dict[str, Any] = {"set": name, "llm": llm.spec.name, "docs": len(examples)}
    for constrained in (True, False):
        counts: List[Tuple[int, int, int]] = []
        seen: Counter = Counter()
        for eg in examples:
            doc = eg.predicted
            gold = {(ent.label_, ent.text) for ent in eg.reference.ents}
            found: Set[Tuple[str, str]] = set()
            for label, answers in published_mentions(
                pipe, prompt_encoder, doc, loop, constrained=constrained
            ).items():
                inside = [a for a in answers if a and a in doc.text]
                seen.update(written=len(answers), not_in_text=len(answers) - len(inside))
                found.update((label, answer) for answer in inside)
            counts.append((len(gold & found), len(found), len(gold)))
        p, r, f = prf(counts)
        results["constrained" if constrained else "free"] = {"p": p, "r": r, "set_f": f, **seen}
        print(constrained, p, r, f, dict(seen), flush=True)
    save(f"padellm_constraint_{name}", results)


if __name__ == "__main__":
    torch.set_num_threads(1)
    typer.run(main)
