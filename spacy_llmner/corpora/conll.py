"""Read column files: CoNLL formats with IOB, BIOES or BILUO tags."""

import re
from itertools import chain
from pathlib import Path
from typing import Iterable, Iterator, List, Optional, Set, Tuple

from ..errors import Errors, LLMNERError
from .annotated_text import Offsets, check_label
from .rows import read_lines

# The tokens of a sentence, each with its tag, or with one tag for each layer.
TaggedTokens = List[Tuple[str, ...]]
TAG = re.compile(r"O|[BIESLU]-\S.*")


def read_tagged(
    path: Path, labels: Optional[Set[str]] = None, layers: bool = False
) -> Iterator[Tuple[int, TaggedTokens]]:
    """Read a column file.

    path (Path): The file. Each line has a token in its first column, and a tag in its last column.
    labels (Optional[Set[str]]): The allowed labels. None for any.
    layers (bool): All columns after the token contain tags, one for each layer.
    YIELDS (Tuple[int, TaggedTokens]): For each sentence, the number of its document, and its tokens.
    RAISES (LLMNERError): If a line is malformed.
    """
    document, n_columns = 0, 0
    rows: TaggedTokens = []
    for number, line in read_lines(path):
        # Not stripped on the left: a line that begins with a separator has no token, which is an error.
        columns = line.split("\t") if "\t" in line else re.split(" +", line.rstrip(" "))
        starts_document = columns[0] == "-DOCSTART-"
        if starts_document or not line.strip():
            if rows:
                yield document, rows
            rows = []
            document += starts_document
            continue
        try:
            if len(columns) < 2 or (n_columns and len(columns) != n_columns):
                expected = f"{n_columns} as in the lines before" if n_columns else "at least 2"
                raise ValueError(f"wrong number of columns: {len(columns)}, expected {expected}")
            if not columns[0]:
                raise ValueError("there is no token in the first column")
            tags = [tag.strip() for tag in columns[1 if layers else -1 :]]
            for tag in tags:
                for _, _, label in spans_of([tag]):
                    check_label(label, labels)
        except ValueError as e:
            raise LLMNERError(Errors.E113.format(where=f"{path}:{number}", reason=e)) from None
        n_columns = len(columns)
        rows.append((columns[0], *tags))
    if rows:
        yield document, rows


def spans_of(tags: Iterable[str]) -> Offsets:
    """Convert the tags of a sentence (IOB1, IOB2, BIOES or BILUO) to spans. A span begins at B, S and U,
    and at any other tag that doesn't continue a span with the same label.

    tags (Iterable[str]): The tag of each token, such as "B-ORG".
    RETURNS (Offsets): The spans: the first token, the end token (exclusive) and the label.
    RAISES (ValueError): If a tag is not valid.
    """
    spans: Offsets = []
    open_label = None
    for i, tag in enumerate(tags):
        if not TAG.fullmatch(tag):
            raise ValueError(
                f"unknown tag '{tag}': must be O, or B-, I-, E-, S-, L- or U- and a label"
            )
        prefix, label = tag[0], tag[2:]
        if prefix != "O":
            start = spans.pop()[0] if prefix in "IEL" and label == open_label else i
            spans.append((start, i + 1, label))
        open_label = label if prefix in "BI" else None
    return spans


def spans_of_layers(rows: TaggedTokens) -> Offsets:
    """RETURNS (Offsets): The spans of all layers of a sentence, in tokens."""
    _, *layers = zip(*rows)
    return sorted(set(chain.from_iterable(spans_of(tags) for tags in layers)))
