"""Features on disk, so that a frozen LLM reads a corpus once and not once per epoch."""

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

# Larger states exist (the first token of some models), but none that matters to a word.
MAX_HALF = 60000.0


class FeatureCache:
    """Word features keyed by the LLM's fingerprint, what is read, and the Doc's words.

    folder (Path): Where all caches live; each LLM and reader has a folder of its own in it.
    llm (LoadedLLM): Its fingerprint is part of the key.
    reader (WordReader): Its settings are part of the key.

    A folder holds pairs of files: `.bin` with the features in float16, one Doc after the other, and
    `.jsonl` with a line for each Doc that is complete in it. Every process appends to a pair of its
    own, and a line is written after its data, so a crash or a full disk never spoils what was there.
    """

    def __init__(self, folder: Path, llm: LoadedLLM, reader: WordReader) -> None:
        settings = json.dumps([llm.fingerprint, llm.spec.dtype, reader.key()], sort_keys=True)
        self.folder = folder / hashlib.sha256(settings.encode()).hexdigest()[:16]
        self.settings = settings
        self.index: Dict[str, Tuple[Path, int, List[List[int]]]] = {}
        self.maps: Dict[Path, np.ndarray] = {}
        self.writer: Any = None
        self.lines: Any = None
        self.pid = os.getpid()
        self.writable = True
        for path in sorted(self.folder.glob("*.jsonl")):
            self._read_index(path)

    def __getstate__(self) -> Dict[str, Any]:
        """A copy opens files of its own."""
        return {**self.__dict__, "maps": {}, "writer": None, "lines": None}

    def read(self, llm: LoadedLLM, reader: WordReader, docs: Sequence[Doc]) -> List[WordFeatures]:
        """Get the features of some Docs, running the LLM over those that are not cached.

        RETURNS (List[WordFeatures]): On the CPU, rounded to float16 whether they were cached or not.
        """
        keys = [doc_key(doc) for doc in docs]
        known: Dict[str, WordFeatures] = {}
        missing: Dict[str, Doc] = {}
        for key, doc in zip(keys, docs):
            if key not in known and key not in missing:
                features = self.get(key)
                if features is None:
                    missing[key] = doc
                else:
                    known[key] = features
        if missing:
            for key, features in zip(missing, reader.read(llm, list(missing.values()))):
                known[key] = _half(features)
                self.put(key, known[key])
        return [known[key] for key in keys]

    def get(self, key: str) -> Optional[WordFeatures]:
        """RETURNS (Optional[WordFeatures]): What is cached under a key, in float16."""
        if key not in self.index:
            return None
        try:
            return self._get(*self.index[key])
        except (OSError, ValueError):  # someone has emptied the folder
            del self.index[key]
            return None

    def _get(self, path: Path, start: int, shapes: List[List[int]]) -> WordFeatures:
        if path not in self.maps or len(self.maps[path]) < start + _size(shapes):
            self.maps[path] = np.memmap(path, dtype=np.float16, mode="r")
        out = []
        for shape in shapes:
            size = _size([shape])
            cells = np.array(self.maps[path][start : start + size])
            out.append(torch.from_numpy(cells.reshape(shape)))
            start += size
        return WordFeatures(*out)

    def put(self, key: str, features: WordFeatures) -> None:
        """Append the features of a Doc. A disk that can't be written is warned about once."""
        if not self.writable:
            return
        arrays = [features.hidden.numpy()]
        if features.attention is not None:
            arrays.append(features.attention.numpy())
        shapes = [list(a.shape) for a in arrays]
        if not _size(shapes):
            return
        try:
            if not self._writes():
                self._open()
            start = self.writer.tell() // 2
            for array in arrays:
                self.writer.write(array.tobytes())
            self.writer.flush()
            self.lines.write(json.dumps([key, start, shapes]) + "\n")
            self.lines.flush()
        except OSError as e:
            self.writable = False
            reason = e.strerror or str(e)
            warnings.warn(Warnings.W001.format(path=self.folder, reason=reason), stacklevel=2)
            return
        self.index[key] = (Path(self.writer.name), start, shapes)

    def _writes(self) -> bool:
        """RETURNS (bool): Whether there are files to append to: not those of before a fork."""
        own = self.writer is not None and self.pid == os.getpid()
        return own and Path(self.writer.name).exists() and Path(self.lines.name).exists()

    def _open(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        (self.folder / "settings.json").write_text(self.settings)
        self.pid = os.getpid()
        name = f"{self.pid}-{os.urandom(4).hex()}"
        self.writer = (self.folder / f"{name}.bin").open("ab")
        self.lines = (self.folder / f"{name}.jsonl").open("a")

    def _read_index(self, path: Path) -> None:
        data = path.with_suffix(".bin")
        size = data.stat().st_size // 2 if data.exists() else 0
        for line in path.read_text(encoding="utf8", errors="replace").splitlines():
            try:
                key, start, shapes = json.loads(line)
                complete = start + _size(shapes) <= size
            except (TypeError, ValueError):
                continue  # the last line of a process that was killed, or a bad block of the disk
            if complete:
                self.index[key] = (data, start, shapes)


def open_cache(where: str, llm: LoadedLLM, reader: WordReader) -> Optional[FeatureCache]:
    """Open the cache that a component's `feature_cache` names.

    where (str): A folder; "auto" is a folder in SPACY_LLMNER_HOME, "off" is none.
    RETURNS (Optional[FeatureCache]): The cache, if there is to be one.
    """
    if where == "off":
        return None
    folder = catalogue.home() / "features" if where == "auto" else Path(where)
    return FeatureCache(folder, llm, reader)


def doc_key(doc: Doc) -> str:
    """RETURNS (str): Identifies a Doc's text and words."""
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


def _size(shapes: Sequence[Sequence[int]]) -> int:
    return sum(int(np.prod(shape)) for shape in shapes)
