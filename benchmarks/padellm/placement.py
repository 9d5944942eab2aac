"""The share of mentions whose offsets can be recovered from their strings alone.

    python -m benchmarks.padellm.placement NAME test.spacy [--spans-key KEY] [--white-space]

The string of each gold mention is assigned to an occurrence in the text as `padellm_ner` does, label by
label and in the order of the text.
"""

import re
from pathlib import Path
from typing import Dict, List, Optional, Tuple

import spacy
import typer
from spacy.tokens import DocBin

from benchmarks.lib.common import save
from spacy_llmner.padellm_ner.decoding import DecodedMention
from spacy_llmner.pipeline.spans import assign_occurrences


def main(
    name: str,
    path: Path,
    spans_key: Optional[str] = None,
    lang: str = "en",
    white_space: bool = typer.Option(
        False, help="Split words at white space, as in GENIA, instead of using the Doc's tokens"
    ),
) -> None:
    total = monotone = first = 0
    for doc in DocBin().from_disk(path).get_docs(spacy.blank(lang).vocab):
        words = [(token.idx, token.idx + len(token)) for token in doc]
        if white_space:
            words = [match.span() for match in re.finditer(r"\S+", doc.text)]
        by_label: Dict[str, List[Tuple[int, int]]] = {}
        for span in doc.ents if spans_key is None else doc.spans.get(spans_key, []):
            by_label.setdefault(span.label_, []).append((span.start_char, span.end_char))
        for label, gold in by_label.items():
            gold.sort(key=lambda m: (m[0], -m[1]))
            mentions = [
                DecodedMention(label, k, occurrences(doc.text, words, doc.text[start:end]), [], [])
                for k, (start, end) in enumerate(gold, 1)
            ]
            total += len(gold)
            monotone += sum(
                found == expected for found, expected in zip(assign_occurrences(mentions), gold)
            )
            first += sum(m.occurrences[0] == expected for m, expected in zip(mentions, gold))
    save(
        f"padellm_placement_{name}",
        {
            "set": name,
            "mentions": total,
            "first_occurrence_percent": 100 * first / total,
            "monotone_percent": 100 * monotone / total,
        },
    )


def occurrences(text: str, words: List[Tuple[int, int]], string: str) -> List[Tuple[int, int]]:
    """RETURNS (List[Tuple[int, int]]): Start and end of each occurrence of a string between word
    boundaries."""
    starts, ends = {start for start, _ in words}, {end for _, end in words}
    out = []
    at = text.find(string)
    while at >= 0:
        if at in starts and at + len(string) in ends:
            out.append((at, at + len(string)))
        at = text.find(string, at + 1)
    return out


if __name__ == "__main__":
    typer.run(main)
