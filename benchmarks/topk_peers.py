"""Who else finds the k best of many items by inner product, in one process, on one thread."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]
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


def faiss_flat(items: Array, k: int) -> Search:
    """faiss's exhaustive search."""
    faiss = import_module("faiss")
    faiss.omp_set_num_threads(1)
    index = faiss.IndexFlatIP(items.shape[1])
    index.add(items)

    def run(queries: Array) -> tuple[Array, Array]:
        values, indices = index.search(queries, k)
        return np.asarray(values), np.asarray(indices)

    return run


PEERS: dict[str, Callable[[Array, int], Search]] = {
    "tf.math.top_k(tf.matmul)": tensorflow,
    "faiss IndexFlatIP": faiss_flat,
}
