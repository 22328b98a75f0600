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
from shardserve.shards.rows import BaseRows, IntArray, base_of, owners_of
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


def rows_above(found: RowCounts, least: float) -> tuple[int, ...]:
    """The rows that were read more often than `least`, rising."""
    return tuple(row for rows, counts in found.chunks() for row in rows[counts > least].tolist())


def read_shares(
    table_layout: TableLayout, table: Table, found: RowCounts | None
) -> tuple[float, ...]:
    """What part of the table's reads each slice gets; each run of columns gets all of them.

    Reads of hot rows are shared out evenly. Without counts, and where none of the rows was read,
    all rows are taken to be read alike often.
    """
    if table_layout.sharding is Sharding.REPLICATED:
        return (1.0 / len(table_layout.slices),) * len(table_layout.slices)
    shares: dict[Slice, float] = {}
    for _, slices in by_columns(table_layout.slices):
        sets = [base_of(piece.rows) for piece in slices]
        found_shares = _shares(sets, table, found, table_layout.hot)
        shares.update(zip(slices, found_shares.tolist(), strict=True))
    return tuple(shares[piece] for piece in table_layout.slices)


def _shares(
    sets: Sequence[BaseRows], table: Table, found: RowCounts | None, hot: tuple[int, ...]
) -> FloatArray:
    copied = np.array(hot, np.int64)
    if found is None or not found.total:
        own = np.array([rows.count for rows in sets], np.float64)
        if hot:
            own -= np.bincount(owners_of(sets, copied), minlength=len(sets))
        return (own + len(hot) / len(sets)) / max(table.rows, 1)
    reads = np.zeros(len(sets))
    for rows, counts in found.chunks():
        is_hot = np.isin(rows, copied)
        own = np.where(is_hot, 0, counts)
        reads += np.bincount(owners_of(sets, rows), weights=own, minlength=len(sets))
        reads += np.sum(counts[is_hot], dtype=np.float64) / len(sets)
    return reads / found.total
