"""Which bytes of which files make up a slice, and where each goes. Pure: nothing is opened here."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from shardserve.shards.layout import Slice
from shardserve.shards.rows import (
    BaseRows,
    HotRows,
    RowHash,
    RowMod,
    RowRange,
    RowSet,
    hash_multiplier,
)
from shardserve.shards.tables import Extent, TableSource

IntArray = npt.NDArray[np.int64]

RUN_BYTES = 4 << 20
SCATTER_ROWS = 1 << 16


@dataclass(frozen=True)
class Run:
    """`nbytes` from byte `offset` of a file on, to byte `target` of the slice on."""

    path: str
    offset: int
    nbytes: int
    target: int


@dataclass(frozen=True, eq=False)
class Scatter:
    """`length` bytes of each of some rows of a file, each to a place of its own.

    Row r's are at byte `offset + r * row_bytes`; those of rows[i] go to byte
    `target + places[i] * place_bytes` of the result.
    """

    path: str
    offset: int
    row_bytes: int
    length: int
    rows: IntArray
    places: IntArray
    target: int
    place_bytes: int

    @property
    def nbytes(self) -> int:
        return self.length * len(self.rows)

    @property
    def apart(self) -> float:
        """Bytes from the beginning of a row to that of the next on average, where rows rise."""
        return int(self.rows[-1] - self.rows[0]) * self.row_bytes / len(self.rows)


Read = Run | Scatter


def plan_reads(source: TableSource, piece: Slice) -> Iterator[Read]:
    """Reads that together fetch each byte of the slice once, and no other byte.

    The slice is row-major [count, columns]. Reads of an extent follow its order on disk (so a
    Scatter's rows rise); each is at most RUN_BYTES or SCATTER_ROWS long, and made when it is asked
    for.
    """
    itemsize = source.table.itemsize
    if isinstance(piece.rows, HotRows):
        yield from plan_reads(source, replace(piece, rows=piece.rows.base))
        for extent in _extents(source, piece):
            for rows, places in _hot_of(extent, piece.rows):
                yield _scatter(extent, piece, itemsize, rows, places)
        return
    for extent in _extents(source, piece):
        if isinstance(piece.rows, RowRange) and _is_dense(extent, piece):
            yield from _runs(extent, piece.rows, piece.columns * itemsize)
            continue
        for rows, places in _chosen_of(extent, piece.rows):
            yield _scatter(extent, piece, itemsize, rows, places)


def plan_rows(source: TableSource, piece: Slice, rows: IntArray) -> Iterator[Read]:
    """Reads that fetch the slice's columns of some of the table's rows, in any order.

    Those of rows[i] go to row i of a row-major result [n, columns].
    """
    itemsize = source.table.itemsize
    is_run = len(rows) > 1 and bool((np.diff(rows) == 1).all())
    for extent in _extents(source, piece):
        if extent.rows == source.table.rows:
            places = np.arange(len(rows), dtype=np.int64)
        else:
            places = np.flatnonzero(extent.holds(rows))
        if is_run and len(places) == len(rows) and _is_dense(extent, piece):
            row_bytes = piece.columns * itemsize
            offset = extent.offset + (int(rows[0]) - extent.row_start) * row_bytes
            yield Run(extent.path, offset, len(rows) * row_bytes, 0)
        elif len(places):
            yield _scatter(extent, piece, itemsize, rows[places], places)


def _extents(source: TableSource, piece: Slice) -> Iterator[Extent]:
    """Those that hold some of the slice's columns."""
    for extent in source.extents:
        if extent.column_start < piece.column_stop and piece.column_start < extent.column_stop:
            yield extent


def _is_dense(extent: Extent, piece: Slice) -> bool:
    """Whether the extent has the slice's columns and no others, of rows that follow each other."""
    columns = (extent.column_start, extent.column_stop) == (piece.column_start, piece.column_stop)
    return columns and extent.row_step == 1


def _scatter(
    extent: Extent, piece: Slice, itemsize: int, rows: IntArray, places: IntArray
) -> Scatter:
    """The columns that extent and slice have in common, of the table's `rows`."""
    first = max(piece.column_start, extent.column_start)
    last = min(piece.column_stop, extent.column_stop)
    return Scatter(
        path=extent.path,
        offset=extent.offset + (first - extent.column_start) * itemsize,
        row_bytes=(extent.column_stop - extent.column_start) * itemsize,
        length=(last - first) * itemsize,
        rows=(rows - extent.row_start) // extent.row_step,
        places=places,
        target=(first - piece.column_start) * itemsize,
        place_bytes=piece.columns * itemsize,
    )


def _runs(extent: Extent, rows: RowRange, row_bytes: int) -> Iterator[Run]:
    start, stop = max(rows.start, extent.row_start), min(rows.stop, extent.row_stop)
    offset = extent.offset + (start - extent.row_start) * row_bytes
    target = (start - rows.start) * row_bytes
    total = (stop - start) * row_bytes
    for done in range(0, total, RUN_BYTES):
        yield Run(extent.path, offset + done, min(RUN_BYTES, total - done), target + done)


def _chosen_of(extent: Extent, rows: BaseRows) -> Iterator[tuple[IntArray, IntArray]]:
    """As `chosen_rows`, of the rows that the extent has."""
    if extent.row_step == 1:
        yield from chosen_rows(rows, extent.row_start, extent.row_stop)
        return
    chunk = SCATTER_ROWS * extent.row_step
    for at in range(extent.row_start, extent.row_stop, chunk):
        stop = min(at + chunk, extent.row_stop)
        numbers = np.arange(at, stop, extent.row_step, dtype=np.int64)
        ours, places = _local_numbers(rows, numbers)
        if ours.any():
            yield numbers[ours], places[ours]


def _hot_of(extent: Extent, rows: HotRows) -> Iterator[tuple[IntArray, IntArray]]:
    """The hot rows that the extent has, and the local numbers of their copies."""
    for numbers, places in _hot_chunks(rows, extent.row_start, extent.row_stop):
        ours = extent.holds(numbers)
        if ours.any():
            yield numbers[ours], places[ours]


def _local_numbers(rows: BaseRows, numbers: IntArray) -> tuple[npt.NDArray[np.bool_], IntArray]:
    """Which of the table's rows are in the set; their local numbers, anything for the others."""
    match rows:
        case RowRange(start, stop):
            return (numbers >= start) & (numbers < stop), numbers - start
        case RowMod(part, parts, _):
            return numbers % parts == part, numbers // parts
        case RowHash(part, parts, total):
            scattered = numbers * hash_multiplier(total) % total
            return scattered % parts == part, scattered // parts


def chosen_rows(rows: RowSet, start: int, stop: int) -> Iterator[tuple[IntArray, IntArray]]:
    """Those of the table's rows [start, stop) that are in the set, rising, and their local numbers.

    In chunks of at most SCATTER_ROWS, none of them empty; copies of hot rows come last.
    """
    match rows:
        case RowRange():
            yield from _local_chunks(rows, max(0, start - rows.start), stop - rows.start)
        case RowMod(part, parts, _):
            yield from _local_chunks(rows, -(-(start - part) // parts), -(-(stop - part) // parts))
        case RowHash():
            yield from _hashed_chunks(rows, start, stop)
        case HotRows(base, _):
            yield from chosen_rows(base, start, stop)
            yield from _hot_chunks(rows, start, stop)


def _local_chunks(
    rows: RowRange | RowMod, first: int, last: int
) -> Iterator[tuple[IntArray, IntArray]]:
    first, last = max(0, first), min(last, rows.count)
    for at in range(first, last, SCATTER_ROWS):
        end = min(at + SCATTER_ROWS, last)
        yield rows.rows(at, end), np.arange(at, end, dtype=np.int64)


def _hot_chunks(rows: HotRows, start: int, stop: int) -> Iterator[tuple[IntArray, IntArray]]:
    hot = np.array(rows.hot, np.int64)
    first, last = np.searchsorted(hot, [start, stop]).tolist()
    for at in range(first, last, SCATTER_ROWS):
        numbers = hot[at : min(at + SCATTER_ROWS, last)]
        yield numbers, np.arange(at, at + len(numbers), dtype=np.int64) + rows.base.count


def _hashed_chunks(rows: RowHash, start: int, stop: int) -> Iterator[tuple[IntArray, IntArray]]:
    """By the table's order rather than the set's own, in which every read would be a seek."""
    for at in range(start, stop, SCATTER_ROWS):
        numbers = np.arange(at, min(at + SCATTER_ROWS, stop), dtype=np.int64)
        ours, places = _local_numbers(rows, numbers)
        if ours.any():
            yield numbers[ours], places[ours]
