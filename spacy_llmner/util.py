"""Helpers that depend neither on LLMs nor on spaCy."""

import os
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Iterator, List, Sequence, Tuple

# The first character of a span of text, and one past its last character.
CharSpan = Tuple[int, int]


@contextmanager
def replaced(path: Path, last: str) -> Iterator[Path]:
    """Replace a set of files. The old files stay until all new ones are complete, so that nothing is lost
    if the disk is full.

    path (Path): The folder, which is created if needed. Other files in it stay.
    last (str): The file without which the others can't be read. It is deleted first and written last, so
        that old and new files are never read in combination.
    YIELDS (Path): The folder to write the new files to.
    """
    path.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(dir=path, prefix="new-") as folder:
        yield Path(folder)
        written = sorted(Path(folder).iterdir(), key=lambda file: file.name == last)
        (path / last).unlink(missing_ok=True)
        for file in written:
            os.replace(file, path / file.name)


def batches_by_length(lengths: Sequence[int], max_size: int) -> List[List[int]]:
    """Group texts of similar length, so that batches contain little padding.

    lengths (Sequence[int]): Length of each text, in tokens or words.
    max_size (int): Maximum size of a batch in the same unit, padding included. A single text can
        exceed it.
    RETURNS (List[List[int]]): For each batch, the indices of its texts. The batch of the longest texts
        comes first, so that a lack of memory shows early.
    """
    batches: List[List[int]] = []
    for i in sorted(range(len(lengths)), key=lambda i: (lengths[i], i)):
        if batches and lengths[i] * (len(batches[-1]) + 1) <= max_size:
            batches[-1].append(i)
        else:
            batches.append([i])
    return batches[::-1]
