"""Models with steps as a router serves them, whoever steps: it, or stage actors behind a stream."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from contextlib import AsyncExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import yaml

from shardserve.batching.driver import BatchDevice, StageCounts
from shardserve.cluster.loading import load_servable
from shardserve.cluster.serving import Runtime
from shardserve.router.remote_stage import remote_stages
from shardserve.router.servable import Servable
from shardserve.router.session import Parallelism, StageThreads
from shardserve.router.stage_loading import host_of, load_stages
from shardserve.shards.cut.planning import plan_model
from shardserve.shards.local import LocalChannel
from shardserve.shards.model import ModelPlan, PlanOptions
from shardserve.shards.shard import Shard
from shardserve.shards.stages import BatchingOptions
from tests.shards.stage_plane import channel_to, stages

HERE, ON_ACTORS = "here", "on actors"
PLACES = (HERE, ON_ACTORS)

Entries = Mapping[str, Mapping[str, Any]]


@dataclass(frozen=True)
class Stepped:
    """`counts` are those of the stages that step, by their names within the model.

    `drain` drains whoever steps.
    """

    servable: Servable
    counts: Callable[[], Mapping[str, StageCounts]]
    drain: Callable[[], Awaitable[None]]


class Places:
    """Serves models until `stack` ends, stepping at `place`; stages files lie in `directory`."""

    def __init__(
        self, place: str, threads: StageThreads, directory: Path, stack: AsyncExitStack
    ) -> None:
        self._place = place
        self._threads = threads
        self._file = directory / "stages.yaml"
        self._stack = stack

    async def serve(
        self,
        model: Path,
        options: PlanOptions | None = None,
        *,
        loops: Entries | None = None,
        stepped_here: Entries | None = None,
        as_router: Callable[[ModelPlan], ModelPlan] = lambda plan: plan,
        **sequences: Mapping[str, Any],
    ) -> Stepped:
        """Version 1 of the model "m" in `model`; loops `stepped_here` never have actors.

        The router of one with actors has the plan `as_router`.
        """
        plan = self.plan(model, options, sequences, loops or {}, stepped_here or {})
        count = plan.layout.shards if plan.layout.tables else 0
        shards = [Shard.load(plan.sources, plan.slices_of_shard(n)) for n in range(count)]
        channels = [LocalChannel(shard) for shard in shards]
        runtime = Runtime(self._threads, BatchDevice(2))
        if not plan.stage_groups:
            servable = load_servable(plan, channels, runtime)
            self._stack.push_async_callback(servable.close)
            return Stepped(
                servable, lambda: _without(servable.stage_counts(), "m/"), servable.close
            )
        (group,) = plan.stage_groups
        loaded = load_stages(plan, group, self._threads, Parallelism())
        assert loaded.needs_shards == bool(shards) or not group.sequences
        host = host_of((loaded, channels))
        _, address = await self._stack.enter_async_context(stages(host))
        channel = await self._stack.enter_async_context(channel_to(address))
        plan = as_router(plan)
        remote = remote_stages(plan, {group.name: channel})
        servable = load_servable(plan, channels, runtime, remote)
        self._stack.push_async_callback(servable.close)

        def counts() -> Mapping[str, StageCounts]:
            return _without(host.counts(), "m/1/")

        return Stepped(servable, counts, host.drain)

    def plan(
        self,
        model: Path,
        options: PlanOptions | None,
        sequences: Entries,
        loops: Entries,
        stepped_here: Entries,
    ) -> ModelPlan:
        """With the actors of one group, or without."""
        actors = {} if self._place == HERE else {"actors": {"group": "steps"}}
        said = {
            "sequences": {name: {**entry, **actors} for name, entry in sequences.items()},
            "loops": {**{n: {**one, **actors} for n, one in loops.items()}, **stepped_here},
        }
        self._file.write_text(yaml.safe_dump(said))
        batching = BatchingOptions(stages_file=self._file)
        return plan_model("m", 1, model, replace(options or PlanOptions(), batching=batching))


def _without(counts: Mapping[str, StageCounts], prefix: str) -> Mapping[str, StageCounts]:
    return {name.removeprefix(prefix): one for name, one in counts.items()}
