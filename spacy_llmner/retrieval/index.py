"""ExampleIndex: find labelled texts by similarity."""

from collections import Counter
from dataclasses import dataclass
from functools import wraps
from itertools import islice
from pathlib import Path
from threading import RLock
from typing import (
    Any,
    Callable,
    Dict,
    Iterable,
    List,
    Sequence,
    Set,
    Tuple,
    TypeVar,
    Union,
    cast,
)

import numpy as np
import srsly
from safetensors import SafetensorError
from safetensors.numpy import load as load_arrays
from safetensors.numpy import load_file, save_file
from safetensors.numpy import save as save_arrays
from tqdm import tqdm

from ..errors import Errors, LLMMismatchError, LLMNERError
from ..util import replaced
from .encoder import Encoder
from .examples import LabelledText
from .vectors import KINDS, VectorStore

META, EXAMPLES, VECTORS = "meta.json", "examples.jsonl", "vectors.safetensors"
VERSION = 1
# Similarities are rounded before they are compared, because the last bits of a vector depend on its batch.
DECIMALS = 5
# Number of nearest neighbors to search for in addition to k, since some of them can be excluded.
SPARE = 8
# Number of queries in one search.
SEARCH_BATCH = 256

Method = TypeVar("Method", bound=Callable[..., Any])


@dataclass(frozen=True)
class Hit:
    """An example that was found.

    number (int): Its index in ExampleIndex.examples.
    similarity (float): The cosine similarity to the query, from -1 to 1.
    """

    number: int
    similarity: float


def _locked(method: Method) -> Method:
    """Let only one thread at a time use the methods of an index, since FAISS doesn't allow adding vectors
    during a search."""

    @wraps(method)
    def call(self: "ExampleIndex", *args: Any, **kwargs: Any) -> Any:
        with self.lock:
            return method(self, *args, **kwargs)

    return cast(Method, call)


class ExampleIndex:
    """An index of labelled texts and their vectors. Several threads can use it at the same time.

    encoder (Encoder): Embeds the texts and the queries.
    kind (str): How neighbors are searched: "exact", or, for more than 100,000 examples, "hnsw" or "ivf",
        which are faster but miss a few neighbors. See `VectorStore`.
    examples (List[LabelledText]): The examples. Read only.
    """

    def __init__(self, encoder: Encoder, kind: str = "exact") -> None:
        _check_kind(kind)
        self.encoder = encoder
        self.kind = kind
        self.examples: List[LabelledText] = []
        self.lock = RLock()
        self._clear()

    def _clear(self) -> None:
        self._store: Union[VectorStore, None] = None
        self._made_by: Dict[str, str] = {}
        self._seen: Set[Tuple[str, Any]] = set()
        self._numbers: Dict[str, int] = {}

    def __len__(self) -> int:
        return len(self.examples)

    @property
    def vectors(self) -> np.ndarray:
        """RETURNS (ndarray): The vectors of the examples, each of length 1. float32, shape (examples,
        width). They are read-only, and become invalid when examples are added."""
        if self._store is None:
            return np.zeros((0, 0), dtype=np.float32)
        return self._store.vectors

    def labels(self) -> "Counter[str]":
        """RETURNS (Counter[str]): The number of entities with each label."""
        return Counter(label for example in self.examples for _, _, label in example.entities)

    def add(
        self, examples: Iterable[LabelledText], *, progress: bool = False, batch_size: int = 1024
    ) -> int:
        """Add examples. Blank texts and duplicates are left out. A duplicate has the same entities and,
        apart from case and white space, the same text as another example.

        examples (Iterable[LabelledText]): The examples. A generator is read batch by batch.
        progress (bool): Show a progress bar if standard error is a terminal.
        batch_size (int): Number of examples to embed together.
        RETURNS (int): The number of examples that were added.
        RAISES (LLMMismatchError): If the index was built with another encoder.
        """
        before = len(self)
        total = len(examples) if isinstance(examples, (list, tuple)) else None
        stream = iter(
            tqdm(examples, total=total, unit="example", disable=None if progress else True)
        )
        while batch := list(islice(stream, batch_size)):
            self._add_batch(batch)
        return len(self) - before

    @_locked
    def _add_batch(self, batch: List[LabelledText]) -> None:
        self._check_encoder()
        new: Dict[Tuple[str, Any], LabelledText] = {}
        for example in batch:
            key = (example.hash, example.entities)
            if key not in self._seen and example.text.strip():
                new.setdefault(key, example)
        if not new:
            return
        vectors = self.encoder.encode([example.text for example in new.values()])
        if self._store is None:
            self._store = VectorStore(self.kind, self.encoder.width)
            self._made_by = {"name": self.encoder.name, "fingerprint": self.encoder.fingerprint}
        self._store.add(vectors)
        self._append(list(new.values()))

    def _append(self, examples: List[LabelledText]) -> None:
        for number, example in enumerate(examples, len(self.examples)):
            self._seen.add((example.hash, example.entities))
            self._numbers.setdefault(example.text, number)
        self.examples.extend(examples)

    @_locked
    def search(
        self, queries: Sequence[LabelledText], k: int, *, max_similarity: float = 0.98
    ) -> List[List[Hit]]:
        """Find the most similar examples. Examples that count as the query itself are excluded: those from
        the same document (if its doc_id is known), with the same text, or with a similarity above
        `max_similarity`.

        queries (Sequence[LabelledText]): The queries.
        k (int): Maximum number of examples for each query.
        max_similarity (float): An example with a higher cosine similarity counts as the query itself.
        RETURNS (List[List[Hit]]): For each query, the examples, the most similar first. Equally similar
            ones are sorted by number. Empty for a blank query, or if the index is empty.
        RAISES (LLMMismatchError): If the index was built with another encoder.
        """
        out: List[List[Hit]] = [[] for _ in queries]
        if not len(self) or k < 1:
            return out
        vectors = self.encode(queries)
        meaningful = np.flatnonzero(vectors.any(axis=1)).tolist()
        for first in range(0, len(meaningful), SEARCH_BATCH):
            rows = meaningful[first : first + SEARCH_BATCH]
            n, exact = k + SPARE, False
            while rows:
                n = min(n, len(self))
                found = self._nearest(vectors[rows], n, exact)
                unfinished = []
                for row, (similarities, numbers) in zip(rows, zip(*found)):
                    hits = self._allowed(queries[row], similarities, numbers, max_similarity)
                    # There can be more examples that are as similar as the last one that was found, but
                    # have lower numbers.
                    lowest = round(float(similarities[-1]), DECIMALS)
                    enough = len(hits) >= k and hits[k - 1].similarity > lowest
                    if enough or (exact and n == len(self)):
                        out[row] = hits[:k]
                    else:
                        unfinished.append(row)
                # Search for more neighbors of queries that are close to many duplicates. Approximate search
                # isn't made for so many.
                rows, n, exact = unfinished, 4 * n, True
        return out

    def _nearest(self, vectors: np.ndarray, k: int, exact: bool) -> Tuple[np.ndarray, np.ndarray]:
        assert self._store is not None
        return self._store.search(vectors, k, exact)

    @_locked
    def encode(self, queries: Sequence[LabelledText]) -> np.ndarray:
        """Embed queries. The vector of a text that is in the index is taken from the index.

        queries (Sequence[LabelledText]): The queries.
        RETURNS (ndarray): The vectors. float32, shape (queries, width).
        RAISES (LLMMismatchError): If the index was built with another encoder.
        """
        self._check_encoder()
        known = [self._numbers.get(query.text, -1) for query in queries]
        new = list({q.text: None for q, number in zip(queries, known) if number < 0})
        encoded = dict(zip(new, self.encoder.encode(new) if new else ()))
        rows = [self.vectors[n] if n >= 0 else encoded[q.text] for q, n in zip(queries, known)]
        return np.stack(rows) if rows else np.zeros((0, self.encoder.width), dtype=np.float32)

    @_locked
    def compare(
        self,
        query: LabelledText,
        vector: np.ndarray,
        numbers: Sequence[int],
        *,
        max_similarity: float = 0.98,
    ) -> List[Hit]:
        """Compare a query with some of the examples. The query itself is excluded as in `search`.

        query (LabelledText): The query.
        vector (ndarray): The vector of the query, from `encode`. Shape (width,).
        numbers (Sequence[int]): The indices of the examples.
        max_similarity (float): See `search`.
        RETURNS (List[Hit]): The examples, the most similar first.
        """
        chosen = np.asarray(numbers, dtype=np.int64)
        return self._allowed(query, self.vectors[chosen] @ vector, chosen, max_similarity)

    def _allowed(
        self,
        query: LabelledText,
        similarities: np.ndarray,
        numbers: np.ndarray,
        max_similarity: float,
    ) -> List[Hit]:
        """RETURNS (List[Hit]): The examples that are not excluded, the most similar first. A text that is
        in the index several times, with different entities, is returned once."""
        hits: Dict[str, Hit] = {}
        for similarity, number in zip(similarities.tolist(), numbers.tolist()):
            if number < 0 or similarity > max_similarity:
                continue
            example = self.examples[number]
            # The doc_id of an example from `spacy llmner index` names its file. So compare the hash of the
            # example as well, since the example can be the whole document.
            same_document = (
                query.doc_id in (example.doc_id, example.hash) if query.doc_id else False
            )
            if not same_document and example.hash != query.hash:
                hit = Hit(number, round(similarity, DECIMALS))
                hits[example.hash] = min(hit, hits.get(example.hash, hit), key=_rank)
        return sorted(hits.values(), key=_rank)

    def _check_encoder(self) -> None:
        made_by = self._made_by
        if not made_by or made_by["fingerprint"] == self.encoder.fingerprint:
            return
        if made_by["fingerprint"] == getattr(self.encoder, "former_fingerprint", None):
            self._made_by = {**made_by, "fingerprint": self.encoder.fingerprint}
        else:
            message = Errors.E052.format(
                trained=made_by["name"],
                trained_print=made_by["fingerprint"],
                given=self.encoder.name,
                given_print=self.encoder.fingerprint,
                options=self.encoder.options,
            )
            raise LLMMismatchError(message)

    @_locked
    def to_disk(self, path: Union[str, Path]) -> None:
        """Save the index to a folder. The encoder isn't saved, only its name and fingerprint. An index
        that is already in the folder is replaced.

        path (Union[str, Path]): The folder.
        RAISES (OSError): If the index can't be written, for example because the disk is full. An existing
            index is not changed.
        """
        with replaced(Path(path), last=META) as folder:
            srsly.write_jsonl(folder / EXAMPLES, (_to_json(example) for example in self.examples))
            try:
                save_file(self._arrays(), folder / VECTORS)
            except SafetensorError as e:
                raise OSError(str(e)) from e
            srsly.write_json(folder / META, self._meta())

    def from_disk(self, path: Union[str, Path]) -> "ExampleIndex":
        """Load an index from a folder, in place of the current content. The encoder isn't loaded.

        path (Union[str, Path]): The folder.
        RETURNS (ExampleIndex): This index.
        RAISES (LLMNERError): If the folder doesn't exist, is incomplete or is damaged.
        """
        path = Path(path)
        try:
            meta = srsly.read_json(path / META)
            examples = (_from_json(line) for line in srsly.read_jsonl(path / EXAMPLES))
            return self._restore(meta, list(examples), load_file(path / VECTORS))
        except Exception as e:
            raise LLMNERError(Errors.E053.format(path=path, reason=_reason(e))) from e

    @_locked
    def to_bytes(self) -> bytes:
        """RETURNS (bytes): The serialized index, without the encoder."""
        examples = [_to_json(example) for example in self.examples]
        data = {"meta": self._meta(), "examples": examples, "arrays": save_arrays(self._arrays())}
        return srsly.msgpack_dumps(data)

    def from_bytes(self, data: bytes) -> "ExampleIndex":
        """Load a serialized index, in place of the current content. The encoder isn't loaded.

        data (bytes): The result of `to_bytes`.
        RETURNS (ExampleIndex): This index.
        RAISES (LLMNERError): If the bytes are not a serialized index.
        """
        try:
            saved = srsly.msgpack_loads(data)
            examples = [_from_json(line) for line in saved["examples"]]
            return self._restore(saved["meta"], examples, load_arrays(saved["arrays"]))
        except Exception as e:
            raise LLMNERError(Errors.E053.format(path="the given bytes", reason=_reason(e))) from e

    def __reduce__(self):
        return _from_bytes, (self.encoder, self.to_bytes())

    def _arrays(self) -> Dict[str, np.ndarray]:
        return {} if self._store is None else self._store.to_arrays()

    def _meta(self) -> Dict[str, Any]:
        return {
            "version": VERSION,
            "kind": self.kind,
            "examples": len(self),
            "encoder": self._made_by,
        }

    @_locked
    def _restore(
        self, meta: Dict[str, Any], examples: List[LabelledText], arrays: Dict[str, np.ndarray]
    ) -> "ExampleIndex":
        # Everything is read before anything is replaced.
        n_vectors = len(arrays.get("vectors", ()))
        if not len(examples) == n_vectors == meta["examples"]:
            found = f"there are {len(examples)} with {n_vectors} vectors"
            raise ValueError(f"{meta['examples']} examples expected, but {found}")
        if meta["version"] > VERSION:
            raise ValueError(f"written by a newer version of spacy-llmner ({meta['version']})")
        _check_kind(meta["kind"])
        made_by = {key: meta["encoder"][key] for key in ("name", "fingerprint") if examples}
        store = VectorStore.from_arrays(meta["kind"], arrays) if examples else None
        self.kind = meta["kind"]
        self.examples = []
        self._clear()
        self._store, self._made_by = store, made_by
        self._append(examples)
        return self


def incomplete_pool(path: Union[str, Path], error: Exception) -> LLMNERError:
    """Create an error about the examples in a saved pipeline. Unlike the errors of the index, it doesn't
    advise running `spacy llmner index`, since this command can't rebuild these examples.

    path (Union[str, Path]): What the examples were loaded from.
    error (Exception): The reason.
    RETURNS (LLMNERError): The error.
    """
    return LLMNERError(Errors.E072.format(path=path, reason=_reason(error.__cause__ or error)))


def _from_bytes(encoder: Encoder, data: bytes) -> ExampleIndex:
    return ExampleIndex(encoder).from_bytes(data)


def _rank(hit: Hit) -> Tuple[float, int]:
    return -hit.similarity, hit.number


def _check_kind(kind: str) -> None:
    if kind not in KINDS:
        known = ", ".join(KINDS)
        raise LLMNERError(Errors.E006.format(value=kind, what="kind of index", known=known))


def _to_json(example: LabelledText) -> Dict[str, Any]:
    return {"text": example.text, "entities": example.entities, "doc_id": example.doc_id}


def _from_json(line: Dict[str, Any]) -> LabelledText:
    entities = tuple((int(start), int(end), str(label)) for start, end, label in line["entities"])
    return LabelledText(line["text"], entities, line["doc_id"])


def _reason(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}"
