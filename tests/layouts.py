"""Layouts to try things under: one of each sharding, one with hot rows, and random ones."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from itertools import pairwise

from hypothesis import strategies as st

from shardserve.shards import layout as layouts
from shardserve.shards.layout import Layout, TableLayout
from shardserve.shards.storage import Storage, Tier
from shardserve.shards.tables import Table

LAYOUTS: dict[str, Callable[[Table, int], TableLayout]] = {
    "row_range": lambda t, n: layouts.row_range(t, layouts.even_bounds(t.rows, range(n))),
    "row_mod": lambda t, n: layouts.row_mod(t, range(n)),
    "row_hash": lambda t, n: layouts.row_hash(t, range(n)),
    "hot_rows": lambda t, n: layouts.with_hot_rows(
        layouts.row_hash(t, range(n)), range(0, t.rows, 7)
    ),
    "column": lambda t, n: layouts.column(t, layouts.even_bounds(t.columns, range(n))),
    "grid": lambda t, n: layouts.grid(
        (start, stop, layouts.row_hash(t, range(band, n, min(2, t.columns))))
        for band, start, stop in layouts.even_bounds(t.columns, range(min(2, n, t.columns)))
    ),
    "table": lambda t, n: layouts.whole_table(t, n - 1),
    "replicated": lambda t, n: layouts.replicated(t, range(n)),
}


def layout_of(kind: str, tables: Mapping[str, Table], shards: int) -> Layout:
    """Every table sharded in the same way over all shards."""
    return Layout(shards, 1, {name: LAYOUTS[kind](table, shards) for name, table in tables.items()})


@st.composite
def _bounds(draw: st.DrawFn, total: int, shards: list[int]) -> list[tuple[int, int, int]]:
    """A random division of [0, total) among some of the shards, in random order."""
    cuts = (
        sorted(draw(st.sets(st.integers(1, total - 1), max_size=len(shards) - 1)))
        if total > 1 and len(shards) > 1
        else []
    )
    edges = [0, *cuts, total]
    spans = list(pairwise(edges))
    return [
        (shard, *span) for shard, span in zip(shards, draw(st.permutations(spans)), strict=False)
    ]


@st.composite
def random_grid(draw: st.DrawFn, table: Table, shards: list[int]) -> TableLayout:
    """Random runs of columns, in random order, each by rows in a way of its own."""
    most = draw(st.integers(1, len(shards)))
    columns = draw(_bounds(table.columns, list(range(most))))
    each = len(shards) // len(columns)
    bands = []
    for band, start, stop in columns:
        owners = shards[band * each : (band + 1) * each]
        match draw(st.sampled_from(["row_mod", "row_hash", "even", "uneven"])):
            case "row_mod":
                rows = layouts.row_mod(table, owners)
            case "row_hash":
                rows = layouts.row_hash(table, owners)
            case "even":
                rows = layouts.row_range(table, layouts.even_bounds(table.rows, owners))
            case _:
                rows = layouts.row_range(table, draw(_bounds(table.rows, owners)))
        bands.append((start, stop, rows))
    return layouts.grid(bands)


@st.composite
def _table_layout(draw: st.DrawFn, table: Table, shards: int) -> TableLayout:
    owners = draw(st.permutations(range(shards)))
    owners = owners[: draw(st.integers(1, shards))]
    match draw(st.sampled_from(sorted(LAYOUTS.keys() - {"hot_rows"}))):
        case "row_range":
            return layouts.row_range(table, draw(_bounds(table.rows, owners)))
        case "column":
            return layouts.column(table, draw(_bounds(table.columns, owners)))
        case "grid":
            return draw(random_grid(table, owners))
        case "row_mod":
            return layouts.row_mod(table, owners)
        case "row_hash":
            return layouts.row_hash(table, owners)
        case "replicated":
            return layouts.replicated(table, owners)
        case _:
            return layouts.whole_table(table, owners[0])


@st.composite
def random_layout(
    draw: st.DrawFn, tables: Mapping[str, Table], shards: int, *, hot_rows: bool = True
) -> Layout:
    """Any valid layout: each table in its own way, unevenly, over some of the shards.

    Some tables have hot rows, unless they may not; they are in either tier that needs no device,
    as saved.
    """
    tiers = st.sampled_from([Tier.MEMORY, Tier.MAPPED])
    found = {}
    for name, table in tables.items():
        table_layout = draw(_table_layout(table, shards))
        is_by_rows = table_layout.sharding in layouts.ROW_SHARDINGS.values()
        if hot_rows and is_by_rows and draw(st.booleans()):
            hot = draw(st.sets(st.integers(0, table.rows - 1), max_size=5))
            table_layout = layouts.with_hot_rows(table_layout, hot)
        found[name] = layouts.stored(table_layout, Storage(draw(tiers)))
    return Layout(shards, 1, found, draw(st.sampled_from([0, 1 << 16])))
