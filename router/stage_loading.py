"""Loads what stage actors need of a model: the regions of their group, and nothing else."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from graphlib import TopologicalSorter
from pathlib import Path
from typing import cast

from shardserve.batching.driver import BatchDevice
from shardserve.router.call_outs import CallOuts
from shardserve.router.restoring import graph_of, initialise
from shardserve.router.rounds import Fanout
from shardserve.router.session import Parallelism, StageThreads, TensorFlowRunner
from shardserve.router.sharded import ShardedServable, StageBatching
from shardserve.router.stage_host import HostedRegion, StageHost
from shardserve.shards.cut.cut import CutModel, CutRule, cut_saved_model
from shardserve.shards.cut.needs import only_regions
from shardserve.shards.messages import ShardChannel
from shardserve.shards.model import ModelPlan
from shardserve.shards.stage_groups import StageGroup, stage_name


@dataclass(frozen=True)
class LoadedStages:
    """A session with what a group's regions read, and how to run them."""

    plan: ModelPlan
    group: StageGroup
    cut: CutModel
    runner: TensorFlowRunner

    @property
    def needs_shards(self) -> bool:
        """Whether some region looks up in tables that lie on shards."""
        return any(r.lookups for one in self.cut.regions.values() for r in one.program.rounds)

    def regions(
        self, device: BatchDevice, channels: Sequence[ShardChannel]
    ) -> dict[str, HostedRegion]:
        """The group's regions by their `stage_name`, those that call others before these.

        Call it on the event loop that they are to run on. `channels` lead to the plan's shards.
        """
        batching = StageBatching(device)
        tables = {name: source.table for name, source in self.plan.sources.items()}
        fanout = Fanout(self.plan.layout, tables)
        call_outs = CallOuts((), fanout, channels)
        servable = ShardedServable(
            self.plan, self.cut, channels, self.runner, batching, fanout, call_outs
        )
        return {
            stage_name(self.plan.name, self.plan.version, name): cast(
                HostedRegion, servable.region(name)
            )
            for name in _callers_first(self.cut)
            if name in self.group.regions
        }

    def close(self) -> None:
        """Free the session. No region may run any more."""
        self.runner.close()


def host_of(*loaded: tuple[LoadedStages, Sequence[ShardChannel]]) -> StageHost:
    """All these models' regions on one device; as many batches are in flight as keep it busy.

    Call it on the event loop that they are to run on. Each comes with the channels to its shards.
    """
    device = BatchDevice(None)
    regions: dict[str, HostedRegion] = {}
    for one, channels in loaded:
        regions |= one.regions(device, channels)

    def close() -> None:
        for one, _ in loaded:
            one.close()

    return StageHost(regions, close)


def load_stages(
    plan: ModelPlan, group: StageGroup, threads: StageThreads, parallelism: Parallelism
) -> LoadedStages:
    """Load a plan's model as far as the group's regions need it, straight from the checkpoint.

    Blocks while TensorFlow loads. Raises a `ServingError` that names the file, the table or the
    region when the model does not match the plan.
    """
    rule = CutRule(only=frozenset(plan.layout.tables))
    cut = cut_saved_model(Path(plan.directory), rule, plan.tags, plan.stages.regions)
    needed = only_regions(cut, group.regions)
    runner = TensorFlowRunner(threads, graph_of(needed), parallelism)
    initialise(runner, needed)
    return LoadedStages(plan, group, needed, runner)


def _callers_first(cut: CutModel) -> list[str]:
    called = {
        name: [call.region for r in one.program.rounds for call in r.regions]
        for name, one in cut.regions.items()
    }
    return list(TopologicalSorter(called).static_order())[::-1]
