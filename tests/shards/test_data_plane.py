"""Routers and shards over real sockets: right answers, and every request ends exactly once."""

from __future__ import annotations

import asyncio
import socket
import struct
import threading
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shardserve.batching.errors import (
    DeadlineExceeded,
    FailedPrecondition,
    Internal,
    InvalidArgument,
    ServingError,
    Unauthenticated,
    Unavailable,
)
from shardserve.shards.address import Address
from shardserve.shards.fan_out import fan_out
from shardserve.shards.handshake import Credentials
from shardserve.shards.messages import Array, LookupRequest, Op, Part
from shardserve.shards.replicas import ReplicatedChannel, choose
from shardserve.shards.server import ServerLimits, ShardServer
from shardserve.shards.stream import ShardStream, backoff

SECRET = b"0123456789abcdef0123456789abcdef"
HERE = Credentials(SECRET, "plan/0")
TABLE = np.arange(400, dtype=np.float32).reshape(100, 4)
BAD, DEFECT, BLOCKING = 96, 97, 98


class Rows:
    """Answers gathers from `TABLE`. Some rows are trouble: refused, a defect, or held up."""

    def __init__(self) -> None:
        self.entered = threading.Semaphore(0)
        self.release = threading.Event()
        self.executed = 0

    def execute(self, request: LookupRequest) -> tuple[Array, ...]:
        self.executed += 1
        rows = np.concatenate([part.rows for part in request.parts])
        if BAD in rows:
            raise InvalidArgument("row 96 is bad")
        if DEFECT in rows:
            raise ZeroDivisionError("a defect")
        if BLOCKING in rows:
            self.entered.release()
            self.release.wait(30)
        return tuple(TABLE[part.rows] for part in request.parts)

    def cost(self, request: LookupRequest) -> int:
        # What blocks must not block the loop.
        return 1 << 24 if any(BLOCKING in part.rows for part in request.parts) else 0


def gather(*rows: int) -> LookupRequest:
    return LookupRequest((Part(0, Op.GATHER, np.array(rows, np.int32)),))


def soon(seconds: float = 30.0) -> float:
    return time.monotonic() + seconds


@asynccontextmanager
async def shard(
    directory: Path | None = None, credentials: Credentials = HERE, **limits: float
) -> AsyncIterator[tuple[ShardServer, Rows, Address]]:
    """A server on this loop: a Unix socket in `directory`, or else TCP."""
    rows = Rows()
    server = ShardServer(rows, credentials, ServerLimits(**limits))  # type: ignore[arg-type]
    if directory is None:
        address = await server.listen(host="127.0.0.1")
    else:
        address = await server.listen(unix_path=str(directory / "shard.sock"))
    try:
        yield server, rows, address
    finally:
        rows.release.set()
        await server.close(grace_seconds=5.0)


@asynccontextmanager
async def streaming(
    address: Address, credentials: Credentials = HERE
) -> AsyncIterator[ShardStream]:
    stream = ShardStream("shard 0", address, credentials)
    await stream.connect()
    try:
        yield stream
    finally:
        await stream.close()


@asynccontextmanager
async def channel_to(*addresses: Address) -> AsyncIterator[ReplicatedChannel]:
    channel = ReplicatedChannel("shard 0", addresses, HERE)
    await channel.connected()
    try:
        yield channel
    finally:
        await channel.close()


async def blocked(rows: Rows) -> None:
    """Wait until the executor is inside a blocking request."""
    await asyncio.to_thread(rows.entered.acquire)


# Answers


@pytest.mark.parametrize("transport", ["unix", "tcp"])
async def test_many_requests_at_once_get_each_its_own_answer(tmp_path: Path, transport: str):
    async with (
        shard(tmp_path if transport == "unix" else None) as (_, _, address),
        streaming(address) as stream,
    ):
        asked = [(i % 90, (7 * i) % 90) for i in range(300)]
        replies = await asyncio.gather(*(stream.lookup(gather(*one), soon()) for one in asked))
        for one, reply in zip(asked, replies, strict=True):
            assert reply.results[0].tolist() == TABLE[list(one)].tolist()
        assert stream.in_flight == 0


async def test_a_blocked_request_does_not_hold_up_the_others(tmp_path: Path):
    async with shard(tmp_path) as (_, rows, address), streaming(address) as stream:
        slow = asyncio.ensure_future(stream.lookup(gather(BLOCKING), soon()))
        await blocked(rows)
        reply = await stream.lookup(gather(3), soon())
        assert reply.results[0].tolist() == TABLE[[3]].tolist()
        assert not slow.done()
        rows.release.set()
        assert (await slow).results[0].tolist() == TABLE[[BLOCKING]].tolist()


async def test_an_error_costs_its_own_request_only_and_keeps_code_and_text(tmp_path: Path):
    async with shard(tmp_path) as (_, _, address), streaming(address) as stream:
        with pytest.raises(InvalidArgument, match="row 96 is bad"):
            await stream.lookup(gather(BAD), soon())
        with pytest.raises(Internal) as caught:
            await stream.lookup(gather(DEFECT), soon())
        assert "ZeroDivision" not in caught.value.message
        assert (await stream.lookup(gather(1), soon())).results[0].shape == (1, 4)


# Who may ask


@pytest.mark.parametrize(
    ("stranger", "error"),
    [
        (Credentials(b"x" * 32, "plan/0"), Unauthenticated),
        (Credentials(SECRET, "plan/1"), FailedPrecondition),
    ],
)
async def test_a_router_of_another_secret_or_plan_is_refused(tmp_path: Path, stranger, error):
    async with shard(tmp_path) as (server, rows, address):
        stream = ShardStream("shard 0", address, stranger)
        with pytest.raises(error, match="shard 0"):
            await stream.connect()
        assert rows.executed == 0
        async with streaming(address) as welcome:
            await welcome.lookup(gather(1), soon())
        assert server.in_flight == 0


def test_the_secret_is_not_printed():
    assert "0123456789" not in repr(HERE)


@settings(max_examples=30, deadline=None)
@given(st.binary(min_size=1, max_size=300))
def test_garbage_from_a_stranger_ends_its_own_connection_only(garbage: bytes):
    async def check() -> None:
        async with shard(handshake_seconds=10.0) as (_, rows, address):
            reader, writer = await asyncio.open_connection(address.host, address.port)
            writer.write(garbage)
            writer.write_eof()
            async with asyncio.timeout(10):
                await reader.read()
            writer.close()
            assert rows.executed == 0
            async with streaming(address) as stream:
                await stream.lookup(gather(1), soon())

    asyncio.run(check())


async def test_a_stranger_that_says_nothing_is_hung_up_on():
    async with shard(handshake_seconds=0.05) as (server, _, address):
        with socket.create_connection((address.host, address.port)) as silent:
            silent.settimeout(10)
            assert await asyncio.to_thread(silent.recv, 1) == b""
        assert server.connections == 0


async def test_a_frame_that_claims_to_be_huge_is_refused_before_it_is_read():
    async with shard() as (server, _, address):
        reader, writer = await asyncio.open_connection(address.host, address.port)
        writer.write(b"SHRD" + struct.pack("<IQQ", 1, 1 << 40, 1 << 60) * 2)
        async with asyncio.timeout(10):
            await reader.read()
        writer.close()
        assert server.in_flight == 0


# Deadlines and cancellation


async def test_a_silent_shard_ends_the_request_at_its_deadline(tmp_path: Path):
    async with shard(tmp_path) as (_, rows, address), streaming(address) as stream:
        with pytest.raises(DeadlineExceeded):
            await stream.lookup(gather(BLOCKING), soon(0.05))
        assert stream.in_flight == 0
        rows.release.set()
        assert (await stream.lookup(gather(5), soon())).results[0][0, 0] == 20


async def test_a_request_whose_time_is_up_is_not_started(tmp_path: Path):
    async with shard(tmp_path) as (_, rows, address), streaming(address) as stream:
        with pytest.raises(DeadlineExceeded):
            await stream.lookup(gather(1), soon(-1.0))
        await stream.lookup(gather(1), soon())
        assert rows.executed == 1


async def test_a_cancelled_request_is_forgotten_at_both_ends(tmp_path: Path):
    async with shard(tmp_path) as (server, rows, address), streaming(address) as stream:
        waiting = [asyncio.ensure_future(stream.lookup(gather(BLOCKING), soon())) for _ in range(6)]
        await blocked(rows)
        await blocked(rows)
        for task in waiting:
            task.cancel()
        await asyncio.wait(waiting)
        assert stream.in_flight == 0
        await stream.lookup(gather(1), soon())
        rows.release.set()
        while server.in_flight:  # noqa: ASYNC110 (one loop turn at a time)
            await asyncio.sleep(0)
        # Two were at work on the pool's two threads; the queued ones never started.
        assert rows.executed == 3


async def test_the_first_error_cancels_the_siblings(tmp_path: Path):
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    async with (
        shard(tmp_path / "a") as (_, slow_rows, first),
        shard(tmp_path / "b") as (_, _, second),
        streaming(first) as slow,
        streaming(second) as quick,
    ):
        with pytest.raises(InvalidArgument, match="row 96"):
            await fan_out([(slow, gather(BLOCKING)), (quick, gather(BAD))], soon())
        assert slow.in_flight == quick.in_flight == 0
        slow_rows.release.set()


# Shards that die


async def test_a_shard_that_dies_fails_what_is_in_flight_with_unavailable(tmp_path: Path):
    async with shard(tmp_path) as (server, rows, address), streaming(address) as stream:
        asked = asyncio.ensure_future(stream.lookup(gather(BLOCKING), soon()))
        await blocked(rows)
        closing = asyncio.ensure_future(server.close(grace_seconds=0.0))
        with pytest.raises(Unavailable, match="shard 0"):
            await asked
        rows.release.set()
        await closing
        with pytest.raises(Unavailable, match="shard 0"):
            await stream.lookup(gather(1), soon())


async def test_another_replica_answers_for_one_that_dies(tmp_path: Path):
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    async with (
        shard(tmp_path / "a") as (first, first_rows, a),
        shard(tmp_path / "b") as (second, second_rows, b),
        channel_to(a, b) as channel,
    ):
        while first.connections + second.connections < 2:  # noqa: ASYNC110
            await asyncio.sleep(0)
        asked = [asyncio.ensure_future(channel.lookup(gather(BLOCKING), soon())) for _ in range(2)]
        await blocked(first_rows)
        second_rows.release.set()
        closing = asyncio.ensure_future(first.close(grace_seconds=0.0))
        for reply in await asyncio.gather(*asked):
            assert reply.results[0].tolist() == TABLE[[BLOCKING]].tolist()
        first_rows.release.set()
        await closing
        assert channel.in_flight == 0


async def test_without_a_live_replica_the_request_is_unavailable_within_its_deadline(
    tmp_path: Path,
):
    nowhere = Address(str(tmp_path / "gone.sock"), node="elsewhere")
    channel = ReplicatedChannel("shard 3", [nowhere], HERE, patience_seconds=0.05)
    try:
        with pytest.raises(Unavailable, match="shard 3"):
            await channel.lookup(gather(1), soon())
        assert channel.in_flight == 0
    finally:
        await channel.close()


async def test_a_new_address_is_used_without_disturbing_what_is_in_flight(tmp_path: Path):
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    async with (
        shard(tmp_path / "a") as (_, old_rows, old),
        shard(tmp_path / "b") as (_, new_rows, new),
        channel_to(old) as channel,
    ):
        on_old = asyncio.ensure_future(channel.lookup(gather(BLOCKING), soon()))
        await blocked(old_rows)
        channel.update([new])
        await channel.connected()
        await channel.lookup(gather(1), soon())
        assert (old_rows.executed, new_rows.executed) == (1, 1)
        old_rows.release.set()
        assert (await on_old).results[0].tolist() == TABLE[[BLOCKING]].tolist()


# Decisions


@given(st.lists(st.none() | st.integers(0, 9), max_size=6), st.integers(0, 20))
def test_the_least_busy_replica_that_is_up_is_chosen(loads, turn):
    place = choose(loads, turn)
    up = [load for load in loads if load is not None]
    assert (place is None) == (not up)
    assert place is None or loads[place] == min(up)


def test_equally_busy_replicas_take_turns():
    assert [choose([1, 1, 1], turn) for turn in range(4)] == [0, 1, 2, 0]


@given(st.integers(1, 40), st.floats(0, 1, exclude_max=True))
def test_pauses_between_attempts_grow_to_a_bound(failures, chance):
    assert 0.01 <= backoff(failures, chance) <= 2.0
    assert backoff(failures + 1, chance) >= backoff(failures, chance)


# Every request ends exactly once


@settings(max_examples=25, deadline=None)
@given(
    st.lists(
        st.tuples(st.sampled_from(["answer", "bad", "defect", "late", "block"]), st.booleans()),
        min_size=1,
        max_size=25,
    ),
    st.booleans(),
)
def test_under_random_programs_every_request_ends_exactly_once(program, kill):
    async def check() -> None:
        async with shard() as (server, rows, address), streaming(address) as stream:
            ended: list[object] = []
            tasks = []
            for what, cancelled in program:
                row = {"bad": BAD, "defect": DEFECT, "block": BLOCKING}.get(what, 1)
                deadline = soon(-1.0 if what == "late" else 30.0)
                task = asyncio.ensure_future(stream.lookup(gather(row), deadline))
                task.add_done_callback(ended.append)
                tasks.append(task)
                if cancelled:
                    await asyncio.sleep(0)
                    task.cancel()
            rows.release.set()
            if kill:
                await server.close(grace_seconds=0.0)
            outcomes = await asyncio.gather(*tasks, return_exceptions=True)
            assert len(ended) == len(tasks)
            assert stream.in_flight == 0
            for (what, cancelled), outcome in zip(program, outcomes, strict=True):
                if isinstance(outcome, asyncio.CancelledError):
                    assert cancelled
                elif isinstance(outcome, BaseException):
                    assert isinstance(outcome, ServingError)
                    assert kill or what in ("bad", "defect", "late")
                else:
                    assert what in ("answer", "block")

    asyncio.run(check())
