"""Files of a folder that are replaced together, or not at all."""

import os
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Iterator


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
