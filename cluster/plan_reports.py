"""What `shardserve plan` reports: a layout that it made, or one that it was given to check."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from shardserve.shards.bundle import open_bundle
from shardserve.shards.cut.cut import CutModel, cut_saved_model
from shardserve.shards.cut.planning import cut_and_layout, cut_rule, plan_tables, table_sources
from shardserve.shards.cut.saved_model import checkpoint_prefix
from shardserve.shards.layout import Layout
from shardserve.shards.layout_file import dump_layout, to_file
from shardserve.shards.model import PlanOptions
from shardserve.shards.plan import ShardLoad, shard_loads
from shardserve.shards.tables import Table

HEAD = "Which slice of which table lies on which shard. See docs/layouts.md.\n"


@dataclass(frozen=True)
class PlanReport:
    """A layout of a model's tables, and what each shard holds and is asked under it."""

    layout: Layout
    tables: Mapping[str, Table]
    loads: tuple[ShardLoad, ...]


def plan_made(directory: Path, options: PlanOptions) -> tuple[PlanReport, str]:
    """Plan a layout for the SavedModel in `directory`; the report, and the layout file's text.

    Raises as `plan_model` does.
    """
    cut = cut_saved_model(directory, cut_rule(options, None), options.tags)
    tables = {name: found.table for name, found in cut.tables.items()}
    plan = plan_tables(tables, options)
    comments = {
        name: f"{_form(tables[name])}, {tables[name].nbytes} bytes; {reason}"
        for name, reason in plan.reasons.items()
    }
    text = dump_layout(to_file(plan.layout, options.memory_per_shard), comments, HEAD)
    return _report(directory, cut, plan.layout), text


def plan_checked(directory: Path, options: PlanOptions) -> PlanReport:
    """What the options' layout file means for the SavedModel in `directory`.

    Raises as `plan_model` does where that would refuse to serve the model so.
    """
    cut, layout = cut_and_layout(directory, options)
    return _report(directory, cut, layout)


def _report(directory: Path, cut: CutModel, layout: Layout) -> PlanReport:
    if cut.tables:
        table_sources(open_bundle(str(checkpoint_prefix(directory))), cut.tables)
    tables = {name: found.table for name, found in cut.tables.items()}
    lookups = {name: len(found.lookups) for name, found in cut.tables.items()}
    return PlanReport(layout, tables, shard_loads(layout, tables, lookups))


def _form(table: Table) -> str:
    return f"{table.dtype}{[table.rows, *table.row_shape]}"
