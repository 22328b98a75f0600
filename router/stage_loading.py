"""Loads what stage actors need of a model: the stages of their group, and nothing else."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from graphlib import TopologicalSorter
from pathlib import Path
from typing import cast

from shardserve.batching.driver import BatchDevice, StageCounts
from shardserve.router.call_outs import CallOuts
from shardserve.router.hosted_sequence import HostedSequence
from shardserve.router.lifted import LoopRunner
from shardserve.router.restoring import graph_of, initialise
from shardserve.router.rounds import Fanout
from shardserve.router.sequence_plan import plan_sequence
from shardserve.router.sequence_runners import SteppedSequence
from shardserve.router.session import Parallelism, StageThreads, TensorFlowRunner
from shardserve.router.sharded import ShardedServable, StageBatching
from shardserve.router.stage_host import HostedStage, StageHost
from shardserve.shards.cut.cut import CutModel, CutRule, cut_saved_model
from shardserve.shards.cut.loops import StepLoop
from shardserve.shards.cut.needs import Parts, only
from shardserve.shards.messages import ShardChannel
from shardserve.shards.model import ModelPlan
from shardserve.shards.sequences_form import LoopEntry
from shardserve.shards.stage_groups import (
    StageGroup,
    stage_name,
    stage_of_loop,
    stage_of_sequence,
)


@dataclass(frozen=True)
class LoadedStages:
    """A session with what a group's stages read, and how to run them.

    `loops` are those of the group, each with the entry that says how it is stepped.
    """

    plan: ModelPlan
    group: StageGroup
    cut: CutModel
    runner: TensorFlowRunner
    loops: tuple[tuple[LoopEntry, StepLoop], ...] = ()

    @property
    def needs_shards(self) -> bool:
        """Whether some stage looks up in tables that lie on shards."""
        regions = [one.program for one in self.cut.regions.values()]
        programs = [*self.cut.programs.values(), *regions]
        return any(one.lookups for program in programs for one in program.rounds)

    def servable(self, device: BatchDevice, channels: Sequence[ShardChannel]) -> ShardedServable:
        """What runs the group's regions, and its sequences' signatures, all on `device`.

        Call it on the event loop that they are to run on. `channels` lead to the plan's shards.
        """
        tables = {name: source.table for name, source in self.plan.sources.items()}
        fanout = Fanout(self.plan.layout, tables)
        call_outs = CallOuts((), fanout, channels)
        return ShardedServable(
            self.plan, self.cut, channels, self.runner, StageBatching(device), fanout, call_outs
        )

    def hosted(self, servable: ShardedServable, device: BatchDevice) -> dict[str, HostedStage]:
        """The group's stages by their `stage_name`, those that call others before these."""
        stages = {
            **dict(self._sequences(servable, device)),
            **dict(self._regions(servable)),
            **dict(self._stepped(device)),
        }
        return {self._name(stage): one for stage, one in stages.items()}

    def inside(self, servable: ShardedServable) -> dict[str, StageCounts]:
        """What the stages of sequences' signatures have done, by their `stage_name`."""
        counts = servable.stage_counts() if self.group.sequences else {}
        prefix = f"{self.plan.name}/"
        return {self._name(name.removeprefix(prefix)): one for name, one in counts.items()}

    def close(self) -> None:
        """Free the session. No stage may run any more."""
        self.runner.close()

    def _name(self, stage: str) -> str:
        return stage_name(self.plan.name, self.plan.version, stage)

    def _sequences(
        self, servable: ShardedServable, device: BatchDevice
    ) -> Iterator[tuple[str, HostedStage]]:
        for name in self.group.sequences:
            plan = plan_sequence(name, self.plan.stages.sequences[name], servable.signatures)
            stepped = SteppedSequence(plan, servable, servable, self.runner.threads, device)
            yield stage_of_sequence(name), HostedSequence(stepped)

    def _regions(self, servable: ShardedServable) -> Iterator[tuple[str, HostedStage]]:
        for name in _callers_first(self.cut):
            if name in self.group.regions:
                yield name, cast(HostedStage, servable.region(name))

    def _stepped(self, device: BatchDevice) -> Iterator[tuple[str, HostedStage]]:
        for entry, loop in self.loops:
            parameters = entry.batching.parameters()
            yield stage_of_loop(loop.node), LoopRunner(loop, self.runner, parameters, device)


def host_of(*loaded: tuple[LoadedStages, Sequence[ShardChannel]]) -> StageHost:
    """All these models' stages on one device; as many batches are in flight as keep it busy.

    Call it on the event loop that they are to run on. Each comes with the channels to its shards.
    """
    device = BatchDevice(None)
    served = [(one, one.servable(device, channels)) for one, channels in loaded]
    stages: dict[str, HostedStage] = {}
    for one, servable in served:
        stages |= one.hosted(servable, device)

    def inside() -> dict[str, StageCounts]:
        found: dict[str, StageCounts] = {}
        for one, servable in served:
            found |= one.inside(servable)
        return found

    def close() -> None:
        for one, _ in loaded:
            one.close()

    return StageHost(stages, close, inside)


def load_stages(
    plan: ModelPlan, group: StageGroup, threads: StageThreads, parallelism: Parallelism
) -> LoadedStages:
    """Load a plan's model as far as the group's stages need it, straight from the checkpoint.

    Blocks while TensorFlow loads. Raises a `ServingError` that names the file, the table or the
    region when the model does not match the plan.
    """
    rule = CutRule(only=frozenset(plan.layout.tables))
    cut = cut_saved_model(Path(plan.directory), rule, plan.tags, plan.stages.regions)
    cut = cut.stepping(plan.stages.loops)
    needed = only(cut, _parts(plan, group))
    runner = TensorFlowRunner(threads, graph_of(needed), parallelism)
    initialise(runner, needed)
    loops = tuple(
        (plan.stages.loops[signature], loop)
        for signature, loop in cut.stepped_loops()
        if loop.node in group.loops
    )
    return LoadedStages(plan, group, needed, runner, loops)


def _parts(plan: ModelPlan, group: StageGroup) -> Parts:
    sequences = [plan.stages.sequences[name] for name in group.sequences]
    return Parts(
        regions=frozenset(group.regions),
        signatures=frozenset(name for one in sequences for name in one.signatures.values()),
        loops=frozenset(group.loops),
    )


def _callers_first(cut: CutModel) -> list[str]:
    called = {
        name: [call.region for r in one.program.rounds for call in r.regions]
        for name, one in cut.regions.items()
    }
    return list(TopologicalSorter(called).static_order())[::-1]
