"""How often the rows of a table are read, and what its slices get of that. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from shardserve.batching.errors import InvalidArgument
from shardserve.shards.layout import Sharding, Slice, TableLayout, by_columns
from shardserve.shards.rows import IntArray, RowSet, owners_of
from shardserve.shards.tables import Table

FloatArray = npt.NDArray[np.float64]

#: Rows that are looked at in one go.
CHUNK_ROWS = 1 << 20


@dataclass(frozen=True, eq=False)
class RowCounts:
    """`counts[i]` reads of row `rows[i]`, or of row i where `rows` is None; no reads of others.

    Counts of different tables are of the same stretch of time.
    """

    counts: npt.NDArray[Any]
    rows: IntArray | None = None

    @cached_property
    def total(self) -> float:
        """Reads of all rows."""
        return float(np.sum(self.counts, dtype=np.float64))

    def chunks(self) -> Iterator[tuple[IntArray, npt.NDArray[Any]]]:
        """Some rows at a time, and their counts."""
        for start in range(0, len(self.counts), CHUNK_ROWS):
            counts = self.counts[start : start + CHUNK_ROWS]
            if self.rows is None:
                yield np.arange(start, start + len(counts), dtype=np.int64), counts
            else:
                yield self.rows[start : start + CHUNK_ROWS], counts


def check_counts(found: RowCounts, table: Table) -> None:
    """Raise InvalidArgument, naming the table, for counts that are not those of its rows."""
    where = f"row counts: table {table.name!r}"
    counts, rows = found.counts, found.rows
    if counts.ndim != 1 or counts.dtype.kind not in "iu":
        raise InvalidArgument(
            f"{where}: counts are whole numbers, one for each row, not "
            f"{counts.dtype}{list(counts.shape)}"
        )
    if rows is None and len(counts) != table.rows:
        raise InvalidArgument(f"{where}: {len(counts)} counts, the table has {table.rows} rows")
    for numbers, some in found.chunks():
        if len(numbers) and (numbers.min() < 0 or numbers.max() >= table.rows):
            bad = numbers[(numbers < 0) | (numbers >= table.rows)][0]
            raise InvalidArgument(f"{where}: row {bad} is not in [0, {table.rows})")
        if len(some) and some.min() < 0:
            bad = numbers[some < 0][0]
            raise InvalidArgument(f"{where}: row {bad} has a count below zero")


def read_shares(
    table_layout: TableLayout, table: Table, found: RowCounts | None
) -> tuple[float, ...]:
    """What part of the table's reads each slice gets; each run of columns gets all of them.

    Without counts, and where none of the rows was read, all rows are taken to be read alike often.
    """
    if table_layout.sharding is Sharding.REPLICATED:
        return (1.0 / len(table_layout.slices),) * len(table_layout.slices)
    shares: dict[Slice, float] = {}
    for _, slices in by_columns(table_layout.slices):
        sets = [piece.rows for piece in slices]
        shares.update(zip(slices, _shares(sets, table, found).tolist(), strict=True))
    return tuple(shares[piece] for piece in table_layout.slices)


def _shares(sets: Sequence[RowSet], table: Table, found: RowCounts | None) -> FloatArray:
    if found is None or not found.total:
        held = np.array([rows.count for rows in sets], np.float64)
        return held / max(table.rows, 1)
    reads = np.zeros(len(sets))
    for rows, counts in found.chunks():
        reads += np.bincount(owners_of(sets, rows), weights=counts, minlength=len(sets))
    return reads / found.total
