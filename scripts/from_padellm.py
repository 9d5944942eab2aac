"""Convert the data files of the PaDeLLM-NER release to JSONL for convert.py.

    python scripts/from_padellm.py test.json test.jsonl

Each line of a data file is a JSON array: the text, and [start, end, mention, label] for each mention. The
indices can count characters, or words separated by spaces, and the end can be inclusive or exclusive. The
script detects this by comparing with the strings of the mentions. All lines must use the same indexing.
"""

import json
from pathlib import Path
from typing import Any, Callable, Iterator, List, Optional, Tuple

import typer

Bounds = Callable[[str, int, int], Optional[Tuple[int, int]]]


def characters(past: int) -> Bounds:
    """RETURNS (Bounds): Reads indices of characters. past (int): 1 if the end is inclusive, 0 if
    exclusive."""
    return lambda text, start, end: (start, end + past)


def words(past: int) -> Bounds:
    """RETURNS (Bounds): Reads indices of words. past (int): 1 if the end is inclusive, 0 if exclusive."""

    def bounds(text: str, start: int, end: int) -> Optional[Tuple[int, int]]:
        pieces = text.split(" ")
        if not 0 <= start < end + past <= len(pieces):
            return None
        before = sum(len(piece) + 1 for piece in pieces[:start])
        inside = sum(len(piece) + 1 for piece in pieces[start : end + past])
        return before, before + inside - 1

    return bounds


INDEXINGS = {
    "words, inclusive end": words(1),
    "words, exclusive end": words(0),
    "characters, inclusive end": characters(1),
    "characters, exclusive end": characters(0),
}


def main(path: Path, output: Path) -> None:
    """Convert a data file of the PaDeLLM-NER release to JSONL."""
    rows = list(read_rows(path))
    fitting = [name for name, b in INDEXINGS.items() if all(fits(row, b) for row in rows)]
    if not fitting:
        # Report the first line that doesn't fit, for the indexing that fits the most lines.
        line = max(
            next(n for n, row in enumerate(rows, 1) if not fits(row, b)) for b in INDEXINGS.values()
        )
        typer.echo(f"{path}:{line}: the text at a mention's indices differs from it", err=True)
        raise typer.Exit(1)
    bounds = INDEXINGS[fitting[0]]
    n_mentions = 0
    with output.open("w", encoding="utf8") as f:
        for text, *mentions in rows:
            spans = {(*offsets(text, m, bounds), m[3]) for m in mentions}
            n_mentions += len(spans)
            found = [{"start": s, "end": e, "label": label} for s, e, label in sorted(spans)]
            f.write(json.dumps({"text": text, "spans": found}, ensure_ascii=False) + "\n")
    typer.echo(f"{len(rows)} texts, {n_mentions} mentions; indices are {fitting[0]}")


def read_rows(path: Path) -> Iterator[List[Any]]:
    """YIELDS (List[Any]): The array of each line."""
    # Some texts contain Unicode line separators, at which splitlines() would split them.
    for n, line in enumerate(path.read_text(encoding="utf8").split("\n"), 1):
        if line.strip():
            row = json.loads(line)
            if not (isinstance(row, list) and row and isinstance(row[0], str)):
                typer.echo(f"{path}:{n}: not an array that begins with a text", err=True)
                raise typer.Exit(1)
            yield row


def offsets(text: str, mention: List[Any], bounds: Bounds) -> Tuple[int, int]:
    """RETURNS (Tuple[int, int]): The first character of a mention and one past its last, without white
    space around it."""
    found = bounds(text, int(mention[0]), int(mention[1]))
    assert found is not None
    start, end = found
    inside = text[start:end]
    return start + len(inside) - len(inside.lstrip()), end - len(inside) + len(inside.rstrip())


def fits(row: List[Any], bounds: Bounds) -> bool:
    """RETURNS (bool): Whether the indices of all mentions of a line fit their strings."""
    text, *mentions = row
    for start, end, string, _ in mentions:
        found = bounds(text, int(start), int(end))
        if found is None or text[found[0] : found[1]] != string:
            return False
    return True


if __name__ == "__main__":
    typer.run(main)
