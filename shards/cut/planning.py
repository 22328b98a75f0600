"""From a SavedModel's directory to a `ModelPlan`: cut, layout, and where each table's bytes lie."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from shardserve.batching.errors import InvalidArgument, ServingError
from shardserve.shards.bundle import Bundle, open_bundle
from shardserve.shards.checksums import entry_bytes, verify_entries
from shardserve.shards.cut.cut import CutModel, CutRule, CutTable, cut_saved_model
from shardserve.shards.cut.saved_model import checkpoint_prefix
from shardserve.shards.cut.scorings import Scoring
from shardserve.shards.cut.stage_grouping import stage_groups
from shardserve.shards.cut.stored import table_source
from shardserve.shards.layout import Layout, check, check_memory
from shardserve.shards.layout_file import LayoutFile, read_layout_file, to_layout
from shardserve.shards.messages import Axis
from shardserve.shards.model import ModelPlan, PlanOptions, fingerprint
from shardserve.shards.plan import Plan, PlanRequest, plan_layout
from shardserve.shards.regions import Region
from shardserve.shards.row_counts import RowCounts
from shardserve.shards.stages_file import stages_of
from shardserve.shards.tables import Table, TableSource

#: Is told how many bytes were verified since it was told last, and how many there are in all.
Verified = Callable[[int, int], None]


def plan_model(
    name: str,
    version: int,
    directory: Path,
    options: PlanOptions,
    verified: Verified | None = None,
) -> ModelPlan:
    """As `cut_and_plan`, without the cut."""
    return cut_and_plan(name, version, directory, options, verified)[1]


def cut_and_plan(
    name: str,
    version: int,
    directory: Path,
    options: PlanOptions,
    verified: Verified | None = None,
) -> tuple[CutModel, ModelPlan]:
    """Plan one version of a model; `directory` is the version's own. The cut is as planned for.

    Reads `saved_model.pb`, the layout file and the checkpoint's index; of the variables nothing,
    unless checksums are to be verified. Raises NotFound or DataLoss naming a file that is missing,
    cut off, damaged or does not match the graph, and InvalidArgument naming the layout file and the
    table for a layout that does not fit the model, the region that is not closed, or a signature
    that there is not. Raises as `stage_groups` does.
    """
    stages = stages_of(directory, options.batching)
    cut, layout = cut_and_layout(directory, options, stages.regions)
    cut.check_signatures(stages.loops)
    has_regions = bool(cut.regions)
    whole = ModelPlan(
        name, version, str(directory), options.tags, layout, {}, "", stages, has_regions
    )
    if not layout.tables:
        return cut, replace(whole, stage_groups=stage_groups(cut, stages, ""))
    prefix = checkpoint_prefix(directory)
    bundle = open_bundle(str(prefix))
    sources = table_sources(bundle, cut.tables)
    if options.verify_checksums:
        _verify(bundle, cut.tables, verified)
    index = prefix.with_name(prefix.name + ".index").read_bytes()
    digest = fingerprint(name, version, layout, sources, index)
    groups = stage_groups(cut, stages, digest)
    plan = replace(whole, sources=sources, fingerprint=digest, stage_groups=groups)
    return cut, plan


def _verify(bundle: Bundle, tables: Mapping[str, CutTable], verified: Verified | None) -> None:
    keys = {run.key for table in tables.values() for run in table.stored}
    total = entry_bytes(bundle, keys)
    verify_entries(bundle, keys, verified and (lambda nbytes: verified(nbytes, total)))


def cut_and_layout(
    directory: Path, options: PlanOptions, regions: Sequence[Region] = ()
) -> tuple[CutModel, Layout]:
    """The cut, and the layout: the file's, or the planner's."""
    file = None if options.layout_file is None else read_layout_file(options.layout_file)
    cut = cut_saved_model(directory, cut_rule(options, file), options.tags, regions)
    tables = {name: found.table for name, found in cut.tables.items()}
    if file is None:
        return cut, plan_tables(cut.tables, options).layout
    try:
        return cut, _layout_of(file, cut, tables, options)
    except ServingError as error:
        what = error.message.removeprefix("layout: ")
        raise type(error)(f"{options.layout_file}: {what}") from error


def _layout_of(
    file: LayoutFile, cut: CutModel, tables: Mapping[str, Table], options: PlanOptions
) -> Layout:
    layout = to_layout(file, tables)
    _check_hot_rows(layout, cut)
    if options.replicas is not None:
        layout = replace(layout, replicas=options.replicas)
        check(layout, tables)
    if options.memory_per_shard is not None:
        check_memory(layout, tables, options.memory_per_shard)
    return layout


def _check_hot_rows(layout: Layout, cut: CutModel) -> None:
    """Scores are of every class once; a copy of a hot row would be a class twice."""
    scored = _scored(cut.tables)
    for name, table_layout in layout.tables.items():
        if table_layout.hot and name in scored:
            raise InvalidArgument(
                f"layout: table {name!r}: queries are multiplied with it; it takes no hot rows"
            )


def _scored(tables: Mapping[str, CutTable]) -> dict[str, Axis]:
    """The tables that queries are multiplied with, and the axis of their classes."""
    return {
        name: lookup.axis
        for name, cut in tables.items()
        for lookup in cut.all_lookups
        if isinstance(lookup, Scoring)
    }


def cut_rule(options: PlanOptions, file: LayoutFile | None) -> CutRule:
    """A layout file names the tables to cut; without one the threshold decides."""
    if file is None:
        return CutRule(threshold=options.threshold)
    return CutRule(only=frozenset(file.tables), named_in=str(options.layout_file))


def plan_tables(
    tables: Mapping[str, CutTable],
    options: PlanOptions,
    counts: Mapping[str, RowCounts] | None = None,
) -> Plan:
    """The planner's layout for the options; `counts` says how often rows are read, by table."""
    request = PlanRequest(
        options.shards,
        options.replicas or 1,
        options.memory_per_shard,
        options.storage,
        counts or {},
    )
    return plan_layout({name: cut.table for name, cut in tables.items()}, request, _scored(tables))


def table_sources(bundle: Bundle, tables: Mapping[str, CutTable]) -> dict[str, TableSource]:
    """Where each table's bytes lie. Raises DataLoss where the checkpoint and the graph disagree."""
    return {name: table_source(bundle, cut.table, cut.stored) for name, cut in tables.items()}
