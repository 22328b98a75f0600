"""Where a table's rows lie among the entries of a checkpoint."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from shardserve.batching.errors import DataLoss
from shardserve.shards.bundle import Bundle
from shardserve.shards.cut.variables import Variable
from shardserve.shards.tables import Extent, Table, TableSource


@dataclass(frozen=True)
class StoredRows:
    """A run of a checkpoint entry's rows that are rows of a table.

    The entry `key` has `of` rows. Its row `first + j`, for j in [0, count), is the table's row
    `start + j * step`.
    """

    key: str
    of: int
    first: int
    count: int
    start: int = 0
    step: int = 1


def stored_rows(variable: Variable) -> StoredRows | str:
    """The rows that a variable restores, as a table of its own; or why they are not rows."""
    if not variable.shape:
        return "it is a scalar, or its shape is not known from the graph"
    rows = variable.shape[0]
    if not variable.slice_spec:
        return StoredRows(variable.key, rows, 0, rows)
    box = _box(variable.slice_spec)
    if box is None or len(box) != len(variable.shape):
        return f"it restores a slice that cannot be read ({variable.slice_spec!r})"
    (of, first, count), *inner = box
    if any(length != size for size, _, length in inner):
        return f"it restores some columns ({variable.slice_spec!r}) of {variable.key!r}"
    if (count, *(size for size, _, _ in inner)) != variable.shape:
        return f"it restores a slice of another shape ({variable.slice_spec!r})"
    return StoredRows(variable.key, of, first, count)


def table_source(bundle: Bundle, table: Table, stored: Sequence[StoredRows]) -> TableSource:
    """Where the table's bytes lie.

    Raises NotFound for an entry that the checkpoint does not have, and DataLoss, naming it, where
    it is of another dtype or shape than the graph's variable.
    """
    sources = {run.key: bundle.source(run.key, table.name) for run in stored}
    for run in stored:
        expected = replace(table, rows=run.of)
        if sources[run.key].table != expected:
            raise DataLoss(
                f"{bundle.prefix}.index: entry {run.key!r} is {_form(sources[run.key].table)}, "
                f"the graph's variable {table.name!r} is {_form(expected)}"
            )
    extents = (extent for run in stored for extent in _extents(sources[run.key], run))
    return TableSource(table, tuple(extents))


def _extents(source: TableSource, run: StoredRows) -> Iterator[Extent]:
    for extent in source.extents:
        first = max(extent.row_start, run.first)
        last = min(extent.row_stop, run.first + run.count) - 1
        if first > last:
            continue
        row_bytes = (extent.column_stop - extent.column_start) * source.table.itemsize
        yield replace(
            extent,
            offset=extent.offset + (first - extent.row_start) * row_bytes,
            row_start=run.start + (first - run.first) * run.step,
            row_stop=run.start + (last - run.first) * run.step + 1,
            row_step=run.step,
        )


def sliced_box(variable: Variable) -> list[tuple[int, int, int]] | None:
    """(size, first, count) of each dimension of the entry that a variable is a slice of.

    None for one that is no slice, or whose slice is not of its own shape.
    """
    box = _box(variable.slice_spec) if variable.slice_spec else None
    if box is None or tuple(count for _, _, count in box) != variable.shape:
        return None
    return box


def _box(slice_spec: str) -> list[tuple[int, int, int]] | None:
    """RestoreV2's word for a slice, "20 4 5,5:-", as (size, first, count) of each dimension."""
    *sizes, extents = slice_spec.split()
    if len(sizes) != len(extents.split(":")):
        return None
    return [
        (int(size), *_span(extent, int(size)))
        for size, extent in zip(sizes, extents.split(":"), strict=True)
    ]


def _span(extent: str, size: int) -> tuple[int, int]:
    if extent == "-":
        return 0, size
    first, count = extent.split(",")
    return int(first), int(count)


def _form(table: Table) -> str:
    return f"{table.dtype}{[table.rows, *table.row_shape]}"
