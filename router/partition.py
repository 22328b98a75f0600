"""One lookup in, its work for each part of the table out, with what the merge needs. Pure.

The inverse of `shardserve.shards.rows`: from a table's row to the part that holds it and its local
number there.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from shardserve.router import split_kernels as kernels
from shardserve.shards.layout import Layout, Sharding, Slice, TableLayout
from shardserve.shards.messages import Op, Part
from shardserve.shards.rows import RowRange, hash_multiplier
from shardserve.shards.tables import Table

Array = npt.NDArray[Any]

_KINDS = {
    Sharding.ROW_RANGE: kernels.RANGE,
    Sharding.ROW_MOD: kernels.MOD,
    Sharding.ROW_HASH: kernels.HASH,
}
_NO_BAGS = np.empty(0, np.int32)


@dataclass(frozen=True, slots=True)
class Bags:
    """How ids are pooled: id i belongs to bag `of_id[i]` (int32, never falling) of `count` bags."""

    of_id: Array
    count: int
    weights: Array | None


@dataclass(frozen=True, slots=True)
class Fragment:
    """One part's share of a lookup.

    The answer to `part`, from `shard`, belongs in rows `places` (all rows in order, if None) and
    columns [column_start, column_stop) of the result.
    """

    shard: int
    part: Part
    places: Array | None
    column_start: int
    column_stop: int


class TablePartition:
    """How one table's rows fall to slices. `slice_ids[p]` is part p's id on its shard."""

    def __init__(self, table: Table, table_layout: TableLayout, slice_ids: Sequence[int]) -> None:
        self.table = table
        self._sharding = table_layout.sharding
        pieces = list(zip(table_layout.slices, slice_ids, strict=True))
        if self._sharding is Sharding.ROW_RANGE:
            pieces.sort(key=lambda piece: _first_row(piece[0]))
        self._pieces = tuple(pieces)
        self._bounds = _bounds(pieces, table.rows)
        self._multiplier = hash_multiplier(table.rows)
        self._row_type = np.int32 if table.rows < 1 << 31 else np.int64

    def fragments(self, ids: Array, bags: Bags | None, turn: int) -> list[Fragment]:
        """The work of one lookup: ids (int64 [n], all within the table), pooled or not.

        `turn` chooses among the copies of a replicated table. A gather's result has a row for each
        id, a pooled one for each bag; rows that no fragment places are zeros.
        """
        if self._sharding is Sharding.ROW_HASH or (
            self._sharding in _KINDS and len(self._pieces) > 1
        ):
            return self._by_rows(ids, bags)
        return self._alike(self.one_copy(turn), ids, bags)

    def one_copy(self, turn: int) -> tuple[tuple[Slice, int], ...]:
        """Slices, with their ids, that together hold each element of the table once."""
        if self._sharding in _KINDS or self._sharding is Sharding.COLUMN:
            return self._pieces
        return (self._pieces[turn % len(self._pieces)],)

    def _alike(
        self, pieces: Sequence[tuple[Slice, int]], ids: Array, bags: Bags | None
    ) -> list[Fragment]:
        """The same rows to each of `pieces`, which hold all rows."""
        if not len(ids):
            return []
        rows = np.ascontiguousarray(ids, self._row_type)
        places, offsets, weights = None, None, None
        if bags is not None:
            heads = np.flatnonzero(np.diff(bags.of_id, prepend=-1))
            offsets = np.append(heads, len(rows)).astype(np.int32)
            places = None if len(heads) == bags.count else bags.of_id[heads]
            weights = bags.weights
        op = Op.GATHER if bags is None else Op.POOL
        return [
            Fragment(
                piece.shard,
                Part(slice_id, op, rows, offsets, weights),
                places,
                piece.column_start,
                piece.column_stop,
            )
            for piece, slice_id in pieces
        ]

    def _by_rows(self, ids: Array, bags: Bags | None) -> list[Fragment]:
        n, parts = len(ids), len(self._pieces)
        rows = np.empty(n, self._row_type)
        order = np.empty(n, np.int32)
        starts = np.empty(parts + 1, np.int64)
        runs = np.empty(n if bags else 0, np.int32)
        run_starts = np.empty(parts + 1, np.int64)
        offsets = np.empty(n + parts if bags else 0, np.int32)
        kernels.split(
            ids,
            _NO_BAGS if bags is None else bags.of_id,
            _KINDS[self._sharding],
            parts,
            self._bounds,
            self._multiplier,
            self.table.rows,
            rows,
            order,
            starts,
            runs,
            run_starts,
            offsets,
        )
        found = []
        at, run_at = starts.tolist(), run_starts.tolist()
        for p, (piece, slice_id) in enumerate(self._pieces):
            first, last = at[p], at[p + 1]
            if first == last:
                continue
            if bags is None:
                part = Part(slice_id, Op.GATHER, rows[first:last])
                places = order[first:last]
            else:
                weights = None if bags.weights is None else bags.weights[order[first:last]]
                ends = offsets[run_at[p] + p : run_at[p + 1] + p + 1]
                part = Part(slice_id, Op.POOL, rows[first:last], ends, weights)
                places = runs[run_at[p] : run_at[p + 1]]
            found.append(Fragment(piece.shard, part, places, 0, self.table.columns))
        return found


def partitions_of(layout: Layout, tables: dict[str, Table]) -> dict[str, TablePartition]:
    """A partition for each table of the layout."""
    slice_ids = {
        (piece.table, piece.shard): number
        for shard in range(layout.shards)
        for number, piece in enumerate(layout.slices_of_shard(shard))
    }
    return {
        name: TablePartition(
            tables[name],
            table_layout,
            [slice_ids[piece.table, piece.shard] for piece in table_layout.slices],
        )
        for name, table_layout in layout.tables.items()
    }


def _first_row(piece: Slice) -> int:
    assert isinstance(piece.rows, RowRange)
    return piece.rows.start


def _bounds(pieces: Sequence[tuple[Slice, int]], total: int) -> npt.NDArray[np.int64]:
    starts = [piece.rows.start if isinstance(piece.rows, RowRange) else 0 for piece, _ in pieces]
    return np.array([*starts, total], np.int64)
