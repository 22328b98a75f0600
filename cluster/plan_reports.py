"""What `shardserve plan` reports: a layout that it made, or one that it was given to check."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from shardserve.batching.errors import InvalidArgument
from shardserve.shards.bundle import open_bundle
from shardserve.shards.cut.cut import CutModel, cut_saved_model
from shardserve.shards.cut.planning import cut_and_layout, cut_rule, plan_tables, table_sources
from shardserve.shards.cut.saved_model import checkpoint_prefix
from shardserve.shards.layout import Layout
from shardserve.shards.layout_file import dump_layout, to_file
from shardserve.shards.model import PlanOptions
from shardserve.shards.plan import ShardLoad, shard_loads
from shardserve.shards.row_counts import RowCounts, check_counts
from shardserve.shards.row_counts_file import read_row_counts
from shardserve.shards.tables import Table

HEAD = "Which slice of which table lies on which shard. See docs/layouts.md.\n"


@dataclass(frozen=True)
class PlanReport:
    """A layout of a model's tables, and what each shard holds and is asked under it."""

    layout: Layout
    tables: Mapping[str, Table]
    loads: tuple[ShardLoad, ...]


def plan_made(
    directory: Path, options: PlanOptions, counts_file: Path | None
) -> tuple[PlanReport, str]:
    """Plan a layout for the SavedModel in `directory`; the report, and the layout file's text.

    Raises as `plan_model` does, and NotFound or InvalidArgument for row counts that cannot be read
    or are not those of the tables.
    """
    cut = cut_saved_model(directory, cut_rule(options, None), options.tags)
    counts = _counts(cut, counts_file)
    tables = {name: found.table for name, found in cut.tables.items()}
    plan = plan_tables(cut.tables, options, counts)
    comments = {
        name: f"{_form(tables[name])}, {tables[name].nbytes} bytes; {reason}"
        for name, reason in plan.reasons.items()
    }
    head = f"{HEAD}{plan.summary}\n"
    text = dump_layout(to_file(plan.layout, options.memory_per_shard), comments, head)
    return _report(directory, cut, plan.layout, counts), text


def plan_checked(directory: Path, options: PlanOptions, counts_file: Path | None) -> PlanReport:
    """What the options' layout file means for the SavedModel in `directory`.

    Raises as `plan_model` does where that would refuse to serve the model so, and as `plan_made`.
    """
    cut, layout = cut_and_layout(directory, options)
    return _report(directory, cut, layout, _counts(cut, counts_file))


def _counts(cut: CutModel, path: Path | None) -> dict[str, RowCounts]:
    """Those of the tables that are cut; of variables that stay whole they mean nothing."""
    if path is None:
        return {}
    counts = read_row_counts(path)
    known = cut.tables.keys() | {variable.name for variable in cut.whole}
    for name in counts:
        if name not in known:
            raise InvalidArgument(f"{path}: table {name!r} is not in the model")
    for name, found in cut.tables.items():
        if name in counts:
            check_counts(counts[name], found.table)
    return {name: counts[name] for name in counts.keys() & cut.tables.keys()}


def _report(
    directory: Path, cut: CutModel, layout: Layout, counts: Mapping[str, RowCounts]
) -> PlanReport:
    if cut.tables:
        table_sources(open_bundle(str(checkpoint_prefix(directory))), cut.tables)
    tables = {name: found.table for name, found in cut.tables.items()}
    lookups = {name: len(found.lookups) for name, found in cut.tables.items()}
    return PlanReport(layout, tables, shard_loads(layout, tables, lookups, counts))


def _form(table: Table) -> str:
    return f"{table.dtype}{[table.rows, *table.row_shape]}"
