"""Cache features on disk, so that a frozen LLM reads a corpus once instead of once per epoch."""

import hashlib
import json
import os
import warnings
from pathlib import Path
from typing import Any, Dict, List, Optional, Sequence, Tuple

import numpy as np
import torch
from spacy.tokens import Doc

from ...errors import Warnings
from ...llm.loading import LoadedLLM
from ...models import catalogue
from .words import WordFeatures, WordReader

# Hidden states are clipped to fit into float16. Larger values occur (at the first token of some models),
# but don't matter for words.
MAX_HALF = 60000.0


class FeatureCache:
    """Stores word features. The key is the LLM's fingerprint, the reader's settings and the Doc's words.

    folder (Path): Parent folder of all caches; each combination of LLM and reader has a subfolder.
    llm (LoadedLLM): Its fingerprint is part of the key.
    reader (WordReader): Its settings are part of the key.

    A subfolder contains pairs of files: a `.bin` file with the features of one Doc after the other, in
    float16, and a `.jsonl` file with a line for each Doc that the `.bin` file contains completely. Every
    process appends to its own pair of files. It writes a line only after the data that the line describes,
    so a crash or a full disk never damages what was cached before.
    """

    def __init__(self, folder: Path, llm: LoadedLLM, reader: WordReader) -> None:
        # Without quantization, the keys are those of earlier versions.
        spec = llm.spec
        precision = [spec.dtype, spec.quantization] if spec.quantization else spec.dtype
        settings = json.dumps([llm.fingerprint, precision, reader.key()], sort_keys=True)
        self.folder = folder / hashlib.sha256(settings.encode()).hexdigest()[:16]
        self.settings = settings
        self.index: Dict[str, Tuple[Path, int, List[List[int]]]] = {}
        self.maps: Dict[Path, np.ndarray] = {}
        self.data_file: Any = None
        self.index_file: Any = None
        self.pid = os.getpid()
        self.writable = True
        for path in sorted(self.folder.glob("*.jsonl")):
            self._read_index(path)

    def __getstate__(self) -> Dict[str, Any]:
        """A copy opens its own files."""
        return {**self.__dict__, "maps": {}, "data_file": None, "index_file": None}

    def read(self, llm: LoadedLLM, reader: WordReader, docs: Sequence[Doc]) -> List[WordFeatures]:
        """Get the features of some Docs. The LLM reads only those that are not cached.

        RETURNS (List[WordFeatures]): On the CPU, rounded to float16 whether they were cached or not.
        """
        keys = [doc_key(doc) for doc in docs]
        found: Dict[str, WordFeatures] = {}
        missing: Dict[str, Doc] = {}
        for key, doc in zip(keys, docs):
            if key not in found and key not in missing:
                features = self.get(key)
                if features is None:
                    missing[key] = doc
                else:
                    found[key] = features
        if missing:
            for key, features in zip(missing, reader.read(llm, list(missing.values()))):
                found[key] = _half(features)
                self.put(key, found[key])
        return [found[key] for key in keys]

    def get(self, key: str) -> Optional[WordFeatures]:
        """RETURNS (Optional[WordFeatures]): The features cached under a key, in float16."""
        if key not in self.index:
            return None
        try:
            return self._get(*self.index[key])
        except (OSError, ValueError):  # the files were deleted
            del self.index[key]
            return None

    def _get(self, path: Path, start: int, shapes: List[List[int]]) -> WordFeatures:
        if path not in self.maps or len(self.maps[path]) < start + _n_values(shapes):
            self.maps[path] = np.memmap(path, dtype=np.float16, mode="r")
        out = []
        for shape in shapes:
            size = _n_values([shape])
            cells = np.array(self.maps[path][start : start + size])
            out.append(torch.from_numpy(cells.reshape(shape)))
            start += size
        return WordFeatures(*out)

    def put(self, key: str, features: WordFeatures) -> None:
        """Append the features of a Doc. If the disk can't be written to, warn once and stop caching."""
        if not self.writable:
            return
        arrays = [features.hidden.numpy()]
        if features.attention is not None:
            arrays.append(features.attention.numpy())
        shapes = [list(a.shape) for a in arrays]
        if not _n_values(shapes):
            return
        try:
            if not self._can_append():
                self._open()
            start = self.data_file.tell() // 2
            for array in arrays:
                self.data_file.write(array.tobytes())
            self.data_file.flush()
            self.index_file.write(json.dumps([key, start, shapes]) + "\n")
            self.index_file.flush()
        except OSError as e:
            self.writable = False
            reason = e.strerror or str(e)
            warnings.warn(Warnings.W001.format(path=self.folder, reason=reason), stacklevel=2)
            return
        self.index[key] = (Path(self.data_file.name), start, shapes)

    def _can_append(self) -> bool:
        """RETURNS (bool): Whether this process has its own files. A fork can't use those of its parent."""
        own = self.data_file is not None and self.pid == os.getpid()
        return own and Path(self.data_file.name).exists() and Path(self.index_file.name).exists()

    def _open(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        (self.folder / "settings.json").write_text(self.settings)
        self.pid = os.getpid()
        name = f"{self.pid}-{os.urandom(4).hex()}"
        self.data_file = (self.folder / f"{name}.bin").open("ab")
        self.index_file = (self.folder / f"{name}.jsonl").open("a")

    def _read_index(self, path: Path) -> None:
        data = path.with_suffix(".bin")
        size = data.stat().st_size // 2 if data.exists() else 0
        for line in path.read_text(encoding="utf8", errors="replace").splitlines():
            try:
                key, start, shapes = json.loads(line)
                complete = start + _n_values(shapes) <= size
            except (TypeError, ValueError):
                continue  # an incomplete line of a killed process, or a disk error
            if complete:
                self.index[key] = (data, start, shapes)


def open_cache(where: str, llm: LoadedLLM, reader: WordReader) -> Optional[FeatureCache]:
    """Open the cache that a component's `feature_cache` setting names.

    where (str): A folder; "auto" for a folder in SPACY_LLMNER_HOME, "off" for no cache.
    llm (LoadedLLM): The LLM.
    reader (WordReader): What is read from the LLM.
    RETURNS (Optional[FeatureCache]): The cache, or None if it is off.
    """
    if where == "off":
        return None
    folder = catalogue.home() / "features" if where == "auto" else Path(where)
    return FeatureCache(folder, llm, reader)


def doc_key(doc: Doc) -> str:
    """RETURNS (str): A hash of a Doc's text and words."""
    bounds = doc.to_array(["IDX", "LENGTH"]) if len(doc) else np.zeros(0)
    digest = hashlib.blake2b(doc.text.encode("utf8", "surrogatepass"), digest_size=16)
    digest.update(bounds.tobytes())
    return digest.hexdigest()


def _half(features: WordFeatures) -> WordFeatures:
    hidden = features.hidden.clamp(-MAX_HALF, MAX_HALF).half().cpu()
    attention: Optional[torch.Tensor] = None
    if features.attention is not None:
        attention = features.attention.half().cpu()
    return WordFeatures(hidden, attention)


def _n_values(shapes: Sequence[Sequence[int]]) -> int:
    return sum(int(np.prod(shape)) for shape in shapes)
