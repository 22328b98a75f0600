"""One version in a router of the Ray engine: its channels, and the servable over them."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path

from shardserve.cluster.catalog_table import Serving
from shardserve.cluster.loading import load_servable
from shardserve.cluster.routing import Routing
from shardserve.cluster.serving import Runtime
from shardserve.router.remote_stage import remote_stages
from shardserve.router.servable import Servable
from shardserve.shards.model import ModelPlan

#: The plan of a deployment, once for each that is loaded.
PlanOf = Callable[[str], Awaitable[ModelPlan]]


class PlannedVersion:
    """Implements `RouterVersion`."""

    servable: Servable

    def __init__(self, serving: Serving, plan_of: PlanOf, secret: bytes, runtime: Runtime) -> None:
        self._serving = serving
        self._plan_of = plan_of
        self._secret = secret
        self._runtime = runtime
        self._routing: Routing | None = None

    async def load(self) -> None:
        """See `RouterVersion.load`."""
        plan = await self._plan_of(self._serving.deployment)
        routing = self._routing = Routing(plan, self._serving.routing, self._secret)
        remote = remote_stages(plan, routing.stages)
        loop = asyncio.get_running_loop()
        self.servable = await self._runtime.on_loader(
            lambda: load_servable(plan, routing.channels, self._runtime, remote),
            lambda made: asyncio.run_coroutine_threadsafe(made.close(), loop),
        )
        await routing.connected()
        await self._runtime.warm_up_version(self.servable, Path(plan.directory))

    def follow(self, serving: Serving) -> None:
        """See `RouterVersion.follow`."""
        self._serving = serving
        if self._routing is not None:
            self._routing.apply(serving.routing)

    async def connected(self) -> None:
        """See `RouterVersion.connected`."""
        if self._routing is not None:
            await self._routing.connected()

    async def close(self) -> None:
        """See `RouterVersion.close`."""
        if hasattr(self, "servable"):
            await self.servable.close()
        if self._routing is not None:
            await self._routing.close()
