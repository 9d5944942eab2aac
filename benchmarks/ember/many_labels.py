"""Words per second of `ember_probe` by the number of labels in words.

    python -m benchmarks.ember.many_labels corpus/en_test.spacy

All numbers of labels run in one process, one after the other in each round, so that other load on the
machine slows all of them. The labels are the nouns of a list and made-up combinations of them.
"""

import statistics
from itertools import product
from pathlib import Path
from typing import Any, Dict, List

import spacy
import typer

from benchmarks.lib.common import clock_of, read_examples, save

NUMBERS = (2, 50, 500)
NOUNS = [
    "person",
    "city",
    "company",
    "river",
    "award",
    "ship",
    "festival",
    "book",
    "song",
    "film",
    "disease",
    "plant",
    "animal",
    "bridge",
    "museum",
    "school",
    "planet",
    "language",
    "law",
    "weapon",
    "car",
    "game",
    "drug",
    "protein",
    "metal",
]


def labels_of(number: int) -> List[str]:
    pairs = (f"{first} {second}" for first, second in product(NOUNS, NOUNS))
    return [*NOUNS, *pairs][:number]


def main(corpus: Path, llm: str = "smollm2-135m-instruct", rounds: int = 7) -> None:
    nlp = spacy.blank("en")
    ember: Any = nlp.add_pipe("ember_probe", config={"llm": llm, "labels": labels_of(2)})
    texts = [eg.reference.text for eg in read_examples(nlp, corpus)]
    words = sum(len(nlp.make_doc(text)) for text in texts)
    list(nlp.pipe(texts))
    clock = clock_of(ember.shared_llm().device)
    seconds: Dict[int, List[float]] = {number: [] for number in NUMBERS}
    setting: Dict[int, List[float]] = {number: [] for number in NUMBERS}
    for _ in range(rounds):
        for number in NUMBERS:
            start = clock()
            ember.set_labels(labels_of(number))
            changed = clock()
            list(nlp.pipe(texts))
            seconds[number].append(clock() - changed)
            setting[number].append(changed - start)
    base = seconds[NUMBERS[0]]
    rows = []
    for number in NUMBERS:
        ratios = [two / these for two, these in zip(base, seconds[number])]
        rows.append(
            {
                "labels": number,
                "words_per_s": words / statistics.median(seconds[number]),
                "speed_over_2_labels": statistics.median(ratios),
                "range": [min(ratios), max(ratios)],
                "first_set_labels_s": setting[number][0],
            }
        )
        print(rows[-1], flush=True)
    save("ember_many_labels", {"llm": llm, "texts": len(texts), "words": words, "rows": rows})


if __name__ == "__main__":
    typer.run(main)
