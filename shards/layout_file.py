"""The layout file: YAML that a person can read and edit, to and from a `Layout`.

`docs/layouts.md` describes the form; `LayoutFile.model_json_schema()` is its JSON schema.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, ByteSize, ConfigDict, Field, ValidationError

from shardserve.batching.errors import InvalidArgument, NotFound
from shardserve.shards import layout as layouts
from shardserve.shards.layout import Layout, Sharding, TableLayout
from shardserve.shards.storage import Precision, Storage, Tier
from shardserve.shards.tables import Table

MAX_FILE_BYTES = 64 << 20
MAX_SHARDS = 100_000
MAX_REPLICAS = 1_000

Span = Annotated[list[int], Field(min_length=2, max_length=2)]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class SliceEntry(_Strict):
    """One slice of a row_range or column table: its shard and [first, one after the last)."""

    shard: int
    rows: Span | None = None
    columns: Span | None = None


class TableEntry(_Strict):
    """One table. `slices` for row_range and column, `shards` for the others.

    `tier` None is the file's.
    """

    sharding: Sharding
    slices: list[SliceEntry] | None = None
    shards: list[int] | None = None
    precision: Precision = Precision.AS_SAVED
    tier: Tier | None = None


class LayoutFile(_Strict):
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
    try:
        with path.open("rb") as stream:
            text = stream.read(MAX_FILE_BYTES + 1)
    except OSError as error:
        raise NotFound(f"{path}: cannot be read: {error.strerror}") from None
    if len(text) > MAX_FILE_BYTES:
        raise InvalidArgument(f"{path}: a layout file has at most {MAX_FILE_BYTES} bytes")
    return parse_layout(text, str(path))


def parse_layout(text: str | bytes, where: str) -> LayoutFile:
    """As `read_layout_file`, for text; `where` names its origin in errors."""
    try:
        data = yaml.safe_load(text)
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise InvalidArgument(f"{where}: not YAML: {error}") from None
    try:
        return LayoutFile.model_validate(data)
    except ValidationError as error:
        problems = "; ".join(map(_problem, error.errors()))
        raise InvalidArgument(f"{where}: {problems}") from None


def _problem(problem: Mapping[str, Any]) -> str:
    place = ".".join(map(str, problem["loc"])) or "file"
    found = f", not {problem['input']!r}" if problem["type"] == "enum" else ""
    return f"{place}: {problem['msg']}{found}"


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
        found[name] = layouts.stored(_table_layout(entry, tables[name]), storage)
    layout = Layout(file.shards, file.replicas, found, int(file.cache_per_shard or 0))
    layouts.check(layout, tables)
    if file.memory_per_shard is not None:
        layouts.check_memory(layout, tables, int(file.memory_per_shard))
    return layout


def _table_layout(entry: TableEntry, table: Table) -> TableLayout:
    if entry.sharding in (Sharding.ROW_RANGE, Sharding.COLUMN):
        spans = _spans(entry, table, "rows" if entry.sharding is Sharding.ROW_RANGE else "columns")
        make = layouts.row_range if entry.sharding is Sharding.ROW_RANGE else layouts.column
        return make(table, spans)
    if entry.slices is not None or not entry.shards:
        raise InvalidArgument(
            f"layout: table {table.name!r}: sharding '{entry.sharding}' takes 'shards', a list of "
            "shard numbers, and no 'slices'"
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
                    f"layout: table {table.name!r}: sharding 'table' takes one shard, "
                    f"not {entry.shards}"
                )
            return layouts.whole_table(table, entry.shards[0])


def _spans(entry: TableEntry, table: Table, axis: str) -> list[tuple[int, int, int]]:
    if entry.slices is None or entry.shards is not None:
        raise InvalidArgument(
            f"layout: table {table.name!r}: sharding '{entry.sharding}' takes 'slices', "
            "and no 'shards'"
        )
    spans = []
    for number, piece in enumerate(entry.slices):
        span = piece.rows if axis == "rows" else piece.columns
        other = piece.columns if axis == "rows" else piece.rows
        if span is None or other is not None:
            raise InvalidArgument(
                f"layout: table {table.name!r}: slice {number} needs '{axis}', and only that"
            )
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
        "precision": table_layout.storage.precision,
        "tier": None if tier is Tier.MEMORY else tier,
    }
    return _sharded_entry(table_layout).model_copy(update=kept)


def _sharded_entry(table_layout: TableLayout) -> TableEntry:
    match table_layout.sharding:
        case Sharding.ROW_RANGE:
            slices = [
                SliceEntry(shard=s.shard, rows=[s.rows.start, s.rows.stop])  # type: ignore[union-attr]
                for s in table_layout.slices
            ]
            return TableEntry(sharding=table_layout.sharding, slices=slices)
        case Sharding.COLUMN:
            slices = [
                SliceEntry(shard=s.shard, columns=[s.column_start, s.column_stop])
                for s in table_layout.slices
            ]
            return TableEntry(sharding=table_layout.sharding, slices=slices)
        case _:
            return TableEntry(
                sharding=table_layout.sharding, shards=[s.shard for s in table_layout.slices]
            )


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
    """Block style for tables, one line for each slice and each list of shards."""


def _yaml(data: Mapping[str, Any]) -> str:
    return yaml.dump(dict(data), Dumper=_InlineDumper, sort_keys=False, width=100)


def _represent_list(dumper: yaml.SafeDumper, data: list[Any]) -> yaml.Node:
    flow = all(isinstance(item, int) for item in data)
    return dumper.represent_sequence("tag:yaml.org,2002:seq", data, flow_style=flow)


def _represent_dict(dumper: yaml.SafeDumper, data: dict[Any, Any]) -> yaml.Node:
    return dumper.represent_mapping(
        "tag:yaml.org,2002:map", data.items(), flow_style="shard" in data
    )


_InlineDumper.add_representer(list, _represent_list)
_InlineDumper.add_representer(dict, _represent_dict)
