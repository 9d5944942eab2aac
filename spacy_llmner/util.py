"""Helpers that depend neither on LLMs nor on spaCy."""

import json
import os
import shutil
from contextlib import contextmanager, suppress
from itertools import accumulate
from pathlib import Path
from secrets import token_hex
from typing import Any, Iterator, List, Sequence, Tuple

import numpy as np
from filelock import FileLock

# The first character of a span of text, and one past its last character.
CharSpan = Tuple[int, int]
# Beginning of the name of a scratch folder, and of the file next to it that its process keeps locked.
SCRATCH = ".llmner-"

# White space as in `str.isspace`, and characters without width that occur between words in texts from the
# web: zero-width spaces, byte order marks and direction marks. Joiners are not included, because they
# belong to words in some scripts.
BLANKS = (
    "\t\n\v\f\r\x1c\x1d\x1e\x1f \x85\xa0\u1680\u2000\u2001\u2002\u2003\u2004\u2005\u2006\u2007\u2008"
    "\u2009\u200a\u2028\u2029\u202f\u205f\u3000"
    "\u180e\u200b\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2060\u2066\u2067\u2068\u2069\ufeff"
)


def is_blank(text: str) -> bool:
    """RETURNS (bool): Whether a text consists only of white space and characters without width."""
    return not text.strip(BLANKS)


def trimmed(text: str, start: int, end: int) -> CharSpan:
    """RETURNS (CharSpan): A span of a text without blank characters at its borders. Empty if all of its
    characters are blank.
    """
    span = text[start:end]
    start += len(span) - len(span.lstrip(BLANKS))
    return start, start + len(span.strip(BLANKS))


@contextmanager
def replaced(path: Path, last: str) -> Iterator[Path]:
    """Replace a set of files. The old files stay until all new ones are complete, so that nothing is lost
    if the disk is full.

    path (Path): The folder, which is created if needed. Other files in it stay.
    last (str): The file without which the others can't be read. It is deleted first and written last, so
        that a mixture of old and new files is never read.
    YIELDS (Path): The folder to write the new files to.
    """
    path.mkdir(parents=True, exist_ok=True)
    with scratch_folder(path) as folder:
        yield folder
        written = sorted(folder.iterdir(), key=lambda file: file.name == last)
        (path / last).unlink(missing_ok=True)
        for file in written:
            os.replace(file, path / file.name)


@contextmanager
def scratch_folder(parent: Path) -> Iterator[Path]:
    """Create a folder for files that are moved to their final place once they are complete. The folder is
    deleted at the end. Leftovers of killed processes in the parent folder are deleted first.

    parent (Path): An existing folder on the disk that the files are moved to.
    YIELDS (Path): The new folder.
    """
    for lock in parent.glob(f"{SCRATCH}*.lock"):
        # If its process is still running, locking raises filelock's Timeout, an OSError.
        with suppress(OSError), FileLock(lock, timeout=0):
            _delete_scratch(lock)
    # The operating system releases the lock of a killed process. A process ID would not work: it can be
    # reused, and on a shared disk it can belong to another machine or container.
    lock = parent / f"{SCRATCH}{token_hex(8)}.lock"
    with FileLock(lock):
        try:
            folder = lock.with_suffix("")
            folder.mkdir()
            yield folder
        finally:
            _delete_scratch(lock)


def replace_json(file: Path, data: Any) -> None:
    """Write a small file to a cache folder, whole or not at all. Errors of the disk are ignored, since the
    data can be computed again.

    file (Path): The file. Its folder is created if needed.
    data (Any): Values that JSON supports.
    """
    with suppress(OSError):
        file.parent.mkdir(parents=True, exist_ok=True)
        with scratch_folder(file.parent) as folder:
            written = folder / file.name
            written.write_text(json.dumps(data), encoding="utf8")
            os.replace(written, file)


def _delete_scratch(lock: Path) -> None:
    # The lock goes last, so that the next run tries again if something can't be deleted now. On Windows,
    # where it can't be deleted while it is locked, filelock deletes it afterwards.
    with suppress(OSError):
        folder = lock.with_suffix("")
        if folder.exists():
            shutil.rmtree(folder)
        lock.unlink(missing_ok=True)


def batches_by_length(lengths: Sequence[int], max_size: int) -> List[List[int]]:
    """Group texts of similar length, so that batches contain little padding.

    lengths (Sequence[int]): Length of each text, in tokens or words.
    max_size (int): Maximum size of a batch in the same unit, padding included. A single text can
        exceed it.
    RETURNS (List[List[int]]): For each batch, the indices of its texts. The batch of the longest texts
        comes first, so that a process without enough memory fails early.
    """
    batches: List[List[int]] = []
    for i in sorted(range(len(lengths)), key=lambda i: (lengths[i], i)):
        if batches and lengths[i] * (len(batches[-1]) + 1) <= max_size:
            batches[-1].append(i)
        else:
            batches.append([i])
    return batches[::-1]


def padded_positions(lengths: Sequence[int], width: int) -> np.ndarray:
    """Find the places of sequences in a padded batch, so that one index call reads or writes all of them.

    lengths (Sequence[int]): Length of each sequence.
    width (int): Length of a row of the batch.
    RETURNS (ndarray): int64, shape (sum of lengths,): the index of each element in the batch, if its rows
        are concatenated.
    """
    sizes = np.asarray(lengths, dtype=np.int64)
    shifts = np.arange(len(sizes)) * width - (np.cumsum(sizes) - sizes)
    return np.arange(sizes.sum()) + np.repeat(shifts, sizes)


def split(array: np.ndarray, lengths: Sequence[int]) -> List[np.ndarray]:
    """Split an array along its first axis. Faster than `numpy.split` for many parts.

    lengths (Sequence[int]): Length of each part.
    RETURNS (List[ndarray]): The parts, which share the memory of the array.
    """
    ends = list(accumulate(lengths))
    return [array[end - n : end] for n, end in zip(lengths, ends)]
