"""The planner: from tables, shards, a memory bound and row counts to a layout. Pure, deterministic.

Enumerate, estimate, place, in the manner of TorchRec's planner. A table weighs its part of all
bytes and its part of all bytes that are read; heavy ones are divided over all shards, in the first
way of a fixed order that is even enough, and the others go by falling weight, ties by name, whole
to the shard that is loaded least, ties to the lowest number. Without row counts every byte is taken
to be read alike often.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace

from shardserve.batching.errors import InvalidArgument
from shardserve.shards import layout as layouts
from shardserve.shards.layout import Layout, TableLayout
from shardserve.shards.messages import Axis
from shardserve.shards.row_counts import RowCounts, check_counts, read_shares, rows_above
from shardserve.shards.storage import PLAIN, Precision, Storage, Tier, check_storage
from shardserve.shards.tables import Table

#: A table with fewer rows for each shard is not divided by rows: a few hot ones decide too much.
MIN_ROWS = 64
#: Where reads decide, a column slice is no narrower than what a processor fetches at a time.
MIN_COLUMN_BYTES = 64
#: The busiest shard of a divided table may get this many times an even share of its reads.
EVEN_ENOUGH = 1.25
#: A row with more reads than this part of an even share of its table's is hot.
HOT = 0.05
#: What copies of small hot tables may add to each shard, as a part of an even share of all bytes.
COPIES = 0.1


@dataclass(frozen=True)
class PlanRequest:
    """`memory_per_shard` is in bytes, None for no bound; `row_counts` is by table.

    Tables are kept as `storage` says, but as saved where they cannot be had at its precision. Where
    there are counts, a table without any is taken as one that is never read.
    """

    shards: int
    replicas: int = 1
    memory_per_shard: int | None = None
    storage: Storage = PLAIN
    row_counts: Mapping[str, RowCounts] = field(default_factory=dict)


@dataclass(frozen=True)
class Plan:
    """A layout, for each table one line that says why it lies as it does, and one about it all."""

    layout: Layout
    reasons: Mapping[str, str]
    summary: str


@dataclass(frozen=True)
class ShardLoad:
    """What one shard holds, and its share of all lookups where every table is read alike often.

    `lookups` counts expected lookups for each lookup of every table: a table with n lookups counts
    n; a slice gets them by its share of the rows, or of their counts, so a column slice all of
    them, and a replicated table by its share of the copies. `read` is the shard's part of all bytes
    that are read, None where nothing is known of that.
    """

    shard: int
    slices: int
    nbytes: int
    lookups: float
    read: float | None = None


def plan_layout(
    tables: Mapping[str, Table], request: PlanRequest, scored: Mapping[str, Axis] | None = None
) -> Plan:
    """Spread the tables over the shards.

    A table of over half an even share of all bytes, or of all bytes read, is divided over all
    shards: by rows, hashed, so that hot neighbours do not meet on one; by columns if it has fewer
    than MIN_ROWS rows for each shard. Where its counts say that this is not even, each shard gets
    copies of the few rows that are read most, or the table is divided in another way. `scored`
    names the tables that queries are multiplied with; such a one is divided in runs of its classes,
    which lie along the axis given, so that every shard can pick its own best. One that is heavy for
    its reads alone is replicated while copies take little. A lighter one goes whole to the shard
    that is loaded least. Where that does not fit the memory, every table is divided. Raises
    InvalidArgument naming a shard where that does not fit either, and naming the table for counts
    that are not its own.
    """
    if request.shards < 1:
        raise InvalidArgument(f"shards must be at least 1, not {request.shards}")
    if request.storage.tier is Tier.MAPPED and request.storage.precision is not Precision.AS_SAVED:
        raise InvalidArgument(
            f"tier 'mapped' keeps rows as saved, not at precision '{request.storage.precision}'"
        )
    for name in sorted(request.row_counts.keys() & tables.keys()):
        check_counts(request.row_counts[name], tables[name])
    # A table of up to half an even share can go whole: no shard passes one and a half for it.
    plan = _placed(tables, request, 0.5 / request.shards, scored or {})
    if request.memory_per_shard is None:
        return plan
    try:
        layouts.check_memory(plan.layout, tables, request.memory_per_shard)
    except InvalidArgument:
        plan = _placed(tables, request, 0.0, scored or {})
        layouts.check_memory(plan.layout, tables, request.memory_per_shard)
    return plan


def shard_loads(
    layout: Layout,
    tables: Mapping[str, Table],
    lookups: Mapping[str, int],
    row_counts: Mapping[str, RowCounts] | None = None,
) -> tuple[ShardLoad, ...]:
    """What each shard holds and is asked; `lookups` is the number of lookups by table."""
    counts = row_counts or {}
    asked, read = [0.0] * layout.shards, [0.0] * layout.shards
    for name, table_layout in sorted(layout.tables.items()):
        found = counts.get(name)
        shares = read_shares(table_layout, tables[name], found)
        for piece, share in zip(table_layout.slices, shares, strict=True):
            asked[piece.shard] += lookups.get(name, 0) * share
            if found is not None:
                row_bytes = piece.storage.row_bytes(tables[name], piece.columns)
                read[piece.shard] += found.total * share * row_bytes
    total = sum(read)
    return tuple(
        ShardLoad(
            shard,
            len(slices),
            sum(piece.nbytes(tables[piece.table]) for piece in slices),
            asked[shard],
            read[shard] / total if total else None,
        )
        for shard in range(layout.shards)
        for slices in [layout.slices_of_shard(shard)]
    )


@dataclass(frozen=True)
class _Weight:
    """Bytes held, and bytes read in the time of the counts; of one table, or of all."""

    held: int
    read: float

    def parts_of(self, total: _Weight) -> tuple[float, float]:
        """As parts of a total: of its bytes, of its bytes read."""
        return self.held / max(total.held, 1), self.read / total.read if total.read else 0.0


def _placed(
    tables: Mapping[str, Table],
    request: PlanRequest,
    whole_up_to: float,
    scored: Mapping[str, Axis],
) -> Plan:
    weights = {name: _weight(table, request) for name, table in sorted(tables.items())}
    total = _Weight(sum(w.held for w in weights.values()), sum(w.read for w in weights.values()))
    placer = _Placer(request, total, whole_up_to, scored)
    for name in sorted(tables, key=lambda name: (-max(weights[name].parts_of(total)), name)):
        placer.place(tables[name], weights[name])
    layout = Layout(request.shards, request.replicas, dict(sorted(placer.layouts.items())))
    layouts.check(layout, tables)
    return Plan(layout, dict(sorted(placer.reasons.items())), placer.summary())


def _weight(table: Table, request: PlanRequest) -> _Weight:
    row_bytes = _storage_of(table, request.storage).row_bytes(table, table.columns)
    found = request.row_counts.get(table.name)
    return _Weight(table.rows * row_bytes, found.total * row_bytes if found else 0.0)


def _storage_of(table: Table, wanted: Storage) -> Storage:
    try:
        check_storage(wanted, table)
    except InvalidArgument:
        return replace(wanted, precision=Precision.AS_SAVED)
    return wanted


class _Placer:
    """Places one table after the other. What each shard has by then decides on the next."""

    def __init__(
        self,
        request: PlanRequest,
        total: _Weight,
        whole_up_to: float,
        scored: Mapping[str, Axis],
    ) -> None:
        self._request = request
        self._total = total
        self._whole_up_to = whole_up_to
        self._scored = scored
        self._shards = range(request.shards)
        self._loads = [_Weight(0, 0.0)] * request.shards
        self._room_for_copies = COPIES / request.shards
        self.layouts: dict[str, TableLayout] = {}
        self.reasons: dict[str, str] = {}

    def place(self, table: Table, weight: _Weight) -> None:
        table_layout, reason = self._choose(table, weight)
        table_layout = layouts.stored(table_layout, _storage_of(table, self._request.storage))
        self.layouts[table.name] = table_layout
        self.reasons[table.name] = f"{reason}; {self._words(table, weight)}"
        shares = self._element_shares(table_layout, table)
        for piece, share in zip(table_layout.slices, shares, strict=True):
            load = self._loads[piece.shard]
            self._loads[piece.shard] = _Weight(
                load.held + piece.nbytes(table), load.read + weight.read * share
            )

    def summary(self) -> str:
        """What decided, and how even it has become."""
        n = len(self._shards)
        if n == 1:
            return "all on the one shard"
        parts = [load.parts_of(self._total) for load in self._loads]
        if self._whole_up_to:
            words = f"tables of over {0.5 / n:.1%}, half an even share, are divided"
        else:
            words = "every table is divided that can be, to fit the memory"
        words += f"; no shard has over {n * max(held for held, _ in parts):.2f} times an even"
        words += " share of the bytes"
        if self._total.read:
            words += f", or {n * max(read for _, read in parts):.2f} times one of the bytes read"
        return words

    def _words(self, table: Table, weight: _Weight) -> str:
        held, read = weight.parts_of(self._total)
        if not self._request.row_counts:
            return f"{held:.1%} of the bytes"
        if table.name not in self._request.row_counts:
            return f"{held:.1%} of the bytes, no counts"
        return f"{held:.1%} of the bytes, {read:.1%} of the bytes read"

    def _choose(self, table: Table, weight: _Weight) -> tuple[TableLayout, str]:
        if len(self._shards) == 1:
            return layouts.whole_table(table, 0), "whole: there is one shard"
        held, read = weight.parts_of(self._total)
        is_large = held > self._whole_up_to
        is_hot = read > 0.5 / len(self._shards)
        if is_hot and not is_large and held <= self._room_for_copies:
            self._room_for_copies -= held
            return layouts.replicated(table, self._shards), "replicated: small and read often"
        divided = self._divided(table) if is_large or is_hot else None
        if divided is not None:
            return divided
        lightest = min(self._shards, key=lambda shard: self._cost_of(table, weight, shard))
        return layouts.whole_table(table, lightest), "whole, on the shard that was loaded least"

    def _cost_of(self, table: Table, weight: _Weight, shard: int) -> tuple[bool, float, float, int]:
        load = self._loads[shard]
        after = _Weight(load.held + weight.held, load.read + weight.read)
        memory = self._request.memory_per_shard
        in_memory = self._request.storage.tier is Tier.MEMORY
        is_over = in_memory and memory is not None and after.held > memory
        parts = after.parts_of(self._total)
        return is_over, max(parts), sum(parts), shard

    def _divided(self, table: Table) -> tuple[TableLayout, str] | None:
        """Over all shards, in the first way that is even enough, or else in the most even one."""
        tried: list[tuple[float, TableLayout]] = []
        for way in self._ways(table):
            shares = self._element_shares(way, table)
            tried.append((max(shares) * len(self._shards), way))
            if tried[-1][0] <= EVEN_ENOUGH:
                break
        if not tried:
            return None
        busiest, chosen = min(tried, key=lambda one: one[0])
        reason = f"{chosen.sharding} over all shards"
        if chosen.hot:
            count = len(chosen.hot)
            reason += f", each with a copy of {count} hot row{'s' if count > 1 else ''}"
        if table.name in self._scored:
            reason += ", as it is scored"
        elif table.rows < MIN_ROWS * len(self._shards):
            reason += f", as there are only {table.rows} rows"
        if table.name in self._request.row_counts:
            reason += f", the busiest of which gets {busiest:.2f} times an even share of its reads"
        if chosen is not tried[0][1]:
            reason += f" ({tried[0][0]:.2f} times by {tried[0][1].sharding})"
        return chosen, reason

    def _ways(self, table: Table) -> Iterator[TableLayout]:
        """All ways to divide a table, in order of preference."""
        n = len(self._shards)
        by_classes = self._by_classes(table)
        if by_classes is not None:
            yield by_classes
            return
        if table.rows < MIN_ROWS * n:
            if table.columns >= n:
                yield layouts.column(table, layouts.even_bounds(table.columns, self._shards))
            return
        yield layouts.row_hash(table, self._shards)
        found = self._request.row_counts.get(table.name)
        if found is not None:
            least = max(HOT / n, 1 / layouts.MAX_HOT_ROWS) * found.total
            hot = rows_above(found, least)
            if hot and table.name not in self._scored:
                yield layouts.with_hot_rows(layouts.row_hash(table, self._shards), hot)
            yield layouts.row_mod(table, self._shards)
            yield layouts.row_range(table, layouts.even_bounds(table.rows, self._shards))
            if table.row_bytes >= MIN_COLUMN_BYTES * n:
                yield layouts.column(table, layouts.even_bounds(table.columns, self._shards))

    def _by_classes(self, table: Table) -> TableLayout | None:
        n = len(self._shards)
        match self._scored.get(table.name):
            case Axis.ROWS if table.rows >= n:
                return layouts.row_range(table, layouts.even_bounds(table.rows, self._shards))
            case Axis.COLUMNS if table.columns >= n:
                return layouts.column(table, layouts.even_bounds(table.columns, self._shards))
        return None

    def _element_shares(self, table_layout: TableLayout, table: Table) -> list[float]:
        """What part of all elements of the table that are read each slice has."""
        shares = read_shares(table_layout, table, self._request.row_counts.get(table.name))
        return [
            share * piece.columns / max(table.columns, 1)
            for share, piece in zip(shares, table_layout.slices, strict=True)
        ]
