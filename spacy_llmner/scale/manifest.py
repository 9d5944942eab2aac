"""What an output folder was made from: the pipeline, the input and the settings."""

import hashlib
from pathlib import Path
from typing import Any, Dict, List, Sequence

from spacy.language import Language
from transformers import AutoConfig

from ..errors import Errors, LLMNERError
from ..llm.fingerprint import fingerprint_of
from ..llm.location import resolve_path
from ..pipeline.loading import llms_of
from .readers import STDIN, InputFile, count_documents

CHUNK = 1 << 20


def make_manifest(
    nlp: Language, files: Sequence[InputFile], settings: Dict[str, Any], version: str
) -> Dict[str, Any]:
    """Describe a run. All bytes of the input and of the pipeline are hashed, so that copies of them are
    recognized.

    nlp (Language): The pipeline, loaded from a folder.
    files (Sequence[InputFile]): The files of the input.
    settings (Dict[str, Any]): The settings that the output depends on.
    version (str): The version of this package.
    RETURNS (Dict[str, Any]): JSON values. The parts "pipeline", "input" and "settings" are equal for runs
        whose shards are equal.
    RAISES (LLMNERError): If an LLM or a file can't be found or read.
    """
    return {
        "version": version,
        "pipeline": {"fingerprint": _hash_folder(Path(str(nlp.path))), "llms": _llms(nlp)},
        "input": [_describe(file) for file in files],
        "settings": settings,
    }


def check_same_run(path: Path, saved: Dict[str, Any], manifest: Dict[str, Any]) -> None:
    """Check that shards of a run can be added to the output of another.

    path (Path): The output folder.
    saved (Dict[str, Any]): The manifest in it.
    manifest (Dict[str, Any]): The manifest of the new run.
    RAISES (LLMNERError): If the pipeline, the input or the settings differ.
    """
    for part, name in (("pipeline", "pipeline"), ("input", "input"), ("settings", "settings")):
        before, now = saved.get(part), manifest[part]
        if before == now:
            continue
        details = ""
        if part == "settings" and isinstance(before, dict):
            changed = [key for key in now if before.get(key) != now[key]]
            details = "; ".join(f"{key} was {before.get(key)}, now {now[key]}" for key in changed)
        elif part == "input":
            details = _changed_files(before or [], now)
        elif part == "pipeline":
            details = "the pipeline, its settings or its LLM have changed"
        raise LLMNERError(Errors.E173.format(path=path, part=name, details=details))


def _changed_files(before: List[Dict[str, Any]], now: List[Dict[str, Any]]) -> str:
    old, new = ({file["file"]: file for file in files} for files in (before, now))
    changed = sorted(name for name in {*old, *new} if old.get(name) != new.get(name))
    return "changed files: " + ", ".join(changed[:5]) + (", ..." if len(changed) > 5 else "")


def _llms(nlp: Language) -> List[Dict[str, str]]:
    """RETURNS (List[Dict[str, str]]): The fingerprints of the pipeline's LLMs. No LLM is loaded."""
    prints = []
    for llm in llms_of(pipe for _, pipe in nlp.pipeline):
        path = resolve_path(llm.spec.name, llm.spec.revision)
        config = AutoConfig.from_pretrained(
            path, revision=llm.spec.revision, trust_remote_code=False
        )
        prints.append(fingerprint_of(path, llm.spec.revision, config))
    return [{"fingerprint": fingerprint} for fingerprint in prints]


def _describe(file: InputFile) -> Dict[str, Any]:
    if file.name == STDIN:
        return {"file": STDIN}
    return {
        "file": file.name,
        "size": file.path.stat().st_size,
        "hash": _hash([file.path]),
        "documents": count_documents(file),
    }


def _hash_folder(folder: Path) -> str:
    """RETURNS (str): Hash of the names and contents of all files in a folder."""
    files = sorted(
        file for file in folder.rglob("*") if file.is_file() and "__pycache__" not in file.parts
    )
    names = "\n".join(file.relative_to(folder).as_posix() for file in files)
    return _hash(files, names.encode())


def _hash(files: Sequence[Path], start: bytes = b"") -> str:
    digest = hashlib.blake2b(start, digest_size=16)
    for file in files:
        digest.update(file.stat().st_size.to_bytes(8, "little"))
        with file.open("rb") as f:
            while chunk := f.read(CHUNK):
                digest.update(chunk)
    return digest.hexdigest()
