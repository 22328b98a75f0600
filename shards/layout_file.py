"""The layout file: YAML that a person can read and edit, to and from a `Layout`.

`docs/layouts.md` describes the form; `LayoutFile.model_json_schema()` is its JSON schema.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import ByteSize, Field

from shardserve.batching.errors import InvalidArgument
from shardserve.shards import layout as layouts
from shardserve.shards.forms import Strict, parse_form, read_form
from shardserve.shards.layout import Layout, Sharding, TableLayout
from shardserve.shards.rows import RowRange, base_of
from shardserve.shards.storage import Precision, Storage, Tier
from shardserve.shards.tables import Table

MAX_SHARDS = 100_000
MAX_REPLICAS = 1_000

Span = Annotated[list[int], Field(min_length=2, max_length=2)]


class SliceEntry(Strict):
    """One slice of a row_range or column table: its shard and [first, one after the last)."""

    shard: int
    rows: Span | None = None
    columns: Span | None = None


class BandEntry(Strict):
    """A run of a grid's columns, [first, one after the last), and how the rows fall there."""

    columns: Span
    sharding: Sharding
    slices: list[SliceEntry] | None = None
    shards: list[int] | None = None


class TableEntry(Strict):
    """One table. `slices` for row_range and column, `bands` for grid, `shards` for the others.

    `hot_rows`, of row-wise shardings, are held by every slice. `tier` None is the file's.
    """

    sharding: Sharding
    slices: list[SliceEntry] | None = None
    shards: list[int] | None = None
    bands: list[BandEntry] | None = None
    hot_rows: Annotated[list[int], Field(max_length=layouts.MAX_HOT_ROWS)] | None = None
    precision: Precision = Precision.AS_SAVED
    tier: Tier | None = None


class LayoutFile(Strict):
    """The whole file. Tables not named stay whole, in the router.

    `tier` is that of tables that do not say theirs; `cache_per_shard` is for hot rows of mapped
    tables, none if unset.
    """

    version: Literal[1] = 1
    shards: Annotated[int, Field(ge=1, le=MAX_SHARDS)]
    replicas: Annotated[int, Field(ge=1, le=MAX_REPLICAS)] = 1
    memory_per_shard: ByteSize | None = None
    cache_per_shard: ByteSize | None = None
    tier: Tier = Tier.MEMORY
    tables: dict[str, TableEntry]


def read_layout_file(path: Path) -> LayoutFile:
    """Parse and validate the form. Raises NotFound or InvalidArgument naming the file and field."""
    return read_form(LayoutFile, path)


def parse_layout(text: str | bytes, where: str) -> LayoutFile:
    """As `read_layout_file`, for text; `where` names its origin in errors."""
    return parse_form(LayoutFile, text, where)


def to_layout(file: LayoutFile, tables: Mapping[str, Table]) -> Layout:
    """The layout that a file describes, checked against the model's tables.

    Raises InvalidArgument naming the table for one that the model does not have, a gap, an overlap,
    a shard that does not exist, or a shard that is over the memory that the file gives.
    """
    found: dict[str, TableLayout] = {}
    for name, entry in file.tables.items():
        if name not in tables:
            known = ", ".join(sorted(tables)) or "none"
            raise InvalidArgument(
                f"layout: table {name!r} is not in the model; tables that can be cut: {known}"
            )
        storage = Storage(entry.tier or file.tier, entry.precision)
        table_layout = _table_layout(entry, tables[name])
        hot = entry.hot_rows or ()
        found[name] = layouts.stored(layouts.with_hot_rows(table_layout, hot), storage)
    layout = Layout(file.shards, file.replicas, found, int(file.cache_per_shard or 0))
    layouts.check(layout, tables)
    if file.memory_per_shard is not None:
        layouts.check_memory(layout, tables, int(file.memory_per_shard))
    return layout


def _table_layout(entry: TableEntry, table: Table) -> TableLayout:
    where = f"layout: table {table.name!r}"
    if entry.sharding is not Sharding.GRID:
        if entry.bands is not None:
            raise InvalidArgument(f"{where}: only sharding 'grid' takes 'bands'")
        return _flat_layout(where, entry, table)
    if not entry.bands or entry.slices is not None or entry.shards is not None:
        raise InvalidArgument(
            f"{where}: sharding 'grid' takes 'bands', a list of runs of columns, and neither "
            "'slices' nor 'shards'"
        )
    return layouts.grid(
        (band.columns[0], band.columns[1], _band_layout(f"{where}: band {number}", band, table))
        for number, band in enumerate(entry.bands)
    )


def _band_layout(where: str, band: BandEntry, table: Table) -> TableLayout:
    if band.sharding not in layouts.ROW_SHARDINGS.values():
        words = ", ".join(layouts.ROW_SHARDINGS.values())
        raise InvalidArgument(f"{where}: a band's sharding is one of {words}, not {band.sharding}")
    return _flat_layout(where, band, table)


def _flat_layout(where: str, entry: TableEntry | BandEntry, table: Table) -> TableLayout:
    if entry.sharding in (Sharding.ROW_RANGE, Sharding.COLUMN):
        axis = "rows" if entry.sharding is Sharding.ROW_RANGE else "columns"
        make = layouts.row_range if entry.sharding is Sharding.ROW_RANGE else layouts.column
        return make(table, _spans(where, entry, axis))
    if entry.slices is not None or not entry.shards:
        raise InvalidArgument(
            f"{where}: sharding '{entry.sharding}' takes 'shards', a list of shard numbers, "
            "and no 'slices'"
        )
    match entry.sharding:
        case Sharding.ROW_MOD:
            return layouts.row_mod(table, entry.shards)
        case Sharding.ROW_HASH:
            return layouts.row_hash(table, entry.shards)
        case Sharding.REPLICATED:
            return layouts.replicated(table, entry.shards)
        case _:
            if len(entry.shards) != 1:
                raise InvalidArgument(
                    f"{where}: sharding 'table' takes one shard, not {entry.shards}"
                )
            return layouts.whole_table(table, entry.shards[0])


def _spans(where: str, entry: TableEntry | BandEntry, axis: str) -> list[tuple[int, int, int]]:
    if entry.slices is None or entry.shards is not None:
        raise InvalidArgument(
            f"{where}: sharding '{entry.sharding}' takes 'slices', and no 'shards'"
        )
    spans = []
    for number, piece in enumerate(entry.slices):
        span = piece.rows if axis == "rows" else piece.columns
        other = piece.columns if axis == "rows" else piece.rows
        if span is None or other is not None:
            raise InvalidArgument(f"{where}: slice {number} needs '{axis}', and only that")
        spans.append((piece.shard, span[0], span[1]))
    return spans


def to_file(layout: Layout, memory_per_shard: int | None = None) -> LayoutFile:
    """The file that describes a layout; `to_layout` gives the layout back."""
    return LayoutFile(
        shards=layout.shards,
        replicas=layout.replicas,
        memory_per_shard=None if memory_per_shard is None else ByteSize(memory_per_shard),
        cache_per_shard=ByteSize(layout.cache_per_shard) if layout.cache_per_shard else None,
        tables={name: _entry(layout.tables[name]) for name in sorted(layout.tables)},
    )


def _entry(table_layout: TableLayout) -> TableEntry:
    tier = table_layout.storage.tier
    kept = {
        "hot_rows": list(table_layout.hot) or None,
        "precision": table_layout.storage.precision,
        "tier": None if tier is Tier.MEMORY else tier,
    }
    return _sharded_entry(table_layout).model_copy(update=kept)


def _sharded_entry(table_layout: TableLayout) -> TableEntry:
    if table_layout.sharding is Sharding.GRID:
        bands = [_band_entry(band) for band in table_layout.bands()]
        return TableEntry(sharding=table_layout.sharding, bands=bands)
    return TableEntry(sharding=table_layout.sharding, **_places(table_layout))


def _band_entry(band: TableLayout) -> BandEntry:
    columns = [band.slices[0].column_start, band.slices[0].column_stop]
    return BandEntry(columns=columns, sharding=band.sharding, **_places(band))


def _places(table_layout: TableLayout) -> dict[str, Any]:
    match table_layout.sharding:
        case Sharding.ROW_RANGE:
            return {
                "slices": [
                    SliceEntry(shard=s.shard, rows=[rows.start, rows.stop])
                    for s in table_layout.slices
                    if isinstance(rows := base_of(s.rows), RowRange)
                ]
            }
        case Sharding.COLUMN:
            return {
                "slices": [
                    SliceEntry(shard=s.shard, columns=[s.column_start, s.column_stop])
                    for s in table_layout.slices
                ]
            }
        case _:
            return {"shards": [s.shard for s in table_layout.slices]}


def dump_layout(file: LayoutFile, comments: Mapping[str, str] | None = None, head: str = "") -> str:
    """The file's text, `comments` above their tables and `head` above all, as comment lines."""
    data: dict[str, Any] = file.model_dump(mode="json", exclude_defaults=True)
    tables = data.pop("tables", {})
    lines = [f"# {line}" for line in head.splitlines()]
    lines.append(_yaml({"version": file.version, **data}).rstrip())
    lines.append("tables:" if tables else "tables: {}")
    for name, entry in tables.items():
        lines.extend(f"  # {line}" for line in (comments or {}).get(name, "").splitlines())
        lines.extend("  " + line for line in _yaml({name: entry}).splitlines())
    return "\n".join(lines) + "\n"


class _InlineDumper(yaml.SafeDumper):
    """Block style for tables, one line for each slice, band and list of shards."""


def _yaml(data: Mapping[str, Any]) -> str:
    return yaml.dump(dict(data), Dumper=_InlineDumper, sort_keys=False, width=100)


def _represent_list(dumper: yaml.SafeDumper, data: list[Any]) -> yaml.Node:
    flow = all(isinstance(item, int) for item in data)
    return dumper.represent_sequence("tag:yaml.org,2002:seq", data, flow_style=flow)


def _represent_dict(dumper: yaml.SafeDumper, data: dict[Any, Any]) -> yaml.Node:
    flow = "shard" in data or ("columns" in data and "slices" not in data)
    return dumper.represent_mapping("tag:yaml.org,2002:map", data.items(), flow_style=flow)


_InlineDumper.add_representer(list, _represent_list)
_InlineDumper.add_representer(dict, _represent_dict)
