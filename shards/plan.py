"""The planner: from tables, shards and a memory bound to a layout. Pure and deterministic.

Enumerate, estimate, place, in the manner of TorchRec's planner: each table gets the first sharding
of a fixed order of preference that fits; tables are placed by falling size, ties by name, on the
shard with the least bytes, ties to the lowest number.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from shardserve.batching.errors import InvalidArgument
from shardserve.shards import layout as layouts
from shardserve.shards.layout import Layout, Sharding, Slice, TableLayout
from shardserve.shards.storage import PLAIN, Precision, Storage, Tier, check_storage
from shardserve.shards.tables import Table


@dataclass(frozen=True)
class PlanRequest:
    """`memory_per_shard` is in bytes, None for no bound.

    Tables are kept as `storage` says, but as saved where they cannot be had at its precision.
    """

    shards: int
    replicas: int = 1
    memory_per_shard: int | None = None
    storage: Storage = PLAIN


@dataclass(frozen=True)
class Plan:
    """A layout, and for each table one line that says why it lies as it does."""

    layout: Layout
    reasons: Mapping[str, str]


@dataclass(frozen=True)
class ShardLoad:
    """What one shard holds, and its share of all lookups where every table is read alike often.

    `lookups` counts expected lookups for each lookup of every table: a table with n lookups counts
    n; a slice gets them by its share of the rows, so a column slice all of them, and a replicated
    table by its share of the copies.
    """

    shard: int
    slices: int
    nbytes: int
    lookups: float


def plan_layout(tables: Mapping[str, Table], request: PlanRequest) -> Plan:
    """Spread the tables over the shards.

    A table of over half an even share of all bytes is cut by `row_hash` over all shards, so that
    hot neighbours do not meet on one; with fewer rows than 64 for each shard it is cut by columns.
    A smaller one goes whole to the shard that holds least. Where that does not fit the memory,
    every table is cut. Raises InvalidArgument naming a shard where that does not fit either.
    """
    if request.shards < 1:
        raise InvalidArgument(f"shards must be at least 1, not {request.shards}")
    if request.storage.tier is Tier.MAPPED and request.storage.precision is not Precision.AS_SAVED:
        raise InvalidArgument(
            f"tier 'mapped' keeps rows as saved, not at precision '{request.storage.precision}'"
        )
    total = sum(_kept_bytes(table, request.storage) for table in tables.values())
    # A table of up to half an even share can go whole without a shard passing one and a half.
    plan = _placed(tables, request, total / request.shards / 2)
    if request.memory_per_shard is None:
        return plan
    try:
        layouts.check_memory(plan.layout, tables, request.memory_per_shard)
    except InvalidArgument:
        plan = _placed(tables, request, 0.0)
        layouts.check_memory(plan.layout, tables, request.memory_per_shard)
    return plan


def _placed(tables: Mapping[str, Table], request: PlanRequest, whole_up_to: float) -> Plan:
    placer = _Placer(request.shards, request.storage, whole_up_to)
    kept = {name: _kept_bytes(table, request.storage) for name, table in tables.items()}
    for table in sorted(tables.values(), key=lambda t: (-kept[t.name], t.name)):
        placer.place(table)
    layout = Layout(request.shards, request.replicas, dict(sorted(placer.layouts.items())))
    layouts.check(layout, tables)
    return Plan(layout, dict(sorted(placer.reasons.items())))


def shard_loads(
    layout: Layout, tables: Mapping[str, Table], lookups: Mapping[str, int]
) -> tuple[ShardLoad, ...]:
    """What each shard holds and is asked; `lookups` is the number of lookups by table."""
    loads = []
    for shard in range(layout.shards):
        slices = layout.slices_of_shard(shard)
        asked = sum(
            lookups.get(piece.table, 0) * _share(layout.tables[piece.table], piece, tables)
            for piece in slices
        )
        nbytes = sum(piece.nbytes(tables[piece.table]) for piece in slices)
        loads.append(ShardLoad(shard, len(slices), nbytes, asked))
    return tuple(loads)


def _share(table_layout: TableLayout, piece: Slice, tables: Mapping[str, Table]) -> float:
    """The part of a table's lookups that one slice gets, each run of columns getting all."""
    if table_layout.sharding is Sharding.REPLICATED:
        return 1.0 / len(table_layout.slices)
    rows = tables[piece.table].rows
    return piece.rows.count / rows if rows else 0.0


def _storage_of(table: Table, wanted: Storage) -> Storage:
    try:
        check_storage(wanted, table)
    except InvalidArgument:
        return replace(wanted, precision=Precision.AS_SAVED)
    return wanted


def _kept_bytes(table: Table, wanted: Storage) -> int:
    return table.rows * _storage_of(table, wanted).row_bytes(table, table.columns)


class _Placer:
    def __init__(self, shards: int, storage: Storage, whole_up_to: float) -> None:
        self._held = [0] * shards
        self._storage = storage
        self._whole_up_to = whole_up_to
        self.layouts: dict[str, TableLayout] = {}
        self.reasons: dict[str, str] = {}

    def place(self, table: Table) -> None:
        table_layout, reason = self._choose(table)
        table_layout = layouts.stored(table_layout, _storage_of(table, self._storage))
        self.layouts[table.name] = table_layout
        self.reasons[table.name] = reason
        for piece in table_layout.slices:
            self._held[piece.shard] += piece.nbytes(table)

    def _choose(self, table: Table) -> tuple[TableLayout, str]:
        shards = range(len(self._held))
        if len(self._held) == 1:
            return layouts.whole_table(table, 0), "there is one shard"
        if _kept_bytes(table, self._storage) > self._whole_up_to:
            size = f"more than {self._whole_up_to:.0f} bytes"
            if table.rows >= 64 * len(self._held):
                return layouts.row_hash(table, shards), f"row_hash over all shards: {size}"
            if table.columns >= len(self._held):
                bounds = layouts.even_bounds(table.columns, shards)
                return layouts.column(
                    table, bounds
                ), f"column over all shards: {size}, and only {table.rows} rows"
        emptiest = min(shards, key=lambda shard: (self._held[shard], shard))
        return layouts.whole_table(table, emptiest), "whole, on the shard that held least"
