"""The memory tier at a precision below the table's own: rows are widened as they are read."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt

from shardserve.shards.arguments import integers
from shardserve.shards.chunks import pool_in_chunks
from shardserve.shards.kernels import AHEAD, AHEAD_IN_STEPS, address_of, call_pool, check_found
from shardserve.shards.native import library
from shardserve.shards.storage import Precision, Tier, coded_row_bytes

Array = npt.NDArray[Any]


class CodedStore:
    """Rows of float32, kept as `encoding.encode` makes them. Owns `coded` from now on.

    `coded` is uint8 [rows, bytes of a row]. A pool is to the bit the sum of what is gathered.
    """

    may_wait = False
    dtype = "float32"
    tier = Tier.MEMORY
    in_place = False

    def __init__(self, coded: Array, precision: Precision, columns: int) -> None:
        if coded.shape[1] != coded_row_bytes(precision, columns) or not coded.flags.c_contiguous:
            raise ValueError(f"{coded.shape} are no rows of {columns} {precision}")
        kernels = library("coded").kernels
        self._coded = coded
        self._columns = columns
        self._gather = partial(kernels[f"gather_{precision}"], address_of(coded), *coded.shape)
        self._pool = kernels.get(f"pool_{precision}_{columns}")

    @property
    def rows(self) -> int:
        return len(self._coded)

    @property
    def columns(self) -> int:
        return self._columns

    @property
    def nbytes(self) -> int:
        return self._coded.nbytes

    @property
    def resident_bytes(self) -> int:
        return self.nbytes

    def block(self, first: int, last: int) -> Array:
        return self.gather(np.arange(first, last))

    def gather(self, rows: Array) -> Array:
        rows, _ = integers(rows, "row numbers")
        out = np.empty((len(rows), self._columns), np.float32)
        self._fetch(rows, out)
        return out

    def pool(self, rows: Array, offsets: Array, weights: Array | None) -> Array:
        sums = (self._columns, np.float32)
        if self._pool is not None:
            return call_pool(self._pool, self._coded, sums, rows, offsets, weights, AHEAD_IN_STEPS)
        return pool_in_chunks(self._fetch, self.rows, sums, rows, offsets, weights)

    def _fetch(self, rows: Array, out: Array) -> None:
        rows, wide = integers(rows, "row numbers")
        found = self._gather(
            self._columns, address_of(rows), wide, len(rows), AHEAD, address_of(out)
        )
        check_found(found, rows, self.rows)
