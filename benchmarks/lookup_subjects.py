"""Who gathers and pools, each over one table, each on one thread and with inputs as it likes them.

A subject turns ids into a call; only the call is timed. `ids` is int64 [bags, bag].
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from importlib import import_module
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]
Call = Callable[[], Any]

HUGE_PAGE = 2 << 20
_MADV_COLLAPSE = 25


class Subject(Protocol):
    """Something that can sum the rows of bags; `gathering` is None if it cannot gather alone."""

    def pooling(self, ids: Array) -> Call:
        """A call that answers the sums of the bags, [bags, dim]."""
        ...

    def gathering(self, ids: Array) -> Call | None:
        """A call that answers the rows, [bags * bag, dim]."""
        ...


def _offsets(ids: Array) -> Array:
    return np.arange(0, ids.size + 1, ids.shape[1])


class Ours:
    """shardserve's host store, over the table itself, as a shard has it."""

    def __init__(self, table: Array) -> None:
        from shardserve.shards.store import HostStore

        self._store = HostStore(table)

    def pooling(self, ids: Array) -> Call:
        rows, offsets = ids.reshape(-1), _offsets(ids)
        return lambda: self._store.pool(rows, offsets, None)

    def gathering(self, ids: Array) -> Call:
        rows = ids.reshape(-1)
        return lambda: self._store.gather(rows)


class Numpy:
    """`numpy.take` and `numpy.add.reduceat`, over the same array as ours."""

    def __init__(self, table: Array) -> None:
        self._table = table

    def pooling(self, ids: Array) -> Call:
        rows, starts = ids.reshape(-1), _offsets(ids)[:-1]
        return lambda: np.add.reduceat(self._table.take(rows, axis=0), starts, axis=0)

    def gathering(self, ids: Array) -> Call:
        rows = ids.reshape(-1)
        return lambda: self._table.take(rows, axis=0)


class TfGather:
    """`tf.gather` and `tf.reduce_sum` over bags of one length, in a `tf.function`."""

    def __init__(self, table: Array) -> None:
        self._tf = _tensorflow()
        variable = self._tf.Variable(table)
        self._pool = self._tf.function(
            lambda ids: self._tf.reduce_sum(self._tf.gather(variable, ids), axis=1)
        )
        self._gather = self._tf.function(lambda ids: self._tf.gather(variable, ids))

    def pooling(self, ids: Array) -> Call:
        tensor = self._tf.constant(ids)
        return lambda: self._pool(tensor)

    def gathering(self, ids: Array) -> Call:
        tensor = self._tf.constant(ids.reshape(-1))
        return lambda: self._gather(tensor)


class TfSparse:
    """`tf.nn.embedding_lookup_sparse` with combiner "sum", in a `tf.function`."""

    def __init__(self, table: Array) -> None:
        self._tf = tf = _tensorflow()
        variable = tf.Variable(table)
        self._pool = tf.function(
            lambda ids: tf.nn.embedding_lookup_sparse(variable, ids, None, combiner="sum")
        )

    def pooling(self, ids: Array) -> Call:
        bags, bag = ids.shape
        places = np.stack(np.divmod(np.arange(ids.size), bag), axis=1)
        sparse = self._tf.SparseTensor(places, ids.reshape(-1), (bags, bag))
        return lambda: self._pool(sparse)

    def gathering(self, ids: Array) -> None:
        return None


class TorchBag:
    """`torch.nn.functional.embedding_bag`, over the same memory as ours."""

    def __init__(self, table: Array) -> None:
        self._torch = _torch()
        self._table = self._torch.from_numpy(table)

    def pooling(self, ids: Array) -> Call:
        rows = self._torch.from_numpy(ids.reshape(-1))
        offsets = self._torch.from_numpy(_offsets(ids))
        bag = self._torch.nn.functional.embedding_bag
        return lambda: bag(rows, self._table, offsets, mode="sum", include_last_offset=True)

    def gathering(self, ids: Array) -> None:
        return None


class Fbgemm:
    """FBGEMM's inference TBE as installed: fp32 rows and sums, int32 ids, a table of its own."""

    def __init__(self, table: Array) -> None:
        self._torch = _torch()
        configs = import_module("fbgemm_gpu.split_embedding_configs")
        common = import_module("fbgemm_gpu.split_table_batched_embeddings_ops_common")
        inference = import_module("fbgemm_gpu.split_table_batched_embeddings_ops_inference")

        rows, dim = table.shape
        fp32 = configs.SparseType.FP32
        self._tables = inference.IntNBitTableBatchedEmbeddingBagsCodegen(
            [("table", rows, dim, fp32, common.EmbeddingLocation.HOST)],
            output_dtype=fp32,
            device="cpu",
        )
        self._tables.initialize_weights()
        ((weights, _),) = self._tables.split_embedding_weights()
        self._weights = weights
        weights.copy_(self._torch.from_numpy(table.view(np.uint8)))

    def pooling(self, ids: Array) -> Call:
        rows = self._torch.from_numpy(ids.reshape(-1).astype(np.int32))
        offsets = self._torch.from_numpy(_offsets(ids).astype(np.int32))
        return lambda: self._tables(rows, offsets)

    def gathering(self, ids: Array) -> None:
        return None


class FbgemmHugePages(Fbgemm):
    """The same with its table in huge pages, as ours is: what FBGEMM could do if it asked."""

    def __init__(self, table: Array) -> None:
        super().__init__(table)
        _collapse(self._weights.data_ptr(), self._weights.nbytes)


SUBJECTS: dict[str, Callable[[Array], Subject]] = {
    "shardserve": Ours,
    "numpy": Numpy,
    "tf.gather": TfGather,
    "tf.nn.embedding_lookup_sparse": TfSparse,
    "torch embedding_bag": TorchBag,
    "FBGEMM TBE fp32": Fbgemm,
    "FBGEMM TBE fp32, huge pages": FbgemmHugePages,
}


def sequential_read() -> Callable[[Array], np.float32]:
    """A function that sums a float32 array from its first element to its last, at memory's speed.

    Sums may be taken in any order: numba then compiles it to vectors and several sums at a time,
    so that nothing but memory is waited for. A sum in order would wait for each addition, and read
    at a quarter of the rate.
    """
    import numba

    def total(values: Array) -> np.float32:
        result = np.float32(0)
        for i in range(len(values)):
            result += values[i]
        return result

    summed: Callable[[Array], np.float32] = numba.njit(total, fastmath=True)
    return summed


def _collapse(address: int, nbytes: int) -> None:
    """Move memory that is in use into huge pages (madvise(2), MADV_COLLAPSE, Linux 6.1)."""
    first = -(-address // HUGE_PAGE) * HUGE_PAGE
    length = (address + nbytes - first) // HUGE_PAGE * HUGE_PAGE
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.madvise(ctypes.c_void_p(first), ctypes.c_size_t(length), _MADV_COLLAPSE):
        raise OSError(ctypes.get_errno(), "madvise: cannot collapse into huge pages")


def _tensorflow() -> Any:
    import tensorflow as tf

    if not tf.executing_eagerly() or tf.config.threading.get_intra_op_parallelism_threads() != 1:
        tf.config.threading.set_intra_op_parallelism_threads(1)
        tf.config.threading.set_inter_op_parallelism_threads(1)
    return tf


def _torch() -> Any:
    import torch

    torch.set_num_threads(1)
    return torch
