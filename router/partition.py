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
from shardserve.shards.layout import ROW_SHARDINGS, Layout, Sharding, Slice, TableLayout
from shardserve.shards.messages import Op, Part
from shardserve.shards.rows import BaseRows, IntArray, RowRange, base_of, hash_multiplier
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


@dataclass(frozen=True, slots=True)
class _Division:
    """Rows that fall to parts in one way, in each of some runs of columns.

    `columns[c][p]` is part p's slice in run c, and its id on its shard. Each part has copies of the
    rows `hot`, from its local number `hot_at[p]` on.
    """

    sharding: Sharding
    bounds: IntArray
    hot: IntArray
    hot_at: IntArray
    columns: tuple[tuple[tuple[Slice, int], ...], ...]

    @property
    def parts(self) -> int:
        return len(self.columns[0])


class TablePartition:
    """How one table's rows fall to slices. `slice_ids[p]` is part p's id on its shard."""

    def __init__(self, table: Table, table_layout: TableLayout, slice_ids: Sequence[int]) -> None:
        self.table = table
        self._sharding = table_layout.sharding
        self._pieces = tuple(zip(table_layout.slices, slice_ids, strict=True))
        self._divisions = _divisions(table, table_layout, slice_ids)
        self._multiplier = hash_multiplier(table.rows)
        self._row_type = np.int32 if table.rows < 1 << 31 else np.int64

    @property
    def scatters(self) -> bool:
        """Whether rows of one lookup come from several slices, and are put in their places."""
        return any(division.parts > 1 for division in self._divisions)

    def fragments(self, ids: Array, bags: Bags | None, turn: int) -> list[Fragment]:
        """The work of one lookup: ids (int64 [n], all within the table), pooled or not.

        `turn` chooses among the copies of a replicated table, and the shard to ask where all ids
        are hot. A gather's result has a row for each id, a pooled one for each bag; rows that no
        fragment places are zeros.
        """
        match self._sharding:
            case Sharding.REPLICATED | Sharding.TABLE | Sharding.COLUMN:
                return self._alike(self.one_copy(turn), ids, bags)
            case _:
                return [
                    fragment
                    for division in self._divisions
                    for fragment in self._divided(division, ids, bags, turn)
                ]

    def one_copy(self, turn: int) -> tuple[tuple[Slice, int], ...]:
        """Slices, with their ids, that together hold each element of the table once."""
        if self._sharding is Sharding.REPLICATED:
            return (self._pieces[turn % len(self._pieces)],)
        return self._pieces

    def _divided(
        self, division: _Division, ids: Array, bags: Bags | None, turn: int
    ) -> list[Fragment]:
        if division.parts == 1 and division.sharding is not Sharding.ROW_HASH:
            return self._alike([pieces[0] for pieces in division.columns], ids, bags)
        return self._by_rows(division, ids, bags, turn)

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

    def _by_rows(
        self, division: _Division, ids: Array, bags: Bags | None, turn: int
    ) -> list[Fragment]:
        n, parts = len(ids), division.parts
        rows = np.empty(n, self._row_type)
        order = np.empty(n, np.int32)
        starts = np.empty(parts + 1, np.int64)
        runs = np.empty(n if bags else 0, np.int32)
        run_starts = np.empty(parts + 1, np.int64)
        offsets = np.empty(n + parts if bags else 0, np.int32)
        kernels.split(
            ids,
            _NO_BAGS if bags is None else bags.of_id,
            _KINDS[division.sharding],
            parts,
            division.bounds,
            self._multiplier,
            self.table.rows,
            division.hot,
            division.hot_at,
            turn % parts,
            rows,
            order,
            starts,
            runs,
            run_starts,
            offsets,
        )
        found = []
        at, run_at = starts.tolist(), run_starts.tolist()
        for p in range(parts):
            first, last = at[p], at[p + 1]
            if first == last:
                continue
            weights, ends = None, None
            if bags is None:
                places = order[first:last]
            else:
                weights = None if bags.weights is None else bags.weights[order[first:last]]
                ends = offsets[run_at[p] + p : run_at[p + 1] + p + 1]
                places = runs[run_at[p] : run_at[p + 1]]
            op = Op.GATHER if bags is None else Op.POOL
            for pieces in division.columns:
                piece, slice_id = pieces[p]
                part = Part(slice_id, op, rows[first:last], ends, weights)
                found.append(
                    Fragment(piece.shard, part, places, piece.column_start, piece.column_stop)
                )
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


def _divisions(
    table: Table, table_layout: TableLayout, slice_ids: Sequence[int]
) -> tuple[_Division, ...]:
    """Row-wise divisions, none for other shardings; runs of columns that agree are one."""
    bands: Sequence[TableLayout] = ()
    if table_layout.sharding in _KINDS:
        bands = (table_layout,)
    elif table_layout.sharding is Sharding.GRID:
        bands = table_layout.bands()
    ids = dict(zip(table_layout.slices, slice_ids, strict=True))
    hot = np.array(table_layout.hot, np.int64)
    alike: dict[tuple[BaseRows, ...], list[tuple[tuple[Slice, int], ...]]] = {}
    for band in bands:
        slices = sorted(band.slices, key=lambda piece: _first_row(base_of(piece.rows)))
        rows = tuple(base_of(piece.rows) for piece in slices)
        alike.setdefault(rows, []).append(tuple((piece, ids[piece]) for piece in slices))
    return tuple(
        _Division(
            ROW_SHARDINGS[type(rows[0])],
            np.array([*map(_first_row, rows), table.rows], np.int64),
            hot,
            np.array([one.count for one in rows], np.int64),
            tuple(columns),
        )
        for rows, columns in alike.items()
    )


def _first_row(rows: BaseRows) -> int:
    """Where a range starts; sets of other kinds are in order as they are."""
    return rows.start if isinstance(rows, RowRange) else 0
