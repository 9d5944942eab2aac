"""Fingerprints: they show whether two folders contain the same weights."""

import hashlib
import json
from contextlib import suppress
from pathlib import Path
from typing import Any, List, Optional

from ..models import catalogue
from ..util import replace_json

# Bytes that are read from a weight file at a time.
CHUNK = 1 << 24
# Windows of bytes that a fingerprint of version 0.1.0 samples from a file.
SAMPLE = 1 << 16


def fingerprint_of(path: str, revision: Optional[str], config: Any) -> str:
    """Hash the model's dimensions and all bytes of its weight files.

    Hashing the values in memory would not work, since they depend on the dtype they were loaded in. The
    hash of a folder is stored in SPACY_LLMNER_HOME with the size and the modification time of each weight
    file. It is computed again only if one of these changes.

    path (str): Folder or hub id.
    revision (Optional[str]): Revision of a hub id.
    config (PretrainedConfig): The model's config.
    RETURNS (str): "2-" and 32 hexadecimal digits.
    """
    files = weight_files(path, revision)
    digest = hashlib.blake2b(_dimensions(config), digest_size=16)
    digest.update(_cached_hash(files).encode())
    return f"2-{digest.hexdigest()}"


def sampled_fingerprint_of(path: str, revision: Optional[str], config: Any) -> str:
    """Compute a fingerprint as version 0.1.0 did, from eight samples of each weight file, to compare it
    with fingerprints saved by that version.

    RETURNS (str): 16 hexadecimal digits.
    """
    digest = hashlib.sha256(_dimensions(config))
    for file in weight_files(path, revision):
        size = file.stat().st_size
        digest.update(str(size).encode())
        with file.open("rb") as f:
            for start in range(0, size, max(size // 8, SAMPLE)):
                f.seek(start)
                digest.update(f.read(SAMPLE))
    return digest.hexdigest()[:16]


def weight_files(path: str, revision: Optional[str]) -> List[Path]:
    """RETURNS (List[Path]): The weight files of a folder, or of a hub id in the local cache, by name."""
    if not Path(path).is_dir():
        from transformers.utils import cached_file

        path = str(Path(str(cached_file(path, "config.json", revision=revision))).parent)
    return sorted(Path(path).glob("*.safetensors")) or sorted(Path(path).glob("*.bin"))


def _dimensions(config: Any) -> bytes:
    shape = [config.model_type, config.num_hidden_layers, config.hidden_size, config.vocab_size]
    return json.dumps(shape).encode()


def _cached_hash(files: List[Path]) -> str:
    """RETURNS (str): Hash of the content of files, from the cache if none of them has changed."""
    stats = [(file.resolve(), file.stat()) for file in files]
    state = [[str(file), stat.st_size, stat.st_mtime_ns] for file, stat in stats]
    key = hashlib.blake2b(json.dumps([s[0] for s in state]).encode(), digest_size=16).hexdigest()
    cache = catalogue.home() / "fingerprints" / f"{key}.json"
    with suppress(OSError, ValueError, KeyError, TypeError):
        known = json.loads(cache.read_text(encoding="utf8"))
        if known["files"] == state:
            return known["hash"]
    found = _hash(files)
    replace_json(cache, {"files": state, "hash": found})
    return found


def _hash(files: List[Path]) -> str:
    digest = hashlib.blake2b(digest_size=16)
    for file in files:
        digest.update(str(file.stat().st_size).encode())
        with file.open("rb") as f:
            while chunk := f.read(CHUNK):
                digest.update(chunk)
    return digest.hexdigest()
