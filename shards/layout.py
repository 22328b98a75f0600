"""Which slices of which tables exist, and on which shard each lies. Pure data and pure checks.

A *part* is one of the pieces that a table is divided into; part p is a *slice* on shard
`slices[p].shard`. How rows or columns fall to parts is the table's sharding (`Sharding`).
"""

from __future__ import annotations

import enum
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

from shardserve.batching.errors import InvalidArgument
from shardserve.shards.rows import (
    MAX_HASHED_ROWS,
    BaseRows,
    HotRows,
    RowHash,
    RowMod,
    RowRange,
    RowSet,
    base_of,
)
from shardserve.shards.storage import PLAIN, Storage, Tier, check_storage
from shardserve.shards.tables import Table

#: Hot rows of one table, at most: their list is part of the layout, and goes to each process.
MAX_HOT_ROWS = 10_000


class Sharding(enum.StrEnum):
    """How a table is divided. The value is the word used in layout files, flags and metrics."""

    ROW_RANGE = "row_range"
    ROW_MOD = "row_mod"
    ROW_HASH = "row_hash"
    COLUMN = "column"
    GRID = "grid"
    TABLE = "table"
    REPLICATED = "replicated"


#: The sharding that makes each kind of set of rows.
ROW_SHARDINGS: Mapping[type[BaseRows], Sharding] = {
    RowRange: Sharding.ROW_RANGE,
    RowMod: Sharding.ROW_MOD,
    RowHash: Sharding.ROW_HASH,
}


@dataclass(frozen=True)
class Slice:
    """Rows x columns of one table, held by one shard. Columns count within the flat row."""

    table: str
    shard: int
    rows: RowSet
    column_start: int
    column_stop: int
    storage: Storage = PLAIN

    @property
    def columns(self) -> int:
        return self.column_stop - self.column_start

    def nbytes(self, table: Table) -> int:
        """Bytes that the slice takes where it is kept."""
        return self.rows.count * self.storage.row_bytes(table, self.columns)

    def memory_bytes(self, table: Table) -> int:
        """Those of them that are in the host's memory."""
        return self.nbytes(table) if self.storage.tier is Tier.MEMORY else 0

    def loaded_bytes(self, table: Table) -> int:
        """Those of them that are read when the shard starts: to its memory, or to its GPU's."""
        return 0 if self.storage.tier is Tier.MAPPED else self.nbytes(table)


@dataclass(frozen=True)
class TableLayout:
    """One table's slices, in part order. Build with `row_range`, `row_mod`, ...; see `check`."""

    sharding: Sharding
    slices: tuple[Slice, ...]

    @property
    def storage(self) -> Storage:
        """How the slices are kept: all in one way."""
        return self.slices[0].storage if self.slices else PLAIN

    @property
    def hot(self) -> tuple[int, ...]:
        """Rows of which every slice has a copy, beside those that are its own."""
        rows = self.slices[0].rows if self.slices else None
        return rows.hot if isinstance(rows, HotRows) else ()

    def bands(self) -> tuple[TableLayout, ...]:
        """A grid's runs of columns, each a row-wise layout of the table's rows in those columns."""
        return tuple(
            TableLayout(ROW_SHARDINGS[type(base_of(found[0].rows))], tuple(found))
            for _, found in by_columns(self.slices)
        )


@dataclass(frozen=True)
class Layout:
    """A whole model's layout: `shards` shards, each run `replicas` times.

    `tables` names every table that is cut; a table that is not in it stays whole, in the router.
    A shard may use `cache_per_shard` bytes for hot rows of its mapped slices.
    """

    shards: int
    replicas: int
    tables: Mapping[str, TableLayout]
    cache_per_shard: int = 0

    def cache_of_shard(self, shard: int) -> int:
        """Bytes for hot rows on one shard: none if it has nothing that is mapped."""
        mapped = (piece.storage.tier is Tier.MAPPED for piece in self.slices_of_shard(shard))
        return self.cache_per_shard if any(mapped) else 0

    def gpus_of_shard(self, shard: int) -> int:
        """GPUs that one shard has for itself: one if something of it lies there."""
        return int(any(s.storage.tier is Tier.GPU for s in self.slices_of_shard(shard)))

    def slices_of_shard(self, shard: int) -> tuple[Slice, ...]:
        """The slices on one shard, tables by name, then by part. A slice's place is its id."""
        return tuple(
            piece
            for name in sorted(self.tables)
            for piece in self.tables[name].slices
            if piece.shard == shard
        )


def row_range(table: Table, bounds: Iterable[tuple[int, int, int]]) -> TableLayout:
    """Slices of consecutive rows, each given as (shard, first row, row after the last)."""
    return TableLayout(
        Sharding.ROW_RANGE,
        tuple(
            Slice(table.name, shard, RowRange(start, stop), 0, table.columns)
            for shard, start, stop in bounds
        ),
    )


def row_mod(table: Table, shards: Iterable[int]) -> TableLayout:
    """Row r on the (r % len(shards))-th of `shards`."""
    owners = tuple(shards)
    return TableLayout(
        Sharding.ROW_MOD,
        tuple(
            Slice(table.name, shard, RowMod(part, len(owners), table.rows), 0, table.columns)
            for part, shard in enumerate(owners)
        ),
    )


def row_hash(table: Table, shards: Iterable[int]) -> TableLayout:
    """Rows scattered over `shards` by a multiplicative hash of the row number."""
    owners = tuple(shards)
    return TableLayout(
        Sharding.ROW_HASH,
        tuple(
            Slice(table.name, shard, RowHash(part, len(owners), table.rows), 0, table.columns)
            for part, shard in enumerate(owners)
        ),
    )


def column(table: Table, bounds: Iterable[tuple[int, int, int]]) -> TableLayout:
    """All rows on each shard, of some columns: (shard, first column, column after the last)."""
    return TableLayout(
        Sharding.COLUMN,
        tuple(
            Slice(table.name, shard, RowRange(0, table.rows), start, stop)
            for shard, start, stop in bounds
        ),
    )


def grid(bands: Iterable[tuple[int, int, TableLayout]]) -> TableLayout:
    """Rows x columns: each run of columns with a row-wise layout of its own, on its own shards.

    Given as (first column, column after the last, layout).
    """
    return TableLayout(
        Sharding.GRID,
        tuple(
            replace(piece, column_start=start, column_stop=stop)
            for start, stop, band in bands
            for piece in band.slices
        ),
    )


def whole_table(table: Table, shard: int) -> TableLayout:
    """The whole table on one shard."""
    return TableLayout(
        Sharding.TABLE, (Slice(table.name, shard, RowRange(0, table.rows), 0, table.columns),)
    )


def replicated(table: Table, shards: Iterable[int]) -> TableLayout:
    """The whole table on each of `shards`; a lookup goes to any one of them."""
    return TableLayout(
        Sharding.REPLICATED,
        tuple(
            Slice(table.name, shard, RowRange(0, table.rows), 0, table.columns) for shard in shards
        ),
    )


def with_hot_rows(table_layout: TableLayout, hot: Iterable[int]) -> TableLayout:
    """The same slices, of a row-wise sharding, each with copies of hot rows, if there are any."""
    rows = tuple(sorted(hot))
    if not rows:
        return table_layout
    slices = (
        replace(piece, rows=HotRows(base_of(piece.rows), rows)) for piece in table_layout.slices
    )
    return replace(table_layout, slices=tuple(slices))


def stored(table_layout: TableLayout, storage: Storage) -> TableLayout:
    """The same slices, kept in another way."""
    slices = (replace(piece, storage=storage) for piece in table_layout.slices)
    return replace(table_layout, slices=tuple(slices))


def by_columns(slices: Iterable[Slice]) -> list[tuple[tuple[int, int], list[Slice]]]:
    """The slices by the columns that they have, in their order."""
    found: dict[tuple[int, int], list[Slice]] = {}
    for piece in slices:
        found.setdefault((piece.column_start, piece.column_stop), []).append(piece)
    return list(found.items())


def even_bounds(total: int, shards: Iterable[int]) -> list[tuple[int, int, int]]:
    """[0, total) cut into one run for each shard, the first ones longer by one where it is uneven.

    A shard for which nothing is left gets no run.
    """
    owners = list(shards)
    size, longer = divmod(total, len(owners))
    bounds = []
    start = 0
    for place, shard in enumerate(owners):
        stop = start + size + (place < longer)
        if stop > start:
            bounds.append((shard, start, stop))
        start = stop
    return bounds


def check(layout: Layout, tables: Mapping[str, Table]) -> None:
    """Raise InvalidArgument, naming the table, unless each element lies where it can be found.

    Every table of the layout must exist; every slice must be on a shard that exists, at most one
    slice of a table on a shard; together the slices must hold each element exactly once (each
    shard's copy counted alone where the table is replicated), kept as the table can be kept.
    """
    if layout.shards < 1:
        raise InvalidArgument(f"layout: shards must be at least 1, not {layout.shards}")
    if layout.replicas < 1:
        raise InvalidArgument(f"layout: replicas must be at least 1, not {layout.replicas}")
    for name, table_layout in layout.tables.items():
        if name not in tables:
            known = ", ".join(sorted(tables)) or "none"
            raise InvalidArgument(
                f"layout: table {name!r} is not in the model; tables that can be cut: {known}"
            )
        _check_table(table_layout, tables[name], layout.shards)


def _check_table(table_layout: TableLayout, table: Table, shards: int) -> None:
    where = f"layout: table {table.name!r}"
    if not table_layout.slices:
        raise InvalidArgument(f"{where}: has no slices")
    owners = [piece.shard for piece in table_layout.slices]
    for shard in owners:
        if not 0 <= shard < shards:
            raise InvalidArgument(f"{where}: shard {shard} is not in [0, {shards})")
        if owners.count(shard) > 1:
            raise InvalidArgument(f"{where}: shard {shard} is named twice")
    if len({piece.storage for piece in table_layout.slices}) > 1:
        raise InvalidArgument(f"{where}: slices differ in tier or precision")
    check_storage(table_layout.storage, table)
    _check_hot_rows(where, table_layout, table)
    match table_layout.sharding:
        case Sharding.GRID:
            runs = [columns for columns, _ in by_columns(table_layout.slices)]
            _check_cover(where, "columns", runs, table.columns)
            for (start, stop), band in zip(runs, table_layout.bands(), strict=True):
                _check_rows(f"{where}: columns [{start}, {stop})", band, table)
        case Sharding.COLUMN:
            runs = [(s.column_start, s.column_stop) for s in table_layout.slices]
            _check_cover(where, "columns", runs, table.columns)
        case Sharding.TABLE:
            if len(owners) != 1:
                raise InvalidArgument(f"{where}: sharding 'table' takes one shard, not {owners}")
        case Sharding.REPLICATED:
            pass
        case _:
            _check_rows(where, table_layout, table)


def _check_hot_rows(where: str, table_layout: TableLayout, table: Table) -> None:
    hot = table_layout.hot
    copies = {
        piece.rows.hot if isinstance(piece.rows, HotRows) else () for piece in table_layout.slices
    }
    if copies == {()}:
        return
    if table_layout.sharding not in ROW_SHARDINGS.values():
        raise InvalidArgument(f"{where}: sharding '{table_layout.sharding}' takes no hot rows")
    if len(copies) > 1:
        raise InvalidArgument(f"{where}: slices differ in their hot rows")
    if len(hot) > MAX_HOT_ROWS:
        raise InvalidArgument(f"{where}: at most {MAX_HOT_ROWS} rows can be hot, not {len(hot)}")
    for row, count in Counter(hot).items():
        if not 0 <= row < table.rows:
            raise InvalidArgument(f"{where}: hot row {row} is not in [0, {table.rows})")
        if count > 1:
            raise InvalidArgument(f"{where}: hot row {row} is named twice")


def _check_rows(where: str, table_layout: TableLayout, table: Table) -> None:
    rows = [base_of(piece.rows) for piece in table_layout.slices]
    if table_layout.sharding is Sharding.ROW_RANGE:
        runs = [(one.start, one.stop) for one in rows if isinstance(one, RowRange)]
        _check_cover(where, "rows", runs, table.rows)
        return
    kind = RowMod if table_layout.sharding is Sharding.ROW_MOD else RowHash
    if rows != [kind(part, len(rows), table.rows) for part in range(len(rows))]:
        raise InvalidArgument(f"{where}: the slices are not the parts of {table_layout.sharding}")
    if kind is RowHash and table.rows > MAX_HASHED_ROWS:
        raise InvalidArgument(
            f"{where}: row_hash takes at most {MAX_HASHED_ROWS} rows, not {table.rows}"
        )


def _check_cover(where: str, what: str, runs: list[tuple[int, int]], total: int) -> None:
    reached = 0
    for start, stop in sorted(runs):
        if stop <= start:
            raise InvalidArgument(f"{where}: {what} [{start}, {stop}) are empty")
        if start < reached:
            raise InvalidArgument(
                f"{where}: {what} [{start}, {min(reached, stop)}) lie on two slices"
            )
        if start > reached:
            raise InvalidArgument(f"{where}: {what} [{reached}, {start}) lie on no slice")
        reached = stop
    if reached < total:
        raise InvalidArgument(f"{where}: {what} [{reached}, {total}) lie on no slice")
    if reached > total:
        raise InvalidArgument(f"{where}: there are {total} {what}, the layout goes to {reached}")


def check_memory(layout: Layout, tables: Mapping[str, Table], memory_per_shard: int) -> None:
    """Raise InvalidArgument naming the first shard that holds more than its memory, in bytes.

    What is mapped takes no memory; a cache of it does.
    """
    for shard in range(layout.shards):
        held = sum(s.memory_bytes(tables[s.table]) for s in layout.slices_of_shard(shard))
        held += layout.cache_of_shard(shard)
        if held > memory_per_shard:
            raise InvalidArgument(
                f"layout: shard {shard} holds {held} bytes, its memory is {memory_per_shard} bytes"
            )
