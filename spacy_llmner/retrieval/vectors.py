"""Vectors and FAISS: search by inner product, exactly or nearly so."""

from typing import Any, Dict, Tuple

import faiss as _faiss
import numpy as np

from ..llm.spec import is_forked

faiss: Any = _faiss  # whose type stubs lack half of it

KINDS = ("exact", "hnsw", "ivf")
# Chosen by measurement (docs/decisions.md, benchmarks/results/retrieval_index.json).
HNSW_LINKS = 32
HNSW_BUILD = 80
HNSW_SEARCH = 128
IVF_PROBES = 32
# Below so many vectors an exact search takes no time. Lists are made again when the index has grown.
IVF_SMALLEST = 10_000
IVF_GROWTH = 4
# k-means needs no more than that to find the lists' centres.
IVF_SAMPLE = 64
SEED = 0


class VectorStore:
    """Vectors, numbered from 0 as they come.

    kind (str): "exact"; "hnsw", a graph; or "ivf", lists around centres, which is quicker to build and
        misses less, but has the vectors in memory twice.
    width (int): Of a vector.
    """

    def __init__(self, kind: str, width: int) -> None:
        self.kind = kind
        self.flat = faiss.IndexFlatIP(width)
        self.graph: Any = None
        self.lists: Any = None
        self._n_listed_for = 0
        if kind == "hnsw":
            self.graph = faiss.IndexHNSW(self.flat, HNSW_LINKS)
            self.graph.hnsw.efConstruction = HNSW_BUILD

    def __len__(self) -> int:
        return self.flat.ntotal

    @property
    def width(self) -> int:
        return self.flat.d

    @property
    def vectors(self) -> np.ndarray:
        """float32, shape (vectors, width). Not to be written to, nor kept while vectors are added."""
        if not len(self):
            return np.zeros((0, self.width), dtype=np.float32)
        values = faiss.rev_swig_ptr(self.flat.get_xb(), len(self) * self.width)
        return values.reshape(len(self), self.width)

    def add(self, vectors: np.ndarray) -> None:
        """vectors (ndarray): float32, shape (vectors, width), rows of length 1."""
        vectors = np.ascontiguousarray(vectors, dtype=np.float32)
        (self.flat if self.graph is None else self.graph).add(vectors)

    def search(
        self, queries: np.ndarray, k: int, exact: bool = False
    ) -> Tuple[np.ndarray, np.ndarray]:
        """Find the nearest vectors.

        queries (ndarray): float32, shape (queries, width).
        exact (bool): Whatever the kind.
        RETURNS (Tuple[ndarray, ndarray]): Similarities and numbers, shape (queries, k). A number of -1
            means that no more were found.
        """
        if is_forked():
            # Like torch's, FAISS's thread pool does not survive a fork.
            faiss.omp_set_num_threads(1)
        queries = np.ascontiguousarray(queries, dtype=np.float32)
        if self.kind == "ivf" and not exact:
            self.prepare()
        if exact or (self.graph is None and self.lists is None):
            return self.flat.search(queries, k)
        if self.graph is not None:
            params = faiss.SearchParametersHNSW(efSearch=max(HNSW_SEARCH, 2 * k))
            return self.graph.search(queries, k, params=params)
        return self.lists.search(queries, k, params=faiss.SearchParametersIVF(nprobe=IVF_PROBES))

    def prepare(self) -> None:
        """Do the work that the first search would do. That of "ivf" is to make lists."""
        n = len(self)
        if self.kind != "ivf" or n < IVF_SMALLEST:
            return
        vectors = self.vectors
        if self.lists is None or n >= IVF_GROWTH * self._n_listed_for:
            # As many as FAISS advises for up to a million vectors.
            n_lists = int(4 * n**0.5)
            sample = vectors
            if n > IVF_SAMPLE * n_lists:
                rng = np.random.default_rng(SEED)
                sample = vectors[np.sort(rng.choice(n, IVF_SAMPLE * n_lists, replace=False))]
            means = faiss.Kmeans(self.width, n_lists, niter=10, seed=SEED, spherical=True)
            means.train(np.ascontiguousarray(sample))
            self._make_lists(means.centroids, n)
        if self.lists.ntotal < n:
            self.lists.add(vectors[self.lists.ntotal :])

    def to_arrays(self) -> Dict[str, np.ndarray]:
        """RETURNS (Dict[str, ndarray]): All that from_arrays needs, so that it finds the same."""
        self.prepare()
        arrays = {"vectors": self.vectors}
        if self.graph is not None:
            # A graph built again could be another one.
            arrays["graph"] = faiss.serialize_index(self.graph, faiss.IO_FLAG_SKIP_STORAGE)
        if self.lists is not None:
            arrays["centres"] = self._centres
            arrays["listed_for"] = np.array([self._n_listed_for])
            arrays["list_of"] = np.zeros(len(self), dtype=np.int64)
            for number in range(self.lists.nlist):
                size = self.lists.invlists.list_size(number)
                if size:
                    members = faiss.rev_swig_ptr(self.lists.invlists.get_ids(number), size)
                    arrays["list_of"][members] = number
        return arrays

    @classmethod
    def from_arrays(cls, kind: str, arrays: Dict[str, np.ndarray]) -> "VectorStore":
        """RETURNS (VectorStore): The one that gave the arrays."""
        vectors = arrays["vectors"]
        store = cls(kind, vectors.shape[1])
        store.flat.add(np.ascontiguousarray(vectors, dtype=np.float32))
        if kind == "hnsw":
            store.graph = faiss.deserialize_index(arrays["graph"])
            store.graph.storage = store.flat
            store.graph.own_fields = False
            if store.graph.ntotal != len(vectors):
                raise ValueError("the graph is of other vectors")
        if "centres" in arrays:
            list_of, n_lists = arrays["list_of"], len(arrays["centres"])
            # FAISS would read and write whatever memory they point to.
            inside = ((list_of >= 0) & (list_of < n_lists)).all()
            if list_of.shape != (len(vectors),) or list_of.dtype != np.int64 or not inside:
                raise ValueError("the lists are of other vectors")
            store._make_lists(arrays["centres"], int(arrays["listed_for"][0]))
            # As they were: a vector between two centres could come into the other's list.
            pointers = [faiss.swig_ptr(a) for a in (store.vectors, list_of)]
            store.lists.add_core(len(vectors), pointers[0], None, pointers[1])
        return store

    def _make_lists(self, centres: np.ndarray, n_listed_for: int) -> None:
        quantizer = faiss.IndexFlatIP(self.width)
        self._centres = np.ascontiguousarray(centres, dtype=np.float32)
        quantizer.add(self._centres)
        self.lists = faiss.IndexIVFFlat(
            quantizer, self.width, len(centres), faiss.METRIC_INNER_PRODUCT
        )
        self.lists.is_trained = True
        self._n_listed_for = n_listed_for
