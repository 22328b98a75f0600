"""Runs of models on the tests' Ray."""

from __future__ import annotations

import asyncio
import os
import secrets
import signal
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import RayError

from shardserve.cluster.catalog_table import CatalogTable, Serving
from shardserve.cluster.controller import Controller
from shardserve.cluster.fleet import Placed
from shardserve.cluster.model_config import ModelConfig, Specific
from shardserve.cluster.model_options import ModelOptions
from shardserve.cluster.options import ManagerOptions, Models
from shardserve.cluster.private_directory import remove_sockets
from shardserve.cluster.progress import Start
from shardserve.cluster.run import Run
from shardserve.cluster.site import Site
from shardserve.cluster.stage_placement import AnySeat
from shardserve.cluster.stream_actor import ActorProcess, Post
from shardserve.cluster.table import RoutingTable
from shardserve.cluster.versions import VersionId
from shardserve.shards.cut.planning import plan_model
from shardserve.shards.model import ModelPlan, PlanOptions

SECRET = bytes(range(32))
#: So that a test that hangs says where.
LONGEST_SECONDS = 60.0
_RETRY_SECONDS = 0.2
POLLING = ManagerOptions(poll_seconds=0.2)
ONLY = VersionId("model", 1)


@dataclass(frozen=True)
class ServerRun:
    """A controller, and what tests do to it and ask of it."""

    name: str
    controller: Any

    async def finished_start(self) -> Start:
        """How the start ended: settled or failed. Its last progress of each version is there."""
        start = Start(-1)
        while not (start.is_settled or start.failure is not None):
            start = await self.controller.wait_for_start.remote(start.number)
        return start

    async def catalog(self, known: int = -1) -> CatalogTable:
        table: CatalogTable = await self.controller.wait_for_table.remote(known)
        return table

    async def catalog_after(self, before: Mapping[VersionId, Serving]) -> CatalogTable:
        """The first table of a controller that Ray made anew, with deployments of its own."""
        old = {serving.deployment for serving in before.values()}
        while True:
            with suppress(RayError):
                table = await self.catalog()
                if old.isdisjoint(one.deployment for one in table.servings().values()):
                    return table
            await asyncio.sleep(_RETRY_SECONDS)

    async def kill_controller(self) -> None:
        os.kill(await self.controller.pid.remote(), signal.SIGKILL)


@dataclass(frozen=True)
class ModelRun(ServerRun):
    """Of one version of one model."""

    async def serving(self) -> Serving:
        """Where it is served, once it is."""
        table = await self.catalog()
        while ONLY not in table.servings():
            table = await self.catalog(table.number)
        return table.servings()[ONLY]

    async def plan(self) -> ModelPlan:
        plan: ModelPlan = await self.controller.plan.remote((await self.serving()).deployment)
        return plan

    async def table(self, known: int = -1) -> RoutingTable:
        """The table after that of the number `known`, through deaths of the controller."""
        number = -1
        while True:
            try:
                table = await self.catalog(number)
            except RayError:
                await asyncio.sleep(_RETRY_SECONDS)
                continue
            number = table.number
            serving = table.servings().get(ONLY)
            if serving is not None and serving.routing.number != known:
                return serving.routing

    async def process_of(self, seat: AnySeat) -> ActorProcess:
        process: ActorProcess = await self.controller.process_of.remote(ONLY, seat)
        return process

    async def kill(self, seat: AnySeat) -> None:
        """As the kernel does it when memory is short."""
        os.kill((await self.process_of(seat)).pid, signal.SIGKILL)

    async def placed_again(self, before: RoutingTable) -> RoutingTable:
        """The first complete table of the controller that Ray made anew."""
        table = before
        while not table.is_complete or set(table.addresses) & set(before.addresses):
            table = await self.table(table.number)
        return table

    async def table_in_which(self, seat: AnySeat, instance: str) -> RoutingTable:
        """The first table in which another instance than the given one has the seat."""
        table = await self.table()
        while not _has_other(table, seat, instance):
            table = await self.table(table.number)
        return table


async def placed(directory: Path, options: PlanOptions) -> Placed:
    """What a run would have of its model; where that is something, it must be released."""
    plan = await asyncio.to_thread(plan_model, "model", 1, directory, options)
    site = Site(f"test-{secrets.token_hex(4)}", SECRET, can_grow=False, routers=0)
    return await site.place(plan, Post(site.run, "deployment"), lambda _: None)


def _has_other(table: RoutingTable, seat: AnySeat, instance: str) -> bool:
    address = table.at(seat)
    return address is not None and address.instance != instance


@asynccontextmanager
async def running(
    directory: Path, options: PlanOptions, seconds: float | None = LONGEST_SECONDS
) -> AsyncIterator[ModelRun]:
    """A run of the model whose version 1 lies in `directory`, that ends with the block."""
    config = ModelConfig("model", directory.parent, policy=Specific(frozenset({1})))
    async with serving(Models((config,)), ModelOptions(options), seconds) as run:
        yield ModelRun(run.name, run.controller)


@asynccontextmanager
async def serving(
    models: Models,
    defaults: ModelOptions,
    seconds: float | None = LONGEST_SECONDS,
    manager: ManagerOptions = POLLING,
) -> AsyncIterator[ServerRun]:
    """A run of a server, that ends with the block."""
    name = f"test-{secrets.token_hex(4)}"
    run = Run(name, models, can_grow=False, defaults=defaults, manager=manager)
    actor = ray.remote(Controller).options(name=name, num_cpus=0, max_restarts=-1)
    controller = actor.remote(run, SECRET)
    try:
        async with asyncio.timeout(seconds):
            yield ServerRun(name, controller)
    finally:
        await controller.end.remote()
        ray.kill(controller)
        remove_sockets(name)
