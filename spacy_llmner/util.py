"""Helpers that know nothing of LLMs or spaCy."""

import os
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Iterator, List, Sequence


@contextmanager
def replaced(path: Path, last: str) -> Iterator[Path]:
    """Write files that go together: those that were there stay until all others are complete, so that a
    full disk costs nothing.

    path (Path): The folder, which is made. Other files in it stay.
    last (str): The file without which the others can't be read. It is not there while they are replaced,
        so that old and new are never read together.
    YIELDS (Path): Where to write them.
    """
    path.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(dir=path, prefix="new-") as folder:
        yield Path(folder)
        written = sorted(Path(folder).iterdir(), key=lambda file: file.name == last)
        (path / last).unlink(missing_ok=True)
        for file in written:
            os.replace(file, path / file.name)


def batches_by_length(lengths: Sequence[int], max_size: int) -> List[List[int]]:
    """Group texts of similar length, so that little of a padded batch is padding.

    lengths (Sequence[int]): Length of each text, in tokens or words.
    max_size (int): Length of a padded batch at most, unless it is a single text.
    RETURNS (List[List[int]]): Indices of the texts. The longest batch comes first, so that a lack of memory
        shows at once.
    """
    batches: List[List[int]] = []
    for i in sorted(range(len(lengths)), key=lambda i: (lengths[i], i)):
        if batches and lengths[i] * (len(batches[-1]) + 1) <= max_size:
            batches[-1].append(i)
        else:
            batches.append([i])
    return batches[::-1]
