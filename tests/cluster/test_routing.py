from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack, asynccontextmanager, contextmanager, suppress
from dataclasses import replace

import numpy as np
import pytest
from ray.exceptions import ActorUnavailableError

from shardserve.batching.errors import Unavailable
from shardserve.cluster.credentials import shard_credentials, stage_credentials
from shardserve.cluster.placement import Seat
from shardserve.cluster.routing import Routing
from shardserve.cluster.stage_placement import StageSeat
from shardserve.cluster.table import RoutingTable, empty_table, lost, registered
from shardserve.shards.address import Address
from shardserve.shards.layout import Layout, even_bounds, row_range
from shardserve.shards.messages import Array, LookupRequest, Op, Part
from shardserve.shards.model import ModelPlan
from shardserve.shards.server import StreamServer, serve_in_thread
from shardserve.shards.stage_groups import StageGroup
from shardserve.shards.stage_work import StageService
from shardserve.shards.tables import Table, TableSource
from tests.shards.stage_plane import Doubling, floats, only

SECRET = bytes(range(32))
USERS = Table("users", "float32", 100, (1,))
PLAN = ModelPlan(
    "model",
    1,
    "/models/model/1",
    ("serve",),
    Layout(2, 1, {"users": row_range(USERS, even_bounds(100, range(2)))}),
    {"users": TableSource(USERS, ())},
    "digest",
)


CLEAN = StageGroup("clean", ("clean",), 1, 1.0, 0.0, 0, "clean's")
TOWER = StageGroup("tower", ("tower",), 1, 1.0, 0.0, 0, "tower's")
STAGED = replace(PLAN, stage_groups=(CLEAN, TOWER))


class Answers:
    """Answers every part with one number, by which to tell who answered."""

    def __init__(self, number: float) -> None:
        self._number = number

    def execute(self, request: LookupRequest) -> tuple[Array, ...]:
        return tuple(np.full((1, 1), self._number, np.float32) for _ in request.parts)

    def cost(self, request: LookupRequest) -> int:
        return len(request.parts)


@contextmanager
def shard(number: int, answer: float) -> Iterator[Address]:
    """A shard of `PLAN` that listens on a free port."""
    credentials = shard_credentials(SECRET, PLAN, number)
    server = serve_in_thread(Answers(answer), credentials, host="127.0.0.1")
    try:
        yield server.address
    finally:
        server.close()


@asynccontextmanager
async def stage(group: StageGroup) -> AsyncIterator[Address]:
    """A stage actor's server of a group, on this loop."""
    server = StreamServer(StageService(Doubling()), stage_credentials(SECRET, group))
    try:
        yield await server.listen(host="127.0.0.1")
    finally:
        await server.close()


@asynccontextmanager
async def routing(table: RoutingTable, plan: ModelPlan = PLAN) -> AsyncIterator[Routing]:
    made = Routing(plan, table, SECRET)
    try:
        yield made
    finally:
        await made.close()


async def ask(made: Routing, number: int) -> float:
    request = LookupRequest((Part(0, Op.GATHER, np.zeros(1, np.int64)),))
    reply = await made.channels[number].lookup(request, time.monotonic() + 10.0)
    return float(reply.results[0][0, 0])


async def test_each_channel_reaches_its_own_shard() -> None:
    table = empty_table(PLAN, 1)
    with shard(0, 10.0) as zero, shard(1, 11.0) as one:
        table = registered(registered(table, Seat(0, 0), zero), Seat(1, 0), one)
        async with routing(table) as made:
            await made.connected()

            assert [await ask(made, 0), await ask(made, 1)] == [10.0, 11.0]


async def test_each_stage_channel_reaches_the_actors_of_its_group() -> None:
    table = empty_table(STAGED, 1)
    async with stage(TOWER) as tower, stage(CLEAN) as clean:
        table = registered(table, StageSeat("tower", 0), tower)
        table = registered(table, StageSeat("clean", 0), clean)
        async with routing(table, STAGED) as made:
            await asyncio.wait_for(made.stages["tower"].connected(), 10.0)
            await asyncio.wait_for(made.stages["clean"].connected(), 10.0)
            reply = await made.stages["tower"].ask(floats(1.0, 2.0), time.monotonic() + 10.0)

            assert only(reply) == [2.0, 4.0]


async def test_a_stage_actor_of_another_group_is_not_taken() -> None:
    async with stage(CLEAN) as clean:
        table = registered(empty_table(STAGED, 1), StageSeat("tower", 0), clean)
        async with routing(table, STAGED) as made:
            with pytest.raises(Unavailable, match="refused by the server: this server serves"):
                await made.stages["tower"].ask(floats(1.0), time.monotonic() + 10.0)


async def test_a_shard_that_came_back_elsewhere_is_found_from_the_next_table() -> None:
    tables: asyncio.Queue[RoutingTable] = asyncio.Queue()
    with ExitStack() as stack:
        old = stack.enter_context(shard(0, 1.0))
        table = registered(empty_table(PLAN, 1), Seat(0, 0), old)
        async with routing(table) as made:
            following = asyncio.ensure_future(made.follow(lambda _: tables.get()))
            assert await ask(made, 0) == 1.0

            stack.close()
            new = stack.enter_context(shard(0, 2.0))
            await tables.put(registered(lost(table, Seat(0, 0), old.instance), Seat(0, 0), new))

            assert await answer_from(made) == 2.0
            await stop(following)


async def answer_from(made: Routing) -> float:
    """The first answer there is; until then the shard may only be unavailable."""
    while True:
        with suppress(Unavailable):
            return await ask(made, 0)


async def test_a_router_asks_for_what_comes_after_the_table_it_has() -> None:
    asked: asyncio.Queue[int] = asyncio.Queue()
    table = empty_table(PLAN, 7)

    async def next_table(known: int) -> RoutingTable:
        await asked.put(known)
        if asked.qsize() < 3:
            return replace(table, number=known + 1)
        return await asyncio.Future()

    async with routing(table) as made:
        following = asyncio.ensure_future(made.follow(next_table))
        assert [await asked.get() for _ in range(3)] == [7, 8, 9]
        assert made.table.number == 9
        await stop(following)


async def test_without_a_controller_the_table_is_kept_and_the_controller_asked_again() -> None:
    pauses: asyncio.Queue[float] = asyncio.Queue()
    table = empty_table(PLAN, 7)

    async def next_table(_known: int) -> RoutingTable:
        raise ActorUnavailableError("restarting", b"0" * 16)

    async def pause(seconds: float) -> None:
        await pauses.put(seconds)
        await asyncio.sleep(0)

    async with routing(table) as made:
        following = asyncio.ensure_future(made.follow(next_table, pause))
        assert all([await pauses.get() > 0.0 for _ in range(3)])
        assert made.table is table
        await stop(following)


async def stop(task: asyncio.Task[None]) -> None:
    task.cancel()
    with suppress(asyncio.CancelledError):
        await task
