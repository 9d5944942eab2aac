"""The output folder: shards that are written whole or not at all, and a manifest."""

import json
import os
import shutil
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, Dict, Iterator, List, Optional

from filelock import FileLock, Timeout

from ..errors import Errors, LLMNERError
from ..util import SCRATCH, scratch_folder
from .manifest import check_same_run
from .shards import ShardResult

MANIFEST = "manifest.json"
# The folder with the shards, and nothing else, so that other programs can read it as a data set.
SHARDS = "shards"
# All documents that failed, once the run has finished, and the folder with those of each shard.
FAILED_FILE, FAILED_FOLDER = "failed.jsonl", "failed"
LOCK = ".lock"


class OutputFolder:
    """An output folder that this process has locked.

    path (Path): The folder.
    ending (str): The ending of the shards' names.
    scratch (Path): A folder on the same disk for unfinished files.
    """

    def __init__(self, path: Path, ending: str, scratch: Path) -> None:
        self.path = path
        self.ending = ending
        self._scratch = scratch

    def shard_path(self, number: int) -> Path:
        """RETURNS (Path): The file of a shard. If it exists, the shard is finished."""
        return self.path / SHARDS / f"shard-{number:06d}.{self.ending}"

    def _failed_path(self, number: int) -> Path:
        return self.path / FAILED_FOLDER / f"shard-{number:06d}.jsonl"

    def write(self, result: ShardResult) -> None:
        """Write a shard. Its file appears last, so that whatever else belongs to it exists as well.

        result (ShardResult): The annotated shard.
        RAISES (LLMNERError): If the shard can't be written, for example because the disk is full.
        """
        with _write_errors(self.path):
            failed = self._failed_path(result.number)
            if result.failed:
                self._replace(failed, result.failed)
            else:
                failed.unlink(missing_ok=True)
            self._replace(self.shard_path(result.number), result.data)

    def write_manifest(self, manifest: Dict[str, Any]) -> None:
        """Write the manifest.

        RAISES (LLMNERError): If it can't be written.
        """
        with _write_errors(self.path):
            content = json.dumps(manifest, indent=2, ensure_ascii=False) + "\n"
            self._replace(self.path / MANIFEST, content.encode("utf8", "surrogateescape"))

    def merge_failed(self, n_shards: int) -> int:
        """Write the documents that failed in any shard to one file, in the order of the input.

        n_shards (int): The number of shards, all of which are finished.
        RETURNS (int): The number of documents that failed.
        RAISES (LLMNERError): If the file can't be written.
        """
        merged = self._scratch / FAILED_FILE
        n_failed = 0
        with _write_errors(self.path):
            with merged.open("wb") as file:
                for number in range(n_shards):
                    path = self._failed_path(number)
                    if path.exists():
                        with path.open("rb") as part:
                            shutil.copyfileobj(part, file)
                        with path.open("rb") as part:
                            n_failed += sum(1 for _ in part)
                _sync(file)
            if n_failed:
                self._move(merged, self.path / FAILED_FILE)
        return n_failed

    def _replace(self, path: Path, content: bytes) -> None:
        path.parent.mkdir(exist_ok=True)
        new = self._scratch / path.name
        with new.open("wb") as file:
            file.write(content)
            _sync(file)
        self._move(new, path)

    def _move(self, new: Path, path: Path) -> None:
        os.replace(new, path)
        if os.name == "posix":  # the new name is on the disk only once the folder is
            folder = os.open(path.parent, os.O_RDONLY)
            try:
                os.fsync(folder)
            finally:
                os.close(folder)


def _sync(file: Any) -> None:
    file.flush()
    os.fsync(file.fileno())


@contextmanager
def _write_errors(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as e:
        raise LLMNERError(Errors.E178.format(path=path, reason=e.strerror or e)) from e


@contextmanager
def open_output(
    path: Path, ending: str, manifest: Dict[str, Any], resume: bool
) -> Iterator[OutputFolder]:
    """Open a new output folder, or one whose run was stopped.

    path (Path): The folder. It is created if it doesn't exist.
    ending (str): The ending of the shards' names.
    manifest (Dict[str, Any]): What the output is made from.
    resume (bool): Whether the folder may contain shards of an earlier run.
    YIELDS (OutputFolder): The folder, with a manifest in it.
    RAISES (LLMNERError): If the folder contains something else, or another process is writing to it.
    """
    with _write_errors(path):
        path.mkdir(parents=True, exist_ok=True)
    try:
        lock = FileLock(path / LOCK, timeout=0).acquire()
    except Timeout:
        raise LLMNERError(Errors.E180.format(path=path)) from None
    except OSError as e:
        raise LLMNERError(Errors.E178.format(path=path, reason=e.strerror or e)) from e
    with lock, ExitStack() as stack:
        check_folder(path, manifest, resume)
        with _write_errors(path):
            scratch = stack.enter_context(scratch_folder(path))
        output = OutputFolder(path, ending, scratch)
        output.write_manifest(manifest)
        yield output


def check_folder(path: Path, manifest: Dict[str, Any], resume: bool) -> None:
    """Check that a folder is new, or contains the output of the same run.

    path (Path): The folder.
    manifest (Dict[str, Any]): What the output will be made from.
    resume (bool): Whether the folder may contain shards of an earlier run.
    RAISES (LLMNERError): If it contains something else.
    """
    if not path.exists():
        return
    saved = _read_manifest(path / MANIFEST)
    if saved is not None:
        check_same_run(path, saved, manifest)
        if not resume:
            raise LLMNERError(Errors.E183.format(path=path))
    elif others := _other_files(path):
        raise LLMNERError(Errors.E184.format(path=path, files=", ".join(others[:3])))


def _other_files(path: Path) -> List[str]:
    """RETURNS (List[str]): The files in a folder that are not left over from a run that was killed."""
    names = sorted(file.name for file in path.iterdir())
    return [name for name in names if name != LOCK and not name.startswith(SCRATCH)]


def _read_manifest(path: Path) -> Optional[Dict[str, Any]]:
    if not path.exists():
        return None
    try:
        saved = json.loads(path.read_text(encoding="utf8"))
    except (OSError, ValueError):
        saved = None
    return saved if isinstance(saved, dict) else {}  # which no run has
