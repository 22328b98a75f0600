"""The stages that one process runs for routers, all on one device."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Protocol

from shardserve.batching.errors import NotFound
from shardserve.batching.stage import StageCounts
from shardserve.router.servable import RequestContext
from shardserve.router.stage_figures import count_measures
from shardserve.router.stage_runner import StageRunner
from shardserve.shards.measures import Measure
from shardserve.shards.stage_messages import StageReply, StageRequest


class HostedStage(StageRunner, Protocol):
    """A stage with a queue, or a running batch, in this process."""

    def counts(self) -> StageCounts:
        """What it has done."""
        ...

    async def drain(self) -> None:
        """Accept no more; return when all that was accepted has ended."""
        ...


class StageHost:
    """Runs stages for whoever asks, of any model and version. Implements `StageExecutor`.

    `stages` are by the names that requests have for them, those that call others before these.
    `close` lets go of what they run on. `inside` tells what those stages have done that are run
    for these.
    """

    def __init__(
        self,
        stages: Mapping[str, HostedStage],
        close: Callable[[], None] = lambda: None,
        inside: Callable[[], Mapping[str, StageCounts]] = dict,
    ) -> None:
        self.stages = stages
        self.close = close
        self._inside = inside

    async def run(self, request: StageRequest, arrived: float, deadline: float) -> StageReply:
        """See `StageExecutor.run`. Raises NotFound for a stage that is not here."""
        stage = self.stages.get(request.stage)
        if stage is None:
            known = ", ".join(sorted(self.stages))
            raise NotFound(f"there is no stage {request.stage!r} here, only {known or 'none'}")
        context = RequestContext(request.stage, deadline)
        outputs = await stage.run(request.tensors, request.rows, context)
        queued = context.seconds.get("queue", 0.0)
        return StageReply(tuple(outputs), queued, max(0.0, time.monotonic() - arrived - queued))

    def counts(self) -> dict[str, StageCounts]:
        """What each stage has done, by name."""
        return {**self._inside(), **{name: one.counts() for name, one in self.stages.items()}}

    def measures(self) -> list[Measure]:
        """The same for a page, by the `stage`'s name."""
        return [
            measure.labelled(stage=name)
            for name, counts in self.counts().items()
            for measure in count_measures(counts)
        ]

    async def drain(self) -> None:
        """See `StageExecutor.drain`."""
        for stage in self.stages.values():
            await stage.drain()
