"""Slice stores: where a slice's rows are kept, and what can be asked of them there.

One protocol for every tier: host memory here, files in `mapped.py`, GPUs in `gpu_store.py`.
`tests/shards/test_store.py` is the conformance suite that each has to pass.
"""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from shardserve.shards.coded import CodedStore
from shardserve.shards.halves import HALVES
from shardserve.shards.kernels import RowKernels
from shardserve.shards.storage import Precision, Tier

Array = npt.NDArray[Any]


class SliceStore(Protocol):
    """The rows of one slice, by local number. Safe for many threads at once; never changes."""

    @property
    def rows(self) -> int:
        """How many rows."""
        ...

    @property
    def columns(self) -> int:
        """Elements in a row."""
        ...

    @property
    def dtype(self) -> str:
        """The table's dtype: a numpy name, or "bfloat16", whose arrays are of uint16."""
        ...

    @property
    def nbytes(self) -> int:
        """Bytes that the rows take where they are kept."""
        ...

    @property
    def tier(self) -> Tier:
        """Where the rows are kept."""
        ...

    @property
    def resident_bytes(self) -> int:
        """Bytes of the tier's memory that rows take now: of a mapped slice, the cached ones'."""
        ...

    @property
    def may_wait(self) -> bool:
        """Whether an answer may have to wait for a disk or a device."""
        ...

    @property
    def in_place(self) -> bool:
        """Whether `block` shows rows where they are kept, and costs nothing."""
        ...

    def block(self, first: int, last: int) -> Array:
        """Rows [first, last), 0 <= first <= last <= rows: [last - first, columns].

        Not to be written to. Raises DataLoss or Internal as `gather` does, where it has to fetch.
        """
        ...

    def gather(self, rows: Array) -> Array:
        """[n, columns]: the rows that `rows`, int32 or int64 [n], names, bytes unchanged.

        Raises InvalidArgument, naming the place and the number, for a row outside the slice.
        """
        ...

    def pool(self, rows: Array, offsets: Array, weights: Array | None) -> Array:
        """[bags, columns]: bag b is the sum of rows[offsets[b]:offsets[b + 1]], weighted.

        As `Part` has it. Raises InvalidArgument as `gather` does, and for offsets or weights that
        do not fit the rows; Unimplemented for a dtype that this store does not pool. Sums are of
        the table's dtype; those of half precision, and their weights, are float32.
        """
        ...


class HostStore:
    """Rows in host memory. Owns `array` [rows, columns], contiguous, from now on.

    `dtype` is the table's where numpy has no name for it: "bfloat16" over an array of uint16.
    """

    may_wait = False
    tier = Tier.MEMORY
    in_place = True

    def __init__(self, array: Array, dtype: str | None = None) -> None:
        self._kernels = RowKernels(array)
        self._dtype = dtype or array.dtype.name
        self._halves = (
            CodedStore(array.view(np.uint8), Precision(self._dtype), array.shape[1])
            if self._dtype in HALVES
            else None
        )

    @property
    def rows(self) -> int:
        return self._kernels.count

    @property
    def columns(self) -> int:
        return self._kernels.columns

    @property
    def dtype(self) -> str:
        return self._dtype

    @property
    def nbytes(self) -> int:
        return self._kernels.table.nbytes

    @property
    def resident_bytes(self) -> int:
        return self.nbytes

    def block(self, first: int, last: int) -> Array:
        return self._kernels.table[first:last]

    def gather(self, rows: Array) -> Array:
        return self._kernels.gather(rows)

    def pool(self, rows: Array, offsets: Array, weights: Array | None) -> Array:
        if self._halves is not None:
            return self._halves.pool(rows, offsets, weights)
        return self._kernels.pool(rows, offsets, weights)


def array_dtype(dtype: str) -> np.dtype[Any]:
    """The numpy dtype of the arrays that hold a table's `dtype`."""
    return np.dtype(np.uint16 if dtype == "bfloat16" else dtype)
