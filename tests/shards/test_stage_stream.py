"""Stages over the data plane: each request ends once, by its own reply or its own error."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack

import numpy as np
import pytest

from shardserve.batching.errors import (
    Cancelled,
    DeadlineExceeded,
    FailedPrecondition,
    Internal,
    InvalidArgument,
    ResourceExhausted,
    ServingError,
    Unavailable,
)
from shardserve.shards.frames import Kind, frame
from shardserve.shards.handshake import Credentials
from shardserve.shards.messages import LookupRequest
from shardserve.shards.stage_messages import StageRequest
from shardserve.shards.stage_wire import STAGES
from shardserve.shards.stream import ShardStream, Stream
from tests.shards.plane import CREDENTIALS, in_, raw_router, until
from tests.shards.stage_plane import Doubling, Failing, channel_to, floats, only, stages, strings


async def test_a_reply_has_the_tensors_and_what_the_actor_spent() -> None:
    async with stages(Doubling()) as (_, address), channel_to(address) as channel:
        sent = StageRequest("tower", (np.ones((2, 3), np.int16), strings(b"a", b"")), 2)
        reply = await channel.ask(sent, in_(60.0))

        assert reply.tensors[0].tolist() == [[2, 2, 2], [2, 2, 2]]
        assert reply.tensors[0].dtype == np.int16
        assert reply.tensors[1].tolist() == [b"aa", b""]
        assert (reply.queue_seconds, reply.run_seconds) == (0.25, 0.5)


async def test_replies_find_their_requests_in_any_order() -> None:
    async with stages(Doubling()) as (_, address), channel_to(address) as channel:
        replies = await asyncio.gather(
            *(channel.ask(floats(float(n)), in_(60.0)) for n in range(50))
        )
        assert [only(reply) for reply in replies] == [[2.0 * n] for n in range(50)]


@pytest.mark.parametrize(
    "error",
    [
        InvalidArgument("indices[0] = 7 is not in [0, 3)\n\t [[{{node tower/Gather}}]]"),
        FailedPrecondition("Batched output tensor has 0 dimensions: 'x'"),
        ResourceExhausted("Run() timeout exceeded while waiting in batching queue"),
        DeadlineExceeded("Timed out waiting for notification"),
    ],
    ids=lambda error: type(error).__name__,
)
async def test_a_stages_error_keeps_its_code_and_its_words(error: ServingError) -> None:
    async with stages(Failing(error)) as (_, address), channel_to(address) as channel:
        with pytest.raises(type(error)) as caught:
            await channel.ask(floats(1.0), in_(60.0))
        assert caught.value.message == error.message


async def test_an_actors_own_failure_is_internal_and_tells_nothing() -> None:
    async with stages(Failing(KeyError("secret"))) as (_, address), channel_to(address) as channel:
        with pytest.raises(Internal, match="the stage actor failed, see its log"):
            await channel.ask(floats(1.0), in_(60.0))


async def test_a_stage_that_gives_up_by_itself_ends_the_request_as_cancelled() -> None:
    executor = Failing(asyncio.CancelledError())
    async with stages(executor) as (_, address), channel_to(address) as channel:
        with pytest.raises(Cancelled, match="gave the request up"):
            await channel.ask(floats(1.0), in_(60.0))


async def test_a_full_stage_sends_its_request_to_another_actor() -> None:
    full = Failing(Unavailable("The batch scheduling queue is full"))
    free = Doubling()
    async with AsyncExitStack() as stack:
        addresses = [(await stack.enter_async_context(stages(e)))[1] for e in (full, free)]
        channel = await stack.enter_async_context(channel_to(*addresses))
        for n in range(4):
            assert only(await channel.ask(floats(float(n)), in_(60.0))) == [2.0 * n]
        assert len(free.came) == 4


async def test_a_lost_actor_costs_nothing_while_there_is_another() -> None:
    stuck, free = Doubling(is_open=False), Doubling()
    async with AsyncExitStack() as stack:
        server, first = await stack.enter_async_context(stages(stuck))
        channel = await stack.enter_async_context(channel_to(first))
        asked = asyncio.create_task(channel.ask(floats(3.0), in_(60.0)))
        await until(lambda: stuck.came)
        _, second = await stack.enter_async_context(stages(free))
        channel.update([first, second])
        await until(lambda: sum(stream.is_up for stream in channel._streams) == 2)
        for session in list(server._sessions):
            session.abort()

        assert only(await asked) == [6.0]
        await until(lambda: stuck.withdrawn)
        channel.update([second])


async def test_a_lost_actor_without_another_is_unavailable() -> None:
    stuck = Doubling(is_open=False)
    async with stages(stuck) as (server, address), channel_to(address) as channel:
        asked = asyncio.create_task(channel.ask(floats(3.0), in_(60.0)))
        await until(lambda: stuck.came)
        channel.update([])
        for session in list(server._sessions):
            session.abort()
        with pytest.raises(Unavailable):
            await asked


async def test_a_request_that_nobody_waits_for_is_withdrawn() -> None:
    executor = Doubling(is_open=False)
    async with stages(executor) as (server, address), channel_to(address) as channel:
        asked = asyncio.create_task(channel.ask(floats(1.0), in_(60.0)))
        await until(lambda: executor.came)
        asked.cancel()
        await until(lambda: executor.withdrawn)
        await until(lambda: server.in_flight == 0)


async def test_a_deadline_ends_the_request_on_both_sides() -> None:
    executor = Doubling(is_open=False)
    async with stages(executor) as (_, address), channel_to(address) as channel:
        with pytest.raises(DeadlineExceeded):
            await channel.ask(floats(1.0), in_(0.02))
        executor.opened.set()


async def test_what_was_accepted_is_answered_before_the_end() -> None:
    executor = Doubling(is_open=False)
    async with stages(executor) as (server, address), channel_to(address) as channel:
        asked = [asyncio.create_task(channel.ask(floats(float(n)), in_(60.0))) for n in range(5)]
        await until(lambda: len(executor.came) == 5)
        await server.close(grace_seconds=30.0)
        assert [only(await one) for one in asked] == [[2.0 * n] for n in range(5)]
        assert executor.closed


async def test_requests_under_way_are_bounded_in_number_and_in_bytes() -> None:
    executor = Doubling(is_open=False)
    async with (
        stages(executor, max_jobs=2, max_job_cost=100) as (_, address),
        channel_to(address) as channel,
    ):
        asked = [asyncio.create_task(channel.ask(floats(1.0), in_(60.0))) for _ in range(2)]
        await until(lambda: len(executor.came) == 2)
        with pytest.raises(Unavailable, match="has 2 requests of this router under way"):
            await channel.ask(floats(1.0), in_(60.0))
        with pytest.raises(ResourceExhausted, match="request of 104 bytes, the limit is 100"):
            await channel.ask(floats(*[1.0] * 26), in_(60.0))
        executor.opened.set()
        await asyncio.gather(*asked)


async def test_a_router_of_other_regions_is_refused() -> None:
    async with stages(Doubling()) as (_, address):
        other = Credentials(CREDENTIALS.secret, "another plan")
        with pytest.raises(FailedPrecondition, match="not 'another plan'"):
            await Stream("stage tower", address, other, STAGES).connect()


async def test_a_lookup_has_no_place_at_a_stage_actor() -> None:
    async with stages(Doubling()) as (_, address):
        stream = ShardStream("shard 0", address, CREDENTIALS)
        await stream.connect()
        with pytest.raises(Unavailable):
            await stream.lookup(LookupRequest(()), in_(60.0))
        await stream.close()


@pytest.mark.parametrize(
    "fields", [(), (1.0, "tower", 1, 0, ((9,),), ()), (1.0, "t", 1, 7, (), ())]
)
async def test_a_malformed_request_ends_the_connection(fields: tuple[object, ...]) -> None:
    executor = Doubling()
    async with stages(executor) as (_, address), raw_router(address) as router:
        await asyncio.to_thread(router.send, *frame(Kind.STAGE_REQUEST, 1, fields, [])[0])
        assert await asyncio.to_thread(router.receive) is None
        assert not executor.came
