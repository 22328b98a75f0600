"""Who else finds the k best of many items by inner product, in one process, on one thread."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]
FAISS, FAISS_BLAS = "faiss IndexFlatIP", "faiss IndexFlatIP, BLAS from 20 queries"
#: Queries [n, dim] to values [n, k], best first, and the items' numbers.
Search = Callable[[Array], tuple[Array, Array]]


def tensorflow(items: Array, k: int) -> Search:
    """`tf.linalg.top_k(tf.matmul(...))`, that is `tf.math.top_k`, in a `tf.function`."""
    tf = import_module("tensorflow")
    tf.config.threading.set_intra_op_parallelism_threads(1)
    tf.config.threading.set_inter_op_parallelism_threads(1)
    variable = tf.Variable(items)
    search = tf.function(
        lambda queries: tf.math.top_k(tf.matmul(queries, variable, transpose_b=True), k),
        input_signature=[tf.TensorSpec([None, items.shape[1]], tf.float32)],
    )

    def run(queries: Array) -> tuple[Array, Array]:
        values, indices = search(tf.constant(queries))
        return values.numpy(), indices.numpy()

    return run


class Faiss:
    """faiss's exhaustive search, as it is and with BLAS for batches; both over one index."""

    def __init__(self, items: Array, k: int) -> None:
        self._faiss = import_module("faiss")
        self._faiss.omp_set_num_threads(1)
        self._index = self._faiss.IndexFlatIP(items.shape[1])
        self._index.add(items)
        self._k = k
        self._default = self._faiss.cvar.distance_compute_blas_threshold

    def installed(self, queries: Array) -> tuple[Array, Array]:
        """With the settings that it comes with."""
        return self._search(queries, self._default)

    def blas(self, queries: Array) -> tuple[Array, Array]:
        """With BLAS for 20 queries or more, as it was its default once."""
        return self._search(queries, 20)

    def _search(self, queries: Array, threshold: int) -> tuple[Array, Array]:
        self._faiss.cvar.distance_compute_blas_threshold = threshold
        values, indices = self._index.search(queries, self._k)
        return np.asarray(values), np.asarray(indices)


def peers(items: Array, k: int) -> tuple[dict[str, Search], dict[str, str]]:
    """Every peer by name, and those that are not installed with the reason."""
    found = {"tf.math.top_k(tf.matmul)": tensorflow(items, k)}
    try:
        faiss = Faiss(items, k)
    except ImportError as error:
        return found, {FAISS: f"not installed: {error}"}
    return found | {FAISS: faiss.installed, FAISS_BLAS: faiss.blas}, {}
