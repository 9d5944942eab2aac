"""Search vectors by inner product with FAISS, exactly or approximately."""

from typing import Any, Dict, Tuple

import faiss as _faiss
import numpy as np

from ..llm.spec import is_forked

faiss: Any = _faiss  # its type stubs are incomplete

KINDS = ("exact", "hnsw", "ivf")
# Chosen by measurement (docs/decisions.md, benchmarks/results/retrieval_index.json).
HNSW_LINKS = 32
HNSW_BUILD = 80
HNSW_SEARCH = 128
IVF_PROBES = 32
# With fewer vectors than this, "ivf" searches exactly, since that is fast enough.
IVF_SMALLEST = 10_000
# The lists are built again when the number of vectors has grown by this factor.
IVF_GROWTH = 4
# Number of vectors per list that k-means needs to find the centers.
IVF_SAMPLE = 64
SEED = 0


class VectorStore:
    """Vectors that can be searched. They are numbered from 0, in the order in which they are added.

    kind (str): "exact"; "hnsw", which searches a graph; or "ivf", which searches lists of vectors around
        centers. "ivf" is faster to build than "hnsw" and misses fewer neighbors, but it stores the vectors
        in memory twice.
    width (int): The length of a vector.
    """

    def __init__(self, kind: str, width: int) -> None:
        self.kind = kind
        self.flat = faiss.IndexFlatIP(width)
        self.graph: Any = None
        self.lists: Any = None
        # The number of vectors when the lists were built.
        self._n_listed_for = 0
        if kind == "hnsw":
            self.graph = faiss.IndexHNSW(self.flat, HNSW_LINKS)
            self.graph.hnsw.efConstruction = HNSW_BUILD

    def __len__(self) -> int:
        return self.flat.ntotal

    @property
    def width(self) -> int:
        """RETURNS (int): The length of a vector."""
        return self.flat.d

    @property
    def vectors(self) -> np.ndarray:
        """RETURNS (ndarray): All vectors. float32, shape (vectors, width). They are read-only, and become
        invalid when vectors are added."""
        if not len(self):
            return np.zeros((0, self.width), dtype=np.float32)
        values = faiss.rev_swig_ptr(self.flat.get_xb(), len(self) * self.width)
        return values.reshape(len(self), self.width)

    def add(self, vectors: np.ndarray) -> None:
        """Add vectors.

        vectors (ndarray): Vectors of length 1. float32, shape (vectors, width).
        """
        vectors = np.ascontiguousarray(vectors, dtype=np.float32)
        (self.flat if self.graph is None else self.graph).add(vectors)

    def search(
        self, queries: np.ndarray, k: int, exact: bool = False
    ) -> Tuple[np.ndarray, np.ndarray]:
        """Find the nearest vectors.

        queries (ndarray): The queries. float32, shape (queries, width).
        k (int): Number of vectors to find for each query.
        exact (bool): Search exactly, whatever the kind.
        RETURNS (Tuple[ndarray, ndarray]): The similarities and numbers of the vectors, shape (queries, k)
            each. The number is -1 if fewer than k vectors were found.
        """
        if is_forked():
            # FAISS's thread pool doesn't survive a fork, and neither does torch's.
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
        """Do what the first search would do otherwise: for "ivf", build the lists."""
        n = len(self)
        if self.kind != "ivf" or n < IVF_SMALLEST:
            return
        vectors = self.vectors
        if self.lists is None or n >= IVF_GROWTH * self._n_listed_for:
            # This is the number of lists that FAISS recommends for up to a million vectors.
            n_lists = int(4 * n**0.5)
            sample = vectors
            if n > IVF_SAMPLE * n_lists:
                rng = np.random.default_rng(SEED)
                sample = vectors[np.sort(rng.choice(n, IVF_SAMPLE * n_lists, replace=False))]
            means = faiss.Kmeans(self.width, n_lists, niter=10, seed=SEED, spherical=True)
            means.train(np.ascontiguousarray(sample))
            self._build_lists(means.centroids, n)
        if self.lists.ntotal < n:
            self.lists.add(vectors[self.lists.ntotal :])

    def to_arrays(self) -> Dict[str, np.ndarray]:
        """Serialize the vectors and the graph or the lists, so that a search finds the same neighbors after
        loading.

        RETURNS (Dict[str, ndarray]): Arrays for `from_arrays`.
        """
        self.prepare()
        arrays = {"vectors": self.vectors}
        if self.graph is not None:
            # A graph that is built again could be different.
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
        """Load vectors.

        kind (str): The kind of the store that was serialized.
        arrays (Dict[str, ndarray]): The result of `to_arrays`.
        RETURNS (VectorStore): The vectors.
        RAISES (ValueError): If the graph or the lists don't fit the vectors.
        """
        vectors = arrays["vectors"]
        store = cls(kind, vectors.shape[1])
        store.flat.add(np.ascontiguousarray(vectors, dtype=np.float32))
        if kind == "hnsw":
            store.graph = faiss.deserialize_index(arrays["graph"])
            store.graph.storage = store.flat
            store.graph.own_fields = False
            if store.graph.ntotal != len(vectors):
                raise ValueError("the graph doesn't fit the vectors")
        if "centres" in arrays:
            list_of, n_lists = arrays["list_of"], len(arrays["centres"])
            # FAISS doesn't check these numbers, and would access memory out of bounds.
            inside = ((list_of >= 0) & (list_of < n_lists)).all()
            if list_of.shape != (len(vectors),) or list_of.dtype != np.int64 or not inside:
                raise ValueError("the lists don't fit the vectors")
            store._build_lists(arrays["centres"], int(arrays["listed_for"][0]))
            # The saved assignment is used, because a vector between two centers could be assigned
            # differently.
            pointers = [faiss.swig_ptr(a) for a in (store.vectors, list_of)]
            store.lists.add_core(len(vectors), pointers[0], None, pointers[1])
        return store

    def _build_lists(self, centres: np.ndarray, n_listed_for: int) -> None:
        quantizer = faiss.IndexFlatIP(self.width)
        self._centres = np.ascontiguousarray(centres, dtype=np.float32)
        quantizer.add(self._centres)
        self.lists = faiss.IndexIVFFlat(
            quantizer, self.width, len(centres), faiss.METRIC_INNER_PRODUCT
        )
        self.lists.is_trained = True
        self._n_listed_for = n_listed_for
