"""ExampleIndex: labelled texts that can be found by similarity."""

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
# Similarities that differ by less are equal: a vector's last bits depend on the batch it was in.
DECIMALS = 5
# Nearest neighbours asked for besides k, since some may be left out.
SPARE = 8
# Queries searched at once.
SEARCH_BATCH = 256

Method = TypeVar("Method", bound=Callable[..., Any])


@dataclass(frozen=True)
class Hit:
    """An example that was found.

    number (int): Its place in ExampleIndex.examples.
    similarity (float): Cosine to the query, -1 to 1.
    """

    number: int
    similarity: float


def _locked(method: Method) -> Method:
    """Only one thread at a time is in the index: FAISS does not bear to be searched while it grows."""

    @wraps(method)
    def call(self: "ExampleIndex", *args: Any, **kwargs: Any) -> Any:
        with self.lock:
            return method(self, *args, **kwargs)

    return cast(Method, call)


class ExampleIndex:
    """Labelled texts and their vectors. Threads may use it at once.

    encoder (Encoder): Encodes the texts and the queries.
    kind (str): "exact"; for more than 100,000 examples "hnsw" or "ivf", which miss a few neighbours.
    examples (List[LabelledText]): What is in it. Don't write to it.
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
        """float32, shape (examples, width), rows of length 1. Not to be written to, nor kept while
        examples are added."""
        if self._store is None:
            return np.zeros((0, 0), dtype=np.float32)
        return self._store.vectors

    def labels(self) -> "Counter[str]":
        """RETURNS (Counter[str]): How many entities there are of each label."""
        return Counter(label for example in self.examples for _, _, label in example.entities)

    def add(
        self, examples: Iterable[LabelledText], *, progress: bool = False, batch_size: int = 1024
    ) -> int:
        """Add examples, other than those that are there already (the same text, but for case and
        white space, with the same entities) and those without text.

        examples (Iterable[LabelledText]): May be a generator: only one batch is read at a time.
        progress (bool): Show a progress bar, if standard error is a terminal.
        batch_size (int): Examples encoded at once.
        RETURNS (int): How many were added.
        RAISES (LLMMismatchError): If those that are there were encoded by another encoder.
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
        self._remember(list(new.values()))

    def _remember(self, examples: List[LabelledText]) -> None:
        for number, example in enumerate(examples, len(self.examples)):
            self._seen.add((example.hash, example.entities))
            self._numbers.setdefault(example.text, number)
        self.examples.extend(examples)

    @_locked
    def search(
        self, queries: Sequence[LabelledText], k: int, *, max_similarity: float = 0.98
    ) -> List[List[Hit]]:
        """Find the most similar examples. Never the query itself: no example of the same document (if its
        doc_id is known), with the same text, or nearer than max_similarity.

        k (int): How many.
        max_similarity (float): Cosine above which an example counts as the query.
        RETURNS (List[List[Hit]]): Per query up to k, the most similar first, ties by number. Empty lists if
            the index is empty, and for a query without text.
        RAISES (LLMMismatchError): If the examples were encoded by another encoder.
        """
        out: List[List[Hit]] = [[] for _ in queries]
        if not len(self) or k < 1:
            return out
        vectors = self.encode(queries)
        meaningful = np.flatnonzero(vectors.any(axis=1)).tolist()
        for first in range(0, len(meaningful), SEARCH_BATCH):
            rows = meaningful[first : first + SEARCH_BATCH]
            wanted, exact = k + SPARE, False
            while rows:
                wanted = min(wanted, len(self))
                found = self._nearest(vectors[rows], wanted, exact)
                short = []
                for row, (similarities, numbers) in zip(rows, zip(*found)):
                    hits = self._allowed(queries[row], similarities, numbers, max_similarity)
                    # Of examples as similar as the last one found, others could come first by number.
                    edge = round(float(similarities[-1]), DECIMALS)
                    enough = len(hits) >= k and hits[k - 1].similarity > edge
                    if enough or (exact and wanted == len(self)):
                        out[row] = hits[:k]
                    else:
                        short.append(row)
                # Those near many duplicates. An approximate search can't be asked for that many.
                rows, wanted, exact = short, 4 * wanted, True
        return out

    def _nearest(self, vectors: np.ndarray, k: int, exact: bool) -> Tuple[np.ndarray, np.ndarray]:
        assert self._store is not None
        return self._store.search(vectors, k, exact)

    @_locked
    def encode(self, queries: Sequence[LabelledText]) -> np.ndarray:
        """Encode queries; those whose text is in the index have their vector already.

        RETURNS (ndarray): float32, shape (queries, width).
        RAISES (LLMMismatchError): If the examples were encoded by another encoder.
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
        """Compare a query to chosen examples, leaving out what `search` would leave out.

        vector (ndarray): Of the query.
        RETURNS (List[Hit]): The most similar first.
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
        """RETURNS (List[Hit]): The most similar first. A text that is there several times, with other
        entities, counts once."""
        hits: Dict[str, Hit] = {}
        for similarity, number in zip(similarities.tolist(), numbers.tolist()):
            if number < 0 or similarity > max_similarity:
                continue
            example = self.examples[number]
            # Examples of `spacy llmner index` name their file instead, but may be that whole document.
            same_document = (
                query.doc_id in (example.doc_id, example.hash) if query.doc_id else False
            )
            if not same_document and example.hash != query.hash:
                hit = Hit(number, round(similarity, DECIMALS))
                hits[example.hash] = min(hit, hits.get(example.hash, hit), key=_rank)
        return sorted(hits.values(), key=_rank)

    def _check_encoder(self) -> None:
        made_by = self._made_by
        if made_by and made_by["fingerprint"] != self.encoder.fingerprint:
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
        """Save to a folder, in place of an index that is there. The encoder isn't saved but named.

        RAISES (OSError): If it can't be written, such as for lack of room; what was there stays.
        """
        with replaced(Path(path), last=META) as folder:
            srsly.write_jsonl(folder / EXAMPLES, (_to_json(example) for example in self.examples))
            try:
                save_file(self._arrays(), folder / VECTORS)
            except SafetensorError as e:
                raise OSError(str(e)) from e
            srsly.write_json(folder / META, self._meta())

    def from_disk(self, path: Union[str, Path]) -> "ExampleIndex":
        """Load in place of what is there. The encoder isn't loaded.

        RAISES (LLMNERError): If the folder is not there, incomplete or broken.
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
        """RETURNS (bytes): What to_disk would write."""
        examples = [_to_json(example) for example in self.examples]
        data = {"meta": self._meta(), "examples": examples, "arrays": save_arrays(self._arrays())}
        return srsly.msgpack_dumps(data)

    def from_bytes(self, data: bytes) -> "ExampleIndex":
        """Load in place of what is there. The encoder isn't loaded.

        RAISES (LLMNERError): If the bytes are of something else.
        """
        try:
            saved = srsly.msgpack_loads(data)
            examples = [_from_json(line) for line in saved["examples"]]
            return self._restore(saved["meta"], examples, load_arrays(saved["arrays"]))
        except Exception as e:
            raise LLMNERError(Errors.E053.format(path="The given bytes", reason=_reason(e))) from e

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
        """Everything is read before anything is replaced."""
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
        self._remember(examples)
        return self


def incomplete_pool(path: Union[str, Path], error: Exception) -> LLMNERError:
    """RETURNS (LLMNERError): About the examples of a saved pipeline, which `spacy llmner index`, named by
    the index, can't make again."""
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
