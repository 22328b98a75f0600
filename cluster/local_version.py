"""One version in the local engine: its shards in this process, and the servable over them."""

from __future__ import annotations

import asyncio
import logging
import os
import threading
from collections.abc import Callable, Mapping
from concurrent.futures import Executor
from dataclasses import replace
from functools import partial

from shardserve.batching.errors import Cancelled
from shardserve.cluster import progress
from shardserve.cluster.configured import Wanted
from shardserve.cluster.lifecycle import CANCELLED
from shardserve.cluster.loading import load_servable
from shardserve.cluster.placement import Seat, seats
from shardserve.cluster.progress import Progress
from shardserve.cluster.serving import Runtime
from shardserve.cluster.stage_placement import AnySeat
from shardserve.cluster.tally import Tally
from shardserve.cluster.version_plan import plan_version
from shardserve.router.servable import Servable
from shardserve.shards.device_loss import DeviceLost, UntilLost
from shardserve.shards.local import LocalChannel
from shardserve.shards.measures import Measure
from shardserve.shards.model import ModelPlan
from shardserve.shards.shard import Shard

logger = logging.getLogger(__name__)

_REPORT_SECONDS = 0.2


class LocalVersion:
    """Loaded once, and closed once. `changed` is called on the event loop when `progress` has.

    A layout's replicas are not made: here they would fail together. The shards are asked on the
    threads of `lookups`.
    """

    servable: Servable

    def __init__(
        self, wanted: Wanted, runtime: Runtime, lookups: Executor, changed: Callable[[], None]
    ) -> None:
        self.wanted = wanted
        self.progress = Progress()
        self.warnings: tuple[str, ...] = ()
        self._runtime = runtime
        self._lookups = lookups
        self._changed = changed
        self._loop = asyncio.get_running_loop()
        self._cancelled = threading.Event()
        self._shards: Mapping[Seat, Shard] = {}

    async def load(self) -> None:
        """Return when requests can be answered. Raises a `ServingError`. See `Deployer.load`."""
        self.servable = await self._runtime.on_loader(
            self._load, self._abandoned, self._cancelled.set
        )
        try:
            await self._runtime.warm_up_version(self.servable, self.wanted.directory)
        except BaseException:
            await self.close()
            raise

    async def close(self) -> None:
        """Free all of it. No request asks it any more."""
        await self.servable.close()
        self._shards = {}

    def measures(self) -> dict[AnySeat, list[Measure]]:
        """What the shards tell of themselves."""
        return {seat: shard.measures() for seat, shard in self._shards.items()}

    def _load(self) -> Servable:
        options = self.wanted.options
        once = replace(options, plan=replace(options.plan, replicas=1))
        cut, plan = plan_version(replace(self.wanted, options=once), self._verified)
        self.warnings = _warnings_of(plan)
        plan = replace(plan, stage_groups=())
        self._note(progress.loading(progress.placing(self.progress, plan, "")))
        self._shards = {seat: self._shard(plan, seat) for seat in seats(plan.layout)}
        channels = [
            LocalChannel(UntilLost(shard, end_process), self._lookups)
            for shard in self._shards.values()
        ]
        self._check()
        servable = load_servable(plan, channels, self._runtime, cut=cut)
        self._note(progress.ready(self.progress))
        return servable

    def _abandoned(self, servable: Servable) -> None:
        asyncio.run_coroutine_threadsafe(servable.close(), self._loop)

    def _shard(self, plan: ModelPlan, seat: Seat) -> Shard:
        tally = Tally(partial(self._came, seat), _REPORT_SECONDS)

        def add(nbytes: int) -> None:
            self._check()
            tally.add(nbytes)

        cache = plan.layout.cache_of_shard(seat.shard)
        return Shard.load(plan.sources, plan.slices_of_shard(seat.shard), add, cache)

    def _came(self, seat: Seat, total: int) -> None:
        self._note(progress.loaded(self.progress, seat, total))

    def _verified(self, nbytes: int, total: int) -> None:
        self._check()
        self._note(progress.verified(self.progress, nbytes, total))

    def _check(self) -> None:
        """End the loading here if it is wanted no more."""
        if self._cancelled.is_set():
            raise Cancelled(CANCELLED)

    def _note(self, now: Progress) -> None:
        self.progress = now
        self._loop.call_soon_threadsafe(self._changed)


def end_process(error: DeviceLost) -> None:
    """End the process: whoever watches over it can start another, which may have a GPU again."""
    logger.critical("%s; the process ends", error.message)
    os._exit(1)


def _warnings_of(plan: ModelPlan) -> tuple[str, ...]:
    """What this engine does otherwise than it was asked to."""
    return tuple(
        f"{kind} {name} runs in this process: it has actors only with --engine=ray"
        for group in plan.stage_groups
        for kind, names in group.by_kind.items()
        for name in names
    )
