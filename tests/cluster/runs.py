"""Runs of a model on the tests' Ray."""

from __future__ import annotations

import asyncio
import os
import secrets
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import RayError

from shardserve.cluster.controller import Controller, Run
from shardserve.cluster.planning import Wanted
from shardserve.cluster.private_directory import remove_sockets
from shardserve.cluster.progress import Phase, Progress
from shardserve.cluster.stage_placement import AnySeat
from shardserve.cluster.stream_actor import ActorProcess
from shardserve.cluster.table import RoutingTable
from shardserve.shards.model import PlanOptions

SECRET = bytes(range(32))
#: So that a test that hangs says where.
LONGEST_SECONDS = 60.0


@dataclass(frozen=True)
class ModelRun:
    """A controller, and what tests do to it and ask of it."""

    name: str
    controller: Any

    async def finished_start(self) -> Progress:
        """How the start ended: READY or FAILED."""
        progress = Progress(-1)
        while progress.phase not in (Phase.READY, Phase.FAILED):
            progress = await self.controller.wait_for_progress.remote(progress.number)
        return progress

    async def table(self, known: int = -1) -> RoutingTable:
        table: RoutingTable = await self.controller.wait_for_table.remote(known)
        return table

    async def process_of(self, seat: AnySeat) -> ActorProcess:
        process: ActorProcess = await self.controller.process_of.remote(seat)
        return process

    async def kill(self, seat: AnySeat) -> None:
        """As the kernel does it when memory is short."""
        os.kill((await self.process_of(seat)).pid, signal.SIGKILL)

    async def kill_controller(self) -> None:
        os.kill(await self.controller.pid.remote(), signal.SIGKILL)

    async def placed_again(self, before: RoutingTable) -> RoutingTable:
        """The first complete table of the controller that Ray made anew."""
        table = before
        while not table.is_complete or set(table.addresses) & set(before.addresses):
            with suppress(RayError):
                table = await self.table(table.number)
        return table

    async def table_in_which(self, seat: AnySeat, instance: str) -> RoutingTable:
        """The first table in which another instance than the given one has the seat."""
        table = await self.table()
        while not _has_other(table, seat, instance):
            table = await self.table(table.number)
        return table


def _has_other(table: RoutingTable, seat: AnySeat, instance: str) -> bool:
    address = table.at(seat)
    return address is not None and address.instance != instance


@asynccontextmanager
async def running(
    directory: Path, options: PlanOptions, seconds: float = LONGEST_SECONDS
) -> AsyncIterator[ModelRun]:
    """A run of the model in a version directory, that ends with the block."""
    name = f"test-{secrets.token_hex(4)}"
    run = Run(name, Wanted("model", 1, directory, options), can_grow=False)
    actor = ray.remote(Controller).options(name=name, num_cpus=0, max_restarts=-1)
    controller = actor.remote(run, SECRET)
    try:
        async with asyncio.timeout(seconds):
            yield ModelRun(name, controller)
    finally:
        await controller.end.remote()
        ray.kill(controller)
        remove_sockets(name)
