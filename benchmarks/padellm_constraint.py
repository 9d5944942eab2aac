"""What the constraint of `padellm_ner` is worth: the same weights write with it and without.

    python benchmarks/padellm_constraint.py conll-sentences training/padellm_ner/model-best test.spacy

The pipeline has to be trained with `loss = "raw"`, as published. Both are greedy, with the published
count and before de-duplication; what was written without the constraint has to be a number, or a
substring of the text, to count (the paper's own filter).
"""

from collections import Counter
from pathlib import Path
from typing import Any, Dict, List, Tuple

import spacy
import torch
import typer
from common import read_examples, save
from padellm_quality import prf, sample
from published_way import LeanLoop, published


def main(name: str, pipeline: Path, test: Path, docs: int = 200) -> None:
    nlp = spacy.load(pipeline)
    pipe: Any = nlp.get_pipe("padellm_ner")
    llm, view, prompt_encoder = pipe.adapted_llm()
    loop = LeanLoop(llm, view)
    examples = sample(read_examples(nlp, test), docs)
    results: Dict[str, Any] = {"set": name, "llm": llm.spec.name, "docs": len(examples)}
    for constrained in (True, False):
        counts: List[Tuple[int, int, int]] = []
        seen: Counter = Counter()
        for eg in examples:
            doc = eg.predicted
            gold = {(ent.label_, ent.text) for ent in eg.reference.ents}
            found = set()
            for label, answers in published(
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
