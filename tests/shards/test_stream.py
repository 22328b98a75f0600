"""One stream to one shard: where it connects, how long it waits, and what a loss costs."""

from __future__ import annotations

import asyncio
import inspect
import socket
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from contextlib import asynccontextmanager
from pathlib import Path

import numpy as np
import pytest
import uvloop

from shardserve.batching.errors import (
    DeadlineExceeded,
    InvalidArgument,
    ResourceExhausted,
    Unavailable,
)
from shardserve.shards.address import Address, this_node
from shardserve.shards.handshake import Credentials
from shardserve.shards.keepalive import Beat, Keepalive
from shardserve.shards.link import LinkLimits
from shardserve.shards.messages import LookupRequest, Op, Part
from shardserve.shards.stream import ShardStream
from tests.shards.plane import (
    CREDENTIALS,
    LARGE,
    TABLE,
    Gate,
    Outcomes,
    gather,
    in_,
    serving,
    until,
)


async def no_pause(_seconds: float) -> None:
    await asyncio.sleep(0)


@asynccontextmanager
async def streaming(
    address: Address, credentials: Credentials = CREDENTIALS, **limits: float
) -> AsyncIterator[ShardStream]:
    settings = LinkLimits(**limits)  # type: ignore[arg-type]
    stream = ShardStream("shard 0", address, credentials, settings, pause=no_pause)
    await stream.connect()
    try:
        yield stream
        assert stream.in_flight == 0
    finally:
        await stream.close()


@asynccontextmanager
async def stranger(serve: Callable[[socket.socket], None]) -> AsyncIterator[Address]:
    """Something else that listens: each connection is handed to `serve`, on a thread."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        connections: list[socket.socket] = []

        def accept() -> None:
            connection, _ = listener.accept()
            connections.append(connection)
            serve(connection)

        accepting = asyncio.create_task(asyncio.to_thread(accept))
        yield Address(host="127.0.0.1", port=listener.getsockname()[1])
        await accepting
        for connection in connections:
            connection.close()


# Where


async def test_the_unix_socket_is_preferred_where_it_is_here(tmp_path: Path) -> None:
    path = tmp_path / "shard.sock"
    async with serving(Gate(), path) as (_, address):
        here = Address(str(path), "127.0.0.1", 1, node=address.node)
        async with streaming(here) as stream:
            await stream.lookup(gather(1), in_(60.0))


@pytest.mark.parametrize(("node", "name"), [("another", "shard.sock"), (this_node(), "gone.sock")])
async def test_tcp_serves_where_the_unix_socket_is_not_here(
    tmp_path: Path, node: str, name: str
) -> None:
    async with serving(Gate()) as (_, address):
        both = Address(str(tmp_path / name), address.host, address.port, node)
        async with streaming(both) as stream:
            reply = await stream.lookup(gather(5), in_(60.0))
            np.testing.assert_array_equal(reply.results[0], TABLE[[5]])


async def test_an_address_without_a_way_there_is_unavailable(tmp_path: Path) -> None:
    nowhere = Address(str(tmp_path / "shard.sock"), node="another")
    with pytest.raises(Unavailable, match="cannot be reached from this node"):
        await ShardStream("shard 0", nowhere, CREDENTIALS).connect()


async def test_a_place_where_nobody_listens_is_unavailable() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    with pytest.raises(Unavailable, match=f"shard 0 at 127.0.0.1:{port}"):
        await ShardStream("shard 0", Address(host="127.0.0.1", port=port), CREDENTIALS).connect()


# Strangers


@pytest.mark.parametrize("said", [b"HTTP/1.1 400 Bad Request\r\n\r\nsorry, what?", b"", bytes(64)])
async def test_something_else_that_listens_there_is_no_shard(said: bytes) -> None:
    def serve(connection: socket.socket) -> None:
        connection.sendall(said)
        connection.shutdown(socket.SHUT_WR)

    async with stranger(serve) as address:
        with pytest.raises((Unavailable, InvalidArgument), match="shard 0 at"):
            await ShardStream("shard 0", address, CREDENTIALS).connect()


async def test_a_shard_that_says_nothing_is_given_up() -> None:
    async with stranger(lambda _: None) as address:
        stream = ShardStream("shard 0", address, CREDENTIALS, LinkLimits(connect_seconds=0.02))
        with pytest.raises(Unavailable, match=r"no connection and handshake in 0\.02 s"):
            await stream.connect()


async def test_a_shard_that_falls_silent_loses_its_calls_not_their_deadlines() -> None:
    async with (
        serving(Gate()) as (server, address),
        streaming(address, keepalive_seconds=0.01) as stream,
    ):
        (session,) = server._sessions
        session._transport.pause_reading()
        with pytest.raises(Unavailable, match="the server fell silent"):
            await stream.lookup(gather(1), in_(60.0))


def test_silence_is_answered_with_a_ping_and_then_with_giving_up() -> None:
    keepalive = Keepalive()
    assert [keepalive.beat(0, late=False) for _ in range(2)] == [Beat.PING, Beat.GIVE_UP]
    keepalive = Keepalive()
    beats = []
    for heard in (True, False, True, False, False):
        keepalive.heard = heard
        beats.append(keepalive.beat(0, late=False))
    assert beats == [Beat.REST, Beat.PING, Beat.REST, Beat.PING, Beat.GIVE_UP]


def test_a_peer_that_takes_what_we_send_is_alive() -> None:
    keepalive = Keepalive()
    beats = [keepalive.beat(unsent, late=False) for unsent in (900, 800, 700, 700, 700)]
    assert beats == [Beat.PING, Beat.REST, Beat.REST, Beat.PING, Beat.GIVE_UP]


def test_an_interval_that_we_slept_through_says_nothing() -> None:
    keepalive = Keepalive()
    beats = [keepalive.beat(0, late=late) for late in (True, False, True, True, False)]
    assert beats == [Beat.REST, Beat.PING, Beat.REST, Beat.REST, Beat.GIVE_UP]


# Bounds


async def test_a_request_longer_than_the_shard_accepts_fails_alone() -> None:
    async with serving(Gate(), max_frame=4096) as (_, address), streaming(address) as stream:
        rows = np.zeros(4096, np.int64)
        with pytest.raises(ResourceExhausted, match=r"shard 0: request of .* the limit is 4096"):
            await stream.lookup(LookupRequest((Part(0, Op.GATHER, rows),)), in_(60.0))
        await stream.lookup(gather(1), in_(60.0))


async def test_an_array_the_wire_does_not_carry_fails_alone() -> None:
    async with serving(Gate()) as (_, address), streaming(address) as stream:
        with pytest.raises(InvalidArgument, match="no array of complex256"):
            await stream.lookup(
                LookupRequest((Part(0, Op.GATHER, np.zeros(1, np.clongdouble)),)), in_(60.0)
            )
        await stream.lookup(gather(1), in_(60.0))


async def test_more_requests_than_may_be_in_flight_are_unavailable() -> None:
    gate = Gate(LARGE, is_open=False)
    async with serving(gate) as (_, address), streaming(address, max_in_flight=2) as stream:
        tasks = [asyncio.create_task(stream.lookup(gather(n), in_(60.0))) for n in range(2)]
        await until(lambda: stream.in_flight == 2)
        with pytest.raises(Unavailable, match="2 requests are in flight already"):
            await stream.lookup(gather(1), in_(60.0))
        gate.opened.set()
        await asyncio.gather(*tasks)


async def test_a_shard_that_does_not_read_is_sent_no_more_than_is_bounded() -> None:
    async with serving(Gate()) as (server, address), streaming(address, max_unsent=1) as stream:
        (session,) = server._sessions
        session._transport.pause_reading()
        request = LookupRequest((Part(0, Op.GATHER, np.zeros(1 << 17, np.int64)),))
        sink = Outcomes()
        while not sink.ended:
            stream.submit(request, in_(60.0), sink, 0)
            await asyncio.sleep(0)
            assert stream.in_flight < 100
        ((refused,),) = sink.ended.values()
        assert isinstance(refused, Unavailable)
        assert "does not read" in refused.message
        session._transport.resume_reading()
        await until(lambda: stream.in_flight == 0)


# Deadlines


async def test_many_deadlines_pass_one_by_one_with_one_timer() -> None:
    gate = Gate(LARGE, is_open=False)
    async with serving(gate) as (_, address), streaming(address) as stream:
        sink = Outcomes()
        started = time.monotonic()
        for tag, seconds in enumerate((0.03, 0.01, 60.0, 0.02)):
            stream.submit(gather(tag), started + seconds, sink, tag)
        await until(lambda: len(sink.ended) == 3)
        assert time.monotonic() - started >= 0.03
        assert sorted(sink.ended) == [0, 1, 3]
        assert all(isinstance(one, DeadlineExceeded) for (one,) in sink.ended.values())
        gate.opened.set()
        await until(lambda: 2 in sink.ended)


async def test_a_late_reply_is_dropped() -> None:
    gate = Gate(LARGE, is_open=False)
    async with serving(gate, threads=2) as (server, address), streaming(address) as stream:
        sink = Outcomes()
        call = stream.submit(gather(1), in_(60.0), sink, 1)
        await gate.has_entered()
        assert stream.link is not None
        call.deadline = time.monotonic()
        stream.link._ring()
        (error,) = sink.ended[1]
        assert isinstance(error, DeadlineExceeded)
        gate.opened.set()
        await until(lambda: server.in_flight == 0)
        await stream.lookup(gather(2), in_(60.0))
        assert sink.ended[1] == [error]


async def test_a_deadline_of_infinity_never_passes() -> None:
    async with serving(Gate()) as (_, address), streaming(address) as stream:
        await stream.lookup(gather(1), float("inf"))


# Cancellation


async def turns_of(work: Awaitable[object], turns: int) -> bool:
    """Cancel `work` after so many turns of the loop; whether it had ended by itself."""
    task = asyncio.ensure_future(work)
    for _ in range(turns):
        await asyncio.sleep(0)
    if task.done():
        await task
        return True
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    return False


async def test_a_lookup_can_be_cancelled_at_every_await() -> None:
    async with serving(Gate()) as (server, address), streaming(address) as stream:
        turns = 0
        while not await turns_of(stream.lookup(gather(1), in_(60.0)), turns):
            assert stream.in_flight == 0
            turns += 1
        assert turns > 1
        await until(lambda: server.in_flight == 0)


async def test_connecting_can_be_cancelled_at_every_await() -> None:
    async with serving(Gate()) as (server, address):
        turns = 0
        stream = ShardStream("shard 0", address, CREDENTIALS)
        while not await turns_of(stream.connect(), turns):
            assert not stream.is_up
            await until(lambda: server.connections == 0)
            turns += 1
        assert turns > 3
        await stream.close()


async def test_closing_leaves_nothing_behind_at_any_moment() -> None:
    async with serving(Gate()) as (server, address):
        for turns in range(12):
            stream = ShardStream("shard 0", address, CREDENTIALS, pause=no_pause)
            stream.start()
            for _ in range(turns):
                await asyncio.sleep(0)
            await stream.close()
            assert not stream.is_up
            await until(lambda: server.connections == 0)


# Losses


async def test_a_lost_connection_is_made_anew(caplog: pytest.LogCaptureFixture) -> None:
    async with serving(Gate()) as (server, address), streaming(address) as stream:
        for _ in range(3):
            (session,) = server._sessions
            session.abort()
            await until(lambda: not stream.is_up)
            with pytest.raises(Unavailable, match=r"shard 0 at .* is not connected"):
                await stream.lookup(gather(1), in_(60.0))
            await until(lambda: stream.is_up)
            await stream.lookup(gather(1), in_(60.0))
    assert "shard 0 at" in caplog.text


async def test_a_shard_that_comes_back_is_found_again(tmp_path: Path) -> None:
    path = tmp_path / "shard.sock"
    async with serving(Gate(), path) as (_, address):
        stream = ShardStream("shard 0", address, CREDENTIALS, pause=no_pause)
        await stream.connect()
    await until(lambda: not stream.is_up)
    async with serving(Gate(), path):
        await until(lambda: stream.is_up)
        await stream.lookup(gather(1), in_(60.0))
        await stream.close()


BEHAVIOURS = [
    test
    for name, test in list(globals().items())
    if inspect.iscoroutinefunction(test) and not inspect.signature(test).parameters
    if name.startswith("test_")
]


@pytest.mark.parametrize("behaviour", BEHAVIOURS, ids=lambda test: test.__name__)
def test_it_is_the_same_on_uvloop(behaviour: Callable[[], Coroutine[None, None, None]]) -> None:
    uvloop.run(behaviour())
