"""Annotate a corpus of any size: read, annotate, write, and continue where a run was stopped."""

import os
import warnings
from contextlib import closing
from importlib.metadata import version
from itertools import chain
from pathlib import Path
from typing import (
    Any,
    Callable,
    Dict,
    Generator,
    Iterable,
    Iterator,
    List,
    NamedTuple,
    Optional,
    Tuple,
    Union,
)

import torch
from tqdm import tqdm

from ..errors import Errors, LLMNERError, Warnings, check_values, wrong
from .annotator import Annotator
from .manifest import make_manifest
from .output import OutputFolder, open_output
from .ray_actors import annotate_on_ray
from .readers import STDIN, Document, InputFile, input_files, read_documents
from .shards import Shard, ShardAnnotator, ShardResult, Writer, check_readable, split_into_shards
from .workers import annotate_here, annotate_in_processes
from .writers import DocBinWriter, JSONLWriter, OutputFormat, ParquetWriter, parquet_schema

NAME = "annotate"


class Summary(NamedTuple):
    """What `annotate` has done.

    shards (List[Path]): The files with the annotated documents, in the order of the input.
    n_documents (int): The number of documents in the input.
    n_failed (int): How many of them failed. They are in OUT/failed.jsonl.
    n_shards_before (int): How many shards existed before.
    """

    shards: List[Path]
    n_documents: int
    n_failed: int
    n_shards_before: int


def annotate(
    texts: Union[str, Path],
    output: Union[str, Path],
    model: Union[str, Path],
    *,
    text_field: str = "text",
    format: Union[str, OutputFormat] = OutputFormat.jsonl,
    spans: bool = False,
    shard_size: int = 1000,
    resume: bool = False,
    workers: int = 1,
    gpus: int = 0,
    ray: Optional[str] = None,
    max_length: Optional[int] = None,
    code_path: Union[None, str, Path] = None,
    progress: bool = False,
) -> Summary:
    """Annotate a corpus. Each shard is written whole or not at all, so a run that was stopped at any time
    can be resumed. With several workers, call this only below `if __name__ == "__main__":`.

    texts (Union[str, Path]): A file, a folder, or "-" for JSONL on the standard input.
    output (Union[str, Path]): The output folder.
    model (Union[str, Path]): The pipeline: a folder, or the name of an installed package.
    text_field (str): The field or column of the texts.
    format (Union[str, OutputFormat]): "jsonl", "parquet" or "spacy".
    spans (bool): Also write all spans in doc.spans. A .spacy file always contains them.
    shard_size (int): Maximum number of documents in a shard.
    resume (bool): Continue a run, if the folder contains one. It must have had the same pipeline, input and
        settings.
    workers (int): The number of processes. 1 works in this process.
    gpus (int): Use this many GPUs, with one process for each.
    ray (Optional[str]): The address of a Ray cluster that runs the workers: "auto" for the one of this
        machine, "local" to start one.
    max_length (Optional[int]): The length of the longest text that is annotated, in characters. None for
        the pipeline's `nlp.max_length`.
    code_path (Union[None, str, Path]): A Python file to import before the pipeline is loaded.
    progress (bool): Show a progress bar, if standard error is a terminal.
    RETURNS (Summary): The files that were written.
    RAISES (LLMNERError): If the input, the pipeline or the output folder can't be used, or a worker died.
        Finished shards stay.
    """
    format = OutputFormat(format)
    _check_settings(str(texts), resume, shard_size, workers, gpus, ray)
    files, left_out = input_files(str(texts))
    annotator = Annotator(
        model, text_field=text_field, spans=spans, max_length=max_length, code_path=code_path
    )
    settings = {
        "text_field": text_field,
        "format": str(format),
        "spans": spans,
        "shard_size": shard_size,
        "max_length": annotator.nlp.max_length,
    }
    manifest = make_manifest(annotator.nlp, files, settings, version("spacy-llmner"))
    _warn_about_files(str(texts), left_out, manifest["input"])
    stream = _Documents(files, text_field)
    first, shards = _peek(split_into_shards(stream, shard_size))
    if first is None:
        raise LLMNERError(Errors.E179.format(path=texts))
    check_readable(first)
    writer = _writer(format, files, first, text_field, spans)
    n_workers = gpus or workers
    threads = max(1, torch.get_num_threads() // n_workers)
    run = ShardAnnotator(annotator, writer)

    def results(missing: Iterable[Shard]) -> Generator[ShardResult, None, None]:
        if ray is not None:
            return annotate_on_ray(run, missing, ray, n_workers, threads, gpus > 0)
        if gpus or workers > 1:
            return annotate_in_processes(run, missing, _places(workers, gpus), threads)
        return annotate_here(run, missing)

    with open_output(Path(output), str(format), manifest, resume) as folder:
        total = sum(file["documents"] for file in manifest["input"]) if stream.can_count else None
        n_shards, n_before = _write_shards(folder, shards, results, total, progress)
        n_failed = folder.merge_failed(n_shards)
        done = {"documents": stream.n_read, "failed": n_failed, "shards": n_shards}
        folder.write_manifest({**manifest, "result": done})
        paths = [folder.shard_path(number) for number in range(n_shards)]
    return Summary(paths, stream.n_read, n_failed, n_before)


def _check_settings(
    texts: str, resume: bool, shard_size: int, workers: int, gpus: int, ray: Optional[str]
) -> None:
    numbers = {"shard_size": shard_size, "workers": workers, "gpus": gpus}
    check_values(NAME, numbers, least={"shard_size": 1, "workers": 1, "gpus": 0})
    if texts == STDIN and resume:
        raise wrong(
            "resume", NAME, resume, "false for the standard input, which can't be read again"
        )
    if gpus and workers > 1:
        raise wrong(
            "workers", NAME, workers, "1 with `gpus`, which starts one process for each GPU"
        )
    if ray is None and gpus > torch.cuda.device_count():
        must = f"at most {torch.cuda.device_count()}, the number of GPUs that torch can use"
        raise wrong("gpus", NAME, gpus, must)


class _Documents:
    """The documents of all files, one after the other.

    files (List[InputFile]): The files.
    text_field (str): The field of the texts.
    """

    def __init__(self, files: List[InputFile], text_field: str) -> None:
        self._files = files
        self._text_field = text_field
        self.n_read = 0
        self.can_count = all(file.name != STDIN for file in files)

    def __iter__(self) -> Iterator[Document]:
        for file in self._files:
            for document in read_documents(file, self._text_field):
                self.n_read += 1
                yield document


def _peek(shards: Iterator[Shard]) -> Tuple[Optional[Shard], Iterator[Shard]]:
    """RETURNS (Tuple[Optional[Shard], Iterator[Shard]]): The first shard, and all of them."""
    first = next(shards, None)
    return first, chain([] if first is None else [first], shards)


def _writer(
    format: OutputFormat, files: List[InputFile], first: Shard, text_field: str, spans: bool
) -> Writer:
    if format is OutputFormat.spacy:
        return DocBinWriter(text_field)
    if format is OutputFormat.parquet:
        return ParquetWriter(parquet_schema(files, first.documents), spans)
    return JSONLWriter(spans)


def _places(workers: int, gpus: int) -> List[Dict[str, str]]:
    """RETURNS (List[Dict[str, str]]): The environment variables of each process: the GPU that it sees."""
    if not gpus:
        return [{} for _ in range(workers)]
    visible = os.environ.get("CUDA_VISIBLE_DEVICES") or ",".join(map(str, range(gpus)))
    return [{"CUDA_VISIBLE_DEVICES": gpu} for gpu in visible.split(",")[:gpus]]


def _write_shards(
    folder: OutputFolder,
    shards: Iterator[Shard],
    results: Callable[[Iterable[Shard]], Generator[ShardResult, None, None]],
    total: Optional[int],
    progress: bool,
) -> Tuple[int, int]:
    """RETURNS (Tuple[int, int]): The number of all shards, and of those that existed before."""
    n_shards = n_before = n_replaced = 0
    with tqdm(total=total, unit="doc", leave=False, disable=None if progress else True) as bar:

        def missing() -> Iterator[Shard]:
            nonlocal n_shards, n_before
            for shard in shards:
                n_shards += 1
                if folder.shard_path(shard.number).exists():
                    n_before += 1
                    if not bar.disable:
                        bar.initial += len(shard.documents)  # they don't count for the speed
                        bar.update(len(shard.documents))
                else:
                    yield shard

        # If writing fails, close the generator at once, because it has processes.
        with closing(results(missing())) as stream:
            for result in stream:
                folder.write(result)
                n_replaced += result.n_replaced
                bar.update(result.n_documents)
    if n_replaced:
        warnings.warn(Warnings.W027.format(n=n_replaced), stacklevel=3)
    return n_shards, n_before


def _warn_about_files(path: str, left_out: List[str], described: List[Dict[str, Any]]) -> None:
    """Warn about files that contribute nothing."""
    empty = [file["file"] for file in described if file.get("documents") == 0]
    for names, reason in ((left_out, "of their endings"), (empty, "they contain no documents")):
        if names:
            shown = ", ".join(names[:5]) + (", ..." if len(names) > 5 else "")
            message = Warnings.W026.format(n=len(names), path=path, reason=reason, names=shown)
            warnings.warn(message, stacklevel=3)
