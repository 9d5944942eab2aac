"""Turn the data files of the PaDeLLM-NER release into JSONL for convert.py.

    python scripts/from_padellm.py test.json test.jsonl

A line holds a JSON array: the text, then [start, end, mention, label] for each mention. Indices count
words between spaces or characters, and the end is the last one or one past it: which of these holds is
found out from the mentions' strings, and must hold for the whole file.
"""

import json
from pathlib import Path
from typing import Any, Callable, Iterator, List, Optional, Tuple

import typer

Bounds = Callable[[str, int, int], Optional[Tuple[int, int]]]


def characters(past: int) -> Bounds:
    """past (int): 1 if the end is the last character, 0 if it is one past it."""
    return lambda text, start, end: (start, end + past)


def words(past: int) -> Bounds:
    """past (int): 1 if the end is the last word, 0 if it is one past it."""

    def bounds(text: str, start: int, end: int) -> Optional[Tuple[int, int]]:
        pieces = text.split(" ")
        if not 0 <= start < end + past <= len(pieces):
            return None
        before = sum(len(piece) + 1 for piece in pieces[:start])
        inside = sum(len(piece) + 1 for piece in pieces[start : end + past])
        return before, before + inside - 1

    return bounds


READINGS = {
    "words, last one": words(1),
    "words, one past": words(0),
    "characters, last one": characters(1),
    "characters, one past": characters(0),
}


def main(path: Path, output: Path) -> None:
    rows = list(read_rows(path))
    fitting = [name for name, b in READINGS.items() if all(fits(row, b) for row in rows)]
    if not fitting:
        # The line at which the best reading breaks off.
        line = max(
            next(n for n, row in enumerate(rows, 1) if not fits(row, b)) for b in READINGS.values()
        )
        typer.echo(f"{path}:{line}: a mention is not what stands at its indices", err=True)
        raise typer.Exit(1)
    bounds = READINGS[fitting[0]]
    n_mentions = 0
    with output.open("w", encoding="utf8") as f:
        for text, *mentions in rows:
            spans = {(*where(text, m, bounds), m[3]) for m in mentions}
            n_mentions += len(spans)
            found = [{"start": s, "end": e, "label": label} for s, e, label in sorted(spans)]
            f.write(json.dumps({"text": text, "spans": found}, ensure_ascii=False) + "\n")
    typer.echo(f"{len(rows)} texts, {n_mentions} mentions; indices are {fitting[0]}")


def read_rows(path: Path) -> Iterator[List[Any]]:
    # Some texts hold line separators of Unicode, at which splitlines() would cut them.
    for n, line in enumerate(path.read_text(encoding="utf8").split("\n"), 1):
        if line.strip():
            row = json.loads(line)
            if not (isinstance(row, list) and row and isinstance(row[0], str)):
                typer.echo(f"{path}:{n}: no array that begins with a text", err=True)
                raise typer.Exit(1)
            yield row


def where(text: str, mention: List[Any], bounds: Bounds) -> Tuple[int, int]:
    """RETURNS (Tuple[int, int]): The mention's characters, without white space around them."""
    found = bounds(text, int(mention[0]), int(mention[1]))
    assert found is not None
    start, end = found
    inside = text[start:end]
    return start + len(inside) - len(inside.lstrip()), end - len(inside) + len(inside.rstrip())


def fits(row: List[Any], bounds: Bounds) -> bool:
    text, *mentions = row
    for start, end, string, _ in mentions:
        found = bounds(text, int(start), int(end))
        if found is None or text[found[0] : found[1]] != string:
            return False
    return True


if __name__ == "__main__":
    typer.run(main)
