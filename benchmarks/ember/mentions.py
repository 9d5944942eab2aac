"""F1 of ember_probe's mode "mentions", which finds names of any kind without labels: spans only.

    python scripts/matcher_data.py DATA CORPORA
    python -m benchmarks.ember.mentions CORPORA/test corpus/en_test.spacy smollm2-135m-instruct

The annotators of each corpus looked for some labels only, so a name of another kind counts as wrong.
MENTION_BIAS was chosen on other sentences: the training part of our corpus, and CoNLL-2003 (dev).
"""

from pathlib import Path
from typing import Any, Dict

import spacy
import typer

from benchmarks.ember.labels_in_words import Counts
from benchmarks.lib.common import read_examples, save


def main(tests: Path, own: Path, llm: str, limit: int = 300) -> None:
    corpora = {path.stem: path for path in sorted(tests.glob("*.spacy"))} | {"own": own}
    rows: Dict[str, Any] = {}
    for name, path in corpora.items():
        nlp = spacy.blank("en")
        nlp.add_pipe("ember_probe", config={"llm": {"name": llm}, "mode": "mentions"})
        examples = read_examples(nlp, path)[:limit]
        counts = Counts()
        for doc, eg in zip(nlp.pipe(eg.predicted for eg in examples), examples):
            found, gold = (
                {(e.start, e.end) for e in ents} for ents in (doc.ents, eg.reference.ents)
            )
            counts.add(found, gold)
        rows[name] = {
            "texts": len(examples),
            "p": 100 * counts.correct / max(counts.found, 1),
            "r": 100 * counts.correct / max(counts.annotated, 1),
            "f": counts.f,
        }
        print(name, rows[name], flush=True)
    save(f"ember_mentions_{llm}", {"llm": llm, "corpora": rows})


if __name__ == "__main__":
    typer.run(main)
