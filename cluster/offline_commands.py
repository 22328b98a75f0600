"""The commands that serve nothing: `inspect` and `plan`."""

from __future__ import annotations

import sys

import typer
from rich.console import Console

from shardserve.cluster.flags.batching import parameters_of
from shardserve.cluster.flags.group import given, takes
from shardserve.cluster.flags.offline import InspectFlags, PlanFlags
from shardserve.cluster.flags.sharding import refuse_beside_layout
from shardserve.cluster.quiet import quiet_tensorflow
from shardserve.cluster.versions import locate
from shardserve.shards.model import PlanOptions
from shardserve.shards.stages import BatchingOptions
from shardserve.shards.storage import Storage


@takes(InspectFlags)
def inspect(_: typer.Context, flags: InspectFlags) -> None:
    """Show a model's signatures and tables, where it is cut and why, and what stays whole."""
    found = locate(flags.directory)
    batching = parameters_of(flags.batching_parameters_file, enabled=flags.enable_batching)
    options = PlanOptions(
        layout_file=flags.layout,
        threshold=flags.cut_threshold,
        tags=tuple(flags.saved_model_tags.split(",")),
        batching=BatchingOptions(batching, stages_file=flags.stages_file),
    )
    with quiet_tensorflow():
        from shardserve.cluster.reports import draw_inspection  # noqa: PLC0415
        from shardserve.cluster.stage_reports import draw_stages  # noqa: PLC0415
        from shardserve.shards.cut.inspection import inspect_model  # noqa: PLC0415
        from shardserve.shards.cut.stage_graph import stage_graph  # noqa: PLC0415

    if flags.stages:
        draw_stages(Console(), stage_graph(found.path, options))
    else:
        draw_inspection(Console(), inspect_model(found.path, options))


@takes(PlanFlags)
def plan(context: typer.Context, flags: PlanFlags) -> None:
    """Write a layout file to standard output, and each shard's bytes and load beside it."""
    refuse_beside_layout(given(context), flags.check)
    found = locate(flags.directory)
    options = PlanOptions(
        flags.shards,
        flags.replicas,
        flags.check,
        flags.memory_per_shard,
        flags.cut_threshold,
        tuple(flags.saved_model_tags.split(",")),
        Storage(flags.tier, flags.precision),
    )
    with quiet_tensorflow():
        from shardserve.cluster.plan_reports import plan_checked, plan_made  # noqa: PLC0415
        from shardserve.cluster.reports import draw_check, draw_plan  # noqa: PLC0415

    if flags.check is not None:
        draw_check(Console(), flags.check, plan_checked(found.path, options, flags.row_counts))
        return
    report, text = plan_made(found.path, options, flags.row_counts)
    sys.stdout.write(text)
    draw_plan(Console(stderr=True), report)
