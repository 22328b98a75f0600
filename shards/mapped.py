"""The mapped tier: rows stay in the checkpoint's own file, and are read from it when asked for.

Row numbers are mapped to places in the file, not the file into memory. A read (pread) of a row
costs a microsecond more than a look at a mapped page, but a file that is cut off under a running
server gives an error where a mapped page would end the process; pages that the system keeps in its
cache do not count as the process's memory; and a row that lies across two pages costs one fault,
not two. Either way the file has to be opened for random access: with the default read-ahead every
row of a cold file costs the reading of some hundred kilobytes.
"""

from __future__ import annotations

import os
import weakref
from contextlib import ExitStack
from typing import Any

import numpy as np
import numpy.typing as npt

from shardserve.batching.errors import DataLoss, Unimplemented
from shardserve.shards.arguments import checked_rows
from shardserve.shards.chunks import pool_in_chunks
from shardserve.shards.distinct import DistinctFinder
from shardserve.shards.halves import HALVES, sums_dtype, widened
from shardserve.shards.kernels import POOLED
from shardserve.shards.layout import Slice
from shardserve.shards.reads import plan_rows
from shardserve.shards.row_cache import CacheCounts, RowCache
from shardserve.shards.row_files import Reader, opened
from shardserve.shards.storage import Tier
from shardserve.shards.store import array_dtype
from shardserve.shards.tables import Extent, TableSource

Array = npt.NDArray[Any]

#: Rows that a disk is asked for at a time. Measured cold, rows of 1 KiB: one at a time 95 us a row,
#: 16 at a time 13, 64 or more 9. Rows that the system has in its cache take 0.2 us longer.
AHEAD = 64
#: Rows are read once where at least this part of so many is repeated. Measured, rows of 64 and 512
#: bytes that the system has in its cache: 20,000 Zipf ids of exponents 0.9, 1.1 and 1.3 then take
#: 0.87, 0.55 and 0.3 of the time, 2,000 with an eighth repeated as long, 100 a tenth longer.
LEAST_REPEATS = 0.1
LEAST_ROWS = 1000


class MappedStore:
    """Rows in the checkpoint's data files, which stay open as long as the store is there.

    Nothing is read when it is made. With `cache_bytes`, hot rows are kept in memory besides.

    Raises NotFound or DataLoss, naming the file, when one is missing, cannot be opened or is too
    short for the table, and DataLoss when the extents do not make up the table. A lookup raises
    DataLoss when a file has become shorter since then, or cannot be read.
    """

    may_wait = True
    tier = Tier.MAPPED
    in_place = False

    def __init__(self, source: TableSource, piece: Slice, cache_bytes: int = 0) -> None:
        self._source = source
        self._piece = piece
        self._dtype = array_dtype(source.table.dtype)
        self._cache = (
            RowCache(cache_bytes, piece.columns * source.table.itemsize) if cache_bytes else None
        )
        self._distinct = DistinctFinder()
        _check_whole(source)
        with ExitStack() as files:
            self._files = {
                path: files.enter_context(opened(path))
                for path in sorted({extent.path for extent in source.extents})
            }
            for extent in source.extents:
                _check_size(self._files[extent.path], extent, source.table.itemsize)
            for file in self._files.values():
                os.posix_fadvise(file, 0, 0, os.POSIX_FADV_RANDOM)
            weakref.finalize(self, files.pop_all().close)

    @property
    def rows(self) -> int:
        return self._piece.rows.count

    @property
    def columns(self) -> int:
        return self._piece.columns

    @property
    def dtype(self) -> str:
        return self._source.table.dtype

    @property
    def nbytes(self) -> int:
        return self._piece.nbytes(self._source.table)

    @property
    def resident_bytes(self) -> int:
        return 0 if self._cache is None else self._cache.held_bytes

    @property
    def cache_counts(self) -> CacheCounts:
        """What became of the rows that were asked for; without a cache, nothing is counted."""
        return CacheCounts() if self._cache is None else self._cache.counts

    def block(self, first: int, last: int) -> Array:
        """Past the cache: who reads all rows would drive out those that are asked for often."""
        out = np.empty((last - first, self.columns), self._dtype)
        self._read(np.arange(first, last), out)
        return out

    def gather(self, rows: Array) -> Array:
        rows = checked_rows(rows, self.rows)
        out = np.empty((len(rows), self.columns), self._dtype)
        self._fetch(rows, out)
        return out

    def pool(self, rows: Array, offsets: Array, weights: Array | None) -> Array:
        fetch = self._fetch_wide if self.dtype in HALVES else self._fetch
        sums = sums_dtype(self.dtype)
        if sums.name not in POOLED:
            raise Unimplemented(f"pooling rows of {self.dtype} is not implemented")
        return pool_in_chunks(fetch, self.rows, (self.columns, sums), rows, offsets, weights)

    def _fetch_wide(self, rows: Array, out: Array) -> None:
        halves = np.empty((len(rows), self.columns), self._dtype)
        self._fetch(rows, halves)
        out[:] = widened(halves, self.dtype)

    def _fetch(self, rows: Array, out: Array) -> None:
        if self._cache is None:
            self._read(rows, out)
            return
        held = out.view(np.uint8)
        missing = self._cache.take(rows, held)
        if len(missing):
            wanted = rows[missing]
            read = np.empty((len(missing), self.columns), self._dtype)
            self._read(wanted, read)
            out[missing] = read
            self._cache.put(wanted, read.view(np.uint8))

    def _read(self, rows: Array, out: Array) -> None:
        many = len(rows) >= LEAST_ROWS
        found = self._distinct.find(rows, LEAST_REPEATS) if many else None
        if found is None:
            self._read_each(rows, out)
            return
        read = np.empty((len(found.values), self.columns), self._dtype)
        self._read_each(found.values, read)
        # Places need no check, and without one numpy writes straight into `out`.
        read.take(found.places, axis=0, out=out, mode="clip")

    def _read_each(self, rows: Array, out: Array) -> None:
        reader = Reader(out, self._files, ahead=AHEAD if len(rows) > 1 else 0)
        for read in plan_rows(self._source, self._piece, self._piece.rows.at(rows)):
            reader.read(read)


def _check_whole(source: TableSource) -> None:
    table = source.table
    found = sum(extent.rows * extent.columns for extent in source.extents)
    if found != table.rows * table.columns:
        raise DataLoss(
            f"table {table.name!r}: the checkpoint holds {found * table.itemsize} bytes of it, "
            f"it has {table.nbytes}"
        )


def _check_size(file: int, extent: Extent, itemsize: int) -> None:
    needed = extent.offset + extent.rows * extent.columns * itemsize
    size = os.fstat(file).st_size
    if size < needed:
        raise DataLoss(f"data file {extent.path} is {size} bytes, the table needs {needed}")
