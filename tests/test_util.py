"""Blank characters, and new files: what killed processes leave is deleted, and nothing else."""

import subprocess
import sys
import unicodedata

import numpy as np
import pytest

from spacy_llmner.util import (
    BLANKS,
    SCRATCH,
    is_blank,
    padded_positions,
    replaced,
    scratch_folder,
    trimmed,
)

# Writes half a file, says so, and waits until its input is closed.
WRITER = """
import sys
from pathlib import Path
from spacy_llmner.util import replaced

with replaced(Path(sys.argv[1]), last="b") as folder:
    (folder / "a").write_text("from the writer")
    print("writing", flush=True)
    sys.stdin.read()
    (folder / "b").write_text("from the writer")
"""


@pytest.fixture
def start(tmp_path):
    """Starts a process that is writing to tmp_path."""
    started = []

    def start():
        command = [sys.executable, "-c", WRITER, str(tmp_path)]
        pipe = subprocess.PIPE
        process = subprocess.Popen(command, stdin=pipe, stdout=pipe, encoding="utf8")
        started.append(process)
        assert process.stdout.readline() == "writing\n"
        return process

    yield start
    for process in started:
        process.kill()
        process.communicate()


def files(path):
    """RETURNS (List[str]): Names without those of locks; a scratch folder is "scratch"."""
    names = (file.name for file in path.iterdir() if file.suffix != ".lock")
    return sorted("scratch" if name.startswith(SCRATCH) else name for name in names)


def test_killed_process(start, tmp_path):
    for _ in range(2):
        process = start()
        process.kill()  # SIGKILL
        process.wait()
        # The second process deleted what the first one left.
        assert files(tmp_path) == ["scratch"]
    with replaced(tmp_path, last="b") as folder:
        assert files(tmp_path) == ["scratch"]
        for name in "ab":
            (folder / name).write_text("new")
    assert sorted(file.name for file in tmp_path.iterdir()) == ["a", "b"]


def test_running_process(start, tmp_path):
    """Its files stay, even if another process that wrote to the same folder was killed."""
    running, killed = start(), start()
    killed.kill()
    killed.wait()
    assert files(tmp_path) == ["scratch"] * 2
    with scratch_folder(tmp_path):
        assert files(tmp_path) == ["scratch"] * 2
    assert files(tmp_path) == ["scratch"]
    running.communicate("")
    assert running.returncode == 0
    assert sorted(file.name for file in tmp_path.iterdir()) == ["a", "b"]
    assert (tmp_path / "a").read_text() == "from the writer"


def test_killed_before_the_folder_was_created(tmp_path):
    (tmp_path / f"{SCRATCH}0123.lock").touch()
    with scratch_folder(tmp_path):
        pass
    assert not any(tmp_path.iterdir())


def test_same_process(tmp_path):
    with scratch_folder(tmp_path) as outer:
        (outer / "a").write_text("a")
        with scratch_folder(tmp_path):
            pass
        assert (outer / "a").read_text() == "a"
    assert not any(tmp_path.iterdir())


def test_error(tmp_path):
    with pytest.raises(ZeroDivisionError), scratch_folder(tmp_path):
        1 / 0  # noqa: B018
    assert not any(tmp_path.iterdir())


def test_folders_of_others(tmp_path):
    """Only what this package wrote is deleted: each of its folders has a lock."""
    file = tmp_path / f"{SCRATCH}mine" / "map"
    file.parent.mkdir()
    file.write_text("map")
    with scratch_folder(tmp_path):
        pass
    assert list(tmp_path.rglob("*")) == [file.parent, file]


def test_blank_characters():
    """All white space, and what has no width, but no letter, mark or joiner."""
    characters = list(map(chr, range(sys.maxunicode + 1)))
    assert {c for c in characters if c.isspace()} < set(BLANKS)
    assert {unicodedata.category(c) for c in BLANKS if not c.isspace()} == {"Cf"}
    assert (
        is_blank("")
        and is_blank("\u200b \ufeff\n")
        and not is_blank("\u200d")
        and not is_blank(".")
    )
    assert trimmed(" \u200bPort\nEllam\xa0.", 0, 13) == (2, 12)
    assert trimmed("a \n b", 1, 4) == (4, 4)


def test_padded_positions():
    padded = np.zeros((3, 4), dtype=np.int64)
    np.put(padded, padded_positions([2, 0, 3], 4), [1, 2, 3, 4, 5])
    assert padded.tolist() == [[1, 2, 0, 0], [0, 0, 0, 0], [3, 4, 5, 0]]
    assert not len(padded_positions([], 4))
