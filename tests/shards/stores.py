"""Stores to hold against the conformance suite, made from an array that each of them then holds."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import numpy as np

from shardserve.shards.coded import CodedStore
from shardserve.shards.encoding import encode
from shardserve.shards.layout import Slice
from shardserve.shards.mapped import MappedStore
from shardserve.shards.rows import RowSet
from shardserve.shards.storage import Precision, Storage, Tier
from shardserve.shards.store import SliceStore
from shardserve.shards.tables import Extent, Table, TableSource

Make = Callable[[np.ndarray, str], SliceStore]

#: Bytes of something else at the beginning of a data file.
HEAD = 100


def coded(precision: Precision) -> Make:
    """Makes stores of float32 at another precision."""

    def make(array: np.ndarray, dtype: str) -> SliceStore:
        assert dtype == "float32"
        kept, fits = encode(precision, array)
        assert fits.all()
        return CodedStore(kept, precision, array.shape[1])

    return make


def mapped(
    rows_of: Callable[[int], RowSet],
    *,
    column_start: int = 0,
    cuts: bool = False,
    cache_bytes: int = 0,
) -> Callable[[Path], Make]:
    """Makes stores of a slice of a larger table on disk, what is not in the slice being noise.

    `rows_of` gives the slice's rows by their number. With `cuts` the table is saved in four boxes.
    """

    def within(directory: Path) -> Make:
        def make(array: np.ndarray, dtype: str) -> SliceStore:
            rows = rows_of(len(array))
            numbers = rows.rows(0, rows.count)
            columns = slice(column_start, column_start + array.shape[1])
            shape = (int(numbers.max()) + 1, columns.stop + column_start)
            shape = (getattr(rows, "total", shape[0]), shape[1])
            noise = np.random.default_rng(9).integers(0, 256, (*shape, array.itemsize), np.uint8)
            table = noise.view(array.dtype)[..., 0]
            table[numbers, columns] = array
            source = written(directory / "data", table, dtype, cuts=cuts)
            storage = Storage(Tier.MAPPED)
            piece = Slice("table", 0, rows, columns.start, columns.stop, storage)
            return MappedStore(source, piece, cache_bytes)

        return make

    return within


def written(path: Path, table: np.ndarray, dtype: str, *, cuts: bool = False) -> TableSource:
    """A table, written to a file whole or in four boxes."""
    rows, columns = table.shape
    row_cuts = (0, rows // 2, rows) if cuts else (0, rows)
    column_cuts = (0, columns // 2, columns) if cuts else (0, columns)
    extents = []
    with path.open("wb") as file:
        file.write(bytes(HEAD))
        for row_start, row_stop in pairwise(row_cuts):
            for start, stop in pairwise(column_cuts):
                extents.append(Extent(str(path), file.tell(), row_start, row_stop, start, stop))
                file.write(table[row_start:row_stop, start:stop].tobytes())
    return TableSource(Table("table", dtype, rows, (columns,)), tuple(extents))


def dealt_out(path: Path, table: np.ndarray, parts: int) -> TableSource:
    """A table, written to a file in `parts` runs: row r is in run r % parts."""
    rows, columns = table.shape
    extents = []
    with path.open("wb") as file:
        for part in range(parts):
            extents.append(Extent(str(path), file.tell(), part, rows, 0, columns, parts))
            file.write(table[part::parts].tobytes())
    return TableSource(Table("table", table.dtype.name, rows, (columns,)), tuple(extents))
