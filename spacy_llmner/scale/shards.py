"""Shards: a number of documents each, annotated together, and written whole or not at all."""

from itertools import count
from typing import Any, Dict, Iterable, Iterator, List, NamedTuple, Optional, Union

from ..errors import Errors, LLMNERError
from .annotator import Annotator, Failure
from .readers import Document
from .writers import ENTITIES, SPANS, DocBinWriter, JSONLWriter, ParquetWriter, failed_line

# Characters after which a shard is complete, even if it has fewer documents. The first limit is for texts,
# because a killed run loses the time of a shard. The second is for all fields, which must fit into memory.
MAX_CHARS, MAX_SIZE = 1 << 20, 1 << 24
# If at least so many documents of a shard reach the pipeline and all fail, they are not the cause.
ALL_FAILED = 10

Writer = Union[JSONLWriter, ParquetWriter, DocBinWriter]


class Shard(NamedTuple):
    """Consecutive documents.

    number (int): Its number, from 0.
    documents (List[Document]): The documents.
    """

    number: int
    documents: List[Document]

    def __str__(self) -> str:
        first, last = self.documents[0], self.documents[-1]
        return f"from {first.file}:{first.row} to {last.file}:{last.row}"


class ShardResult(NamedTuple):
    """An annotated shard.

    number (int): The number of the shard.
    data (bytes): The content of its file.
    failed (bytes): The documents that failed, as JSONL. Empty if there are none.
    n_documents (int): The number of documents, including those that failed.
    n_failed (int): How many of them failed.
    n_replaced (int): How many of them already had a field that was replaced.
    """

    number: int
    data: bytes
    failed: bytes
    n_documents: int
    n_failed: int
    n_replaced: int


def split_into_shards(documents: Iterable[Document], size: int) -> Iterator[Shard]:
    """Group documents into shards. The result depends on nothing but the documents and the size, so a run
    that is resumed has the same shards.

    documents (Iterable[Document]): The documents.
    size (int): Maximum number of documents in a shard.
    YIELDS (Shard): The shards. None of them is empty.
    """
    numbers = count()
    members: List[Document] = []
    n_chars = all_size = 0
    for document in documents:
        members.append(document)
        n_chars += len(document.text)
        all_size += document.size
        if len(members) == size or n_chars >= MAX_CHARS or all_size >= MAX_SIZE:
            yield Shard(next(numbers), members)
            members, n_chars, all_size = [], 0, 0
    if members:
        yield Shard(next(numbers), members)


class ShardAnnotator:
    """Annotates shards. It can be pickled and sent to other processes.

    annotator (Annotator): The pipeline.
    writer (Writer): The output format.
    """

    def __init__(self, annotator: Annotator, writer: Writer) -> None:
        self.annotator = annotator
        self.writer = writer

    def __call__(self, shard: Shard) -> ShardResult:
        """Annotate a shard.

        shard (Shard): The shard.
        RETURNS (ShardResult): What is to be written.
        RAISES (LLMNERError): If something is wrong with the setup, or all documents failed.
        """
        readable = [document for document in shard.documents if document.problem is None]
        # Strings of the shard would otherwise stay in the vocab for ever.
        with self.annotator.nlp.memory_zone():
            results = self.annotator.annotate(
                [document.text if document.doc is None else document.doc for document in readable],
                lambda doc, i: self.writer.row(doc, readable[i]),
            )
            good = [i for i, result in enumerate(results) if not isinstance(result, Failure)]
            encoded = self.writer.encode([results[i] for i in good])
        reasons = {i: r.reason for i, r in enumerate(results) if isinstance(r, Failure)}
        reasons |= {good[k]: reason for k, reason in encoded.problems.items()}
        _check_not_all_failed(shard, results)
        failed = _failed_lines(shard, iter(range(len(readable))), reasons)
        return ShardResult(
            number=shard.number,
            data=encoded.data,
            failed=b"".join(failed),
            n_documents=len(shard.documents),
            n_failed=len(failed),
            n_replaced=sum(1 for d in shard.documents if {ENTITIES, SPANS} & d.fields.keys()),
        )


def _failed_lines(shard: Shard, indices: Iterator[int], reasons: Dict[int, str]) -> List[bytes]:
    """RETURNS (List[bytes]): A line for each document that can't be read or failed, in order."""
    lines = []
    for document in shard.documents:
        reason: Optional[Any] = document.problem or reasons.get(next(indices))
        if reason is not None:
            lines.append(failed_line(document, reason))
    return lines


def _check_not_all_failed(shard: Shard, results: List[Any]) -> None:
    """A missing package or a GPU that hangs fails for every document, which is no document's fault."""
    reached = [r for r in results if not isinstance(r, Failure) or r.in_pipeline]
    reasons = [r.reason for r in reached if isinstance(r, Failure)]
    if len(reasons) == len(reached) >= ALL_FAILED:
        raise LLMNERError(Errors.E176.format(n=len(reasons), where=shard, reason=reasons[0]))


def check_readable(shard: Shard) -> None:
    """Check that the first shard contains a document that can be read. If not, the settings are probably
    wrong, and nothing must be annotated with them.

    RAISES (LLMNERError): If it contains none.
    """
    problems = [document.problem for document in shard.documents if document.problem is not None]
    if len(problems) == len(shard.documents):
        where, n = shard, len(problems)
        raise LLMNERError(Errors.E174.format(n=n, where=where, reason=problems[0]))
