"""A shard's server towards routers that behave, and towards others."""

from __future__ import annotations

import asyncio
import logging
import socket
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from shardserve.batching.errors import (
    Code,
    DeadlineExceeded,
    InvalidArgument,
    NotFound,
    ServingError,
    Unavailable,
)
from shardserve.shards.address import Address
from shardserve.shards.frames import Frame, Kind, bare_frame
from shardserve.shards.handshake import Credentials
from shardserve.shards.jobs import perform
from shardserve.shards.messages import Array, LookupReply, LookupRequest, Op, Part
from shardserve.shards.server import ServerLimits, serve_in_thread
from shardserve.shards.stream import ShardStream
from shardserve.shards.wire import (
    PING,
    decode_error,
    decode_reply,
    encode_cancel,
    encode_request,
)
from tests.shards.plane import (
    CREDENTIALS,
    LARGE,
    TABLE,
    Gate,
    Raising,
    RawRouter,
    gather,
    in_,
    raw_router,
    serving,
    until,
)


async def receive(router: RawRouter) -> Frame:
    frame = await asyncio.to_thread(router.receive)
    assert frame is not None
    return frame


async def answer(router: RawRouter) -> tuple[int, LookupReply | ServingError]:
    """The next answer, and which request it is for."""
    frame = await receive(router)
    return frame[1], decode_error(frame) if frame[0] is Kind.ERROR else decode_reply(frame)


def request(number: int, row: int = 1, seconds_left: float = 60.0) -> bytes:
    return b"".join(encode_request(number, seconds_left, gather(row))[0])


async def is_closed(router: RawRouter) -> bool:
    try:
        return await asyncio.to_thread(router.receive) is None
    except ConnectionResetError:
        return True


async def test_answers_come_back_under_their_requests_numbers() -> None:
    async with serving(Gate()) as (_, address), raw_router(address) as router:
        router.send(request(7, row=3), request(2**63, row=5))
        for number, row in ((7, 3), (2**63, 5)):
            got, reply = await answer(router)
            assert got == number
            assert isinstance(reply, LookupReply)
            np.testing.assert_array_equal(reply.results[0], TABLE[[row]])
            assert reply.queue_seconds >= 0.0
            assert reply.lookup_seconds >= 0.0


@pytest.mark.parametrize("in_cost", [False, True])
@pytest.mark.parametrize(
    ("error", "code", "message"),
    [
        (NotFound("no such row"), Code.NOT_FOUND, "no such row"),
        (KeyError("private"), Code.INTERNAL, "the shard failed, see its log"),
    ],
)
async def test_an_executors_error_answers_its_request_and_no_more(
    caplog: pytest.LogCaptureFixture, error: Exception, code: Code, message: str, in_cost: bool
) -> None:
    async with (
        serving(Raising(error, in_cost=in_cost)) as (_, address),
        raw_router(address) as router,
    ):
        router.send(request(1), request(2))
        for number in (1, 2):
            got, outcome = await answer(router)
            assert got == number
            assert isinstance(outcome, ServingError)
            assert (outcome.code, outcome.message) == (code, message)
    assert ("private" in caplog.text) == (code is Code.INTERNAL)


async def test_what_is_large_does_not_hold_up_what_is_small() -> None:
    gate = Gate(LARGE, is_open=False)
    async with serving(gate) as (server, address), raw_router(address) as router:
        router.send(request(1))
        await gate.has_entered()
        router.send(PING)
        assert (await receive(router))[0] is Kind.PONG
        gate.price = 0
        gate.opened.set()
        router.send(request(2))
        assert {(await answer(router))[0], (await answer(router))[0]} == {1, 2}
        assert server.in_flight == 0


async def test_a_request_without_time_left_is_not_executed() -> None:
    gate = Gate()
    async with serving(gate) as (_, address), raw_router(address) as router:
        router.send(request(1, seconds_left=0.0))
        number, outcome = await answer(router)
        assert number == 1
        assert isinstance(outcome, DeadlineExceeded)
    assert gate.executed == []


async def test_a_request_whose_time_passes_in_the_queue_is_not_executed() -> None:
    gate = Gate(LARGE, is_open=False)
    async with serving(gate, threads=1) as (_, address), raw_router(address) as router:
        router.send(request(1, row=10), request(2, row=20, seconds_left=1e-6))
        await gate.has_entered()
        gate.opened.set()
        outcomes = dict([await answer(router), await answer(router)])
        assert isinstance(outcomes[1], LookupReply)
        assert isinstance(outcomes[2], DeadlineExceeded)
    assert gate.executed == [10]


def test_results_that_come_too_late_are_none() -> None:
    class UntilTooLate(Gate):
        def execute(self, request: LookupRequest) -> tuple[Array, ...]:
            while time.monotonic() < deadline:
                pass
            return super().execute(request)

    deadline = in_(0.1)
    late = UntilTooLate()
    with pytest.raises(DeadlineExceeded, match="while the shard was at work"):
        perform(late, gather(1), arrived=0.0, deadline=deadline)
    with pytest.raises(DeadlineExceeded, match="before the shard could start"):
        perform(late, gather(1), arrived=0.0, deadline=deadline)
    assert len(late.executed) == 1


async def test_cancelled_requests_are_forgotten() -> None:
    gate = Gate(LARGE, is_open=False)
    async with serving(gate, threads=1) as (server, address), raw_router(address) as router:
        router.send(request(1, row=10))
        await gate.has_entered()
        router.send(request(2, row=20), request(3, row=30))
        await until(lambda: server.in_flight == 3)
        router.send(encode_cancel(1), encode_cancel(2), encode_cancel(99))
        await until(lambda: server.in_flight == 1)
        gate.opened.set()
        assert (await answer(router))[0] == 3
        router.send(PING)
        assert (await receive(router))[0] is Kind.PONG
    assert gate.executed == [10, 30]


async def test_a_lost_connection_forgets_its_requests() -> None:
    gate = Gate(LARGE, is_open=False)
    async with serving(gate, threads=1) as (server, address):
        async with raw_router(address) as router:
            router.send(request(1, row=10), request(2, row=20))
            await gate.has_entered()
        await until(lambda: server.connections == 0)
        assert server.in_flight == 0
    assert gate.executed == [10]


async def test_more_requests_than_may_be_queued_are_unavailable() -> None:
    gate = Gate(LARGE, is_open=False)
    async with serving(gate, max_jobs=2) as (_, address), raw_router(address) as router:
        router.send(request(1), request(2), request(3))
        number, outcome = await answer(router)
        assert number == 3
        assert isinstance(outcome, Unavailable)
        assert "2 requests of this router queued" in outcome.message
        gate.opened.set()
        assert {(await answer(router))[0], (await answer(router))[0]} == {1, 2}


async def test_what_costs_more_than_may_be_queued_is_refused() -> None:
    gate = Gate(LARGE, is_open=False)
    async with (
        serving(gate, max_job_cost=LARGE + LARGE // 2) as (_, address),
        raw_router(address) as router,
    ):
        router.send(request(1), request(2))
        number, outcome = await answer(router)
        assert (number, type(outcome)) == (2, Unavailable)
        gate.price = 2 * LARGE
        router.send(request(3))
        number, outcome = await answer(router)
        assert isinstance(outcome, ServingError)
        assert (number, outcome.code) == (3, Code.RESOURCE_EXHAUSTED)
        assert f"costs {2 * LARGE} bytes" in outcome.message
        gate.opened.set()
        assert (await answer(router))[0] == 1


async def test_a_reply_longer_than_the_router_accepts_is_an_error() -> None:
    async with serving(Gate()) as (_, address), raw_router(address, limit=4096) as router:
        many = LookupRequest((Part(0, Op.GATHER, np.zeros(300, np.int64)),))
        router.send(*encode_request(1, 60.0, many)[0], request(2))
        number, outcome = await answer(router)
        assert isinstance(outcome, ServingError)
        assert (number, outcome.code) == (1, Code.RESOURCE_EXHAUSTED)
        assert "the limit is 4096" in outcome.message
        assert (await answer(router))[0] == 2


async def test_a_router_that_does_not_read_is_not_read_from() -> None:
    count, high_water, reply_bytes = 400, 1 << 16, 4000 * 16
    # Requests of 4 KB whose replies have 64 KB, so that many come with one read.
    rows = LookupRequest((Part(0, Op.GATHER, np.zeros(4000, np.int8)),))
    asked = [b"".join(encode_request(number, 60.0, rows)[0]) for number in range(count)]
    async with (
        serving(Gate(), high_water=high_water) as (server, address),
        raw_router(address) as router,
    ):
        router.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 14)
        sending = asyncio.create_task(asyncio.to_thread(router.send, *asked))
        (session,) = server._sessions
        await until(lambda: session._held_back)
        for _ in range(100):
            await asyncio.sleep(0)
        held_back = len(session._held_back)
        unsent = session._transport.get_write_buffer_size()
        assert unsent <= high_water + (1 << 18) + 2 * reply_bytes
        assert not session._transport.is_reading()
        assert [(await answer(router))[0] for _ in range(count)] == list(range(count))
        await sending
        assert 0 < held_back < 20
        assert not session._held_back


# Strangers


@pytest.mark.parametrize(
    "said",
    [
        b"GET / HTTP/1.1\r\nHost: shard\r\n\r\n",
        bytes(64),
        request(1),
        PING,
        bare_frame(Kind.PROOF, 0, b"", ""),
        b"\xff" * 64,
    ],
    ids=["http", "zeros", "request", "ping", "proof", "as huge as a frame can claim to be"],
)
async def test_a_stranger_is_turned_away_unheard(
    said: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    gate = Gate()
    async with serving(gate) as (server, address):
        with RawRouter(address) as router:
            router.send(said)
            frame = await asyncio.to_thread(router.receive)
            assert frame is not None
            assert frame[0] is Kind.REFUSAL
            assert await is_closed(router)
        assert server.in_flight == 0
    assert gate.executed == []
    assert "turned away" in caplog.text


async def test_a_stranger_with_another_secret_learns_nothing_and_gets_nothing() -> None:
    gate = Gate()
    async with serving(gate) as (_, address):
        with RawRouter(address) as router:
            with pytest.raises(ServingError) as caught:
                await asyncio.to_thread(router.shake_hands, Credentials(b"x" * 16, "plan/0"))
            assert caught.value.code is Code.UNAUTHENTICATED
            assert "plan" not in caught.value.message
            assert await is_closed(router)
    assert gate.executed == []


async def test_a_stranger_who_says_nothing_is_hung_up_on() -> None:
    async with serving(Gate(), handshake_seconds=0.01) as (server, address):
        with RawRouter(address) as router:
            assert await is_closed(router)
        await until(lambda: server.connections == 0)


async def test_more_connections_than_allowed_are_closed_at_once() -> None:
    async with serving(Gate(), max_connections=1) as (_, address), raw_router(address) as first:
        with RawRouter(address) as second:
            assert await is_closed(second)
        first.send(request(1))
        assert (await answer(first))[0] == 1


@pytest.mark.parametrize(
    "said",
    [
        b"GET / HTTP/1.1\r\nHost: shard\r\n\r\n",
        bare_frame(Kind.REQUEST, 1, "no", "request"),
        bare_frame(Kind.WELCOME, 0, bytes(32)),
        request(5) + request(5),
    ],
    ids=["http", "malformed", "handshake", "number twice"],
)
async def test_a_router_that_misspeaks_is_cut_off_and_the_others_are_not(
    said: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    gate = Gate(LARGE)
    async with (
        serving(gate) as (_, address),
        raw_router(address) as polite,
        raw_router(address) as rude,
    ):
        gate.opened.clear()
        rude.send(said)
        assert await is_closed(rude)
        gate.opened.set()
        polite.send(request(1))
        assert (await answer(polite))[0] == 1
    assert "turned away" in caplog.text


async def test_a_router_that_fell_silent_is_pinged_and_then_given_up() -> None:
    async with serving(Gate(), keepalive_seconds=0.01) as (server, address):
        async with raw_router(address) as router:
            assert (await receive(router))[0] is Kind.PING
            assert await is_closed(router)
        await until(lambda: server.connections == 0)


# Stopping


async def test_a_server_that_stops_answers_what_it_has_and_refuses_the_rest() -> None:
    gate = Gate(LARGE, is_open=False)
    async with serving(gate) as (server, address), raw_router(address) as router:
        router.send(request(1))
        await gate.has_entered()
        closing = asyncio.create_task(server.close(grace_seconds=60.0))
        await until(lambda: all(session._draining for session in server._sessions))
        router.send(request(2))
        number, outcome = await answer(router)
        assert (number, type(outcome)) == (2, Unavailable)
        gate.opened.set()
        assert (await answer(router))[0] == 1
        assert await is_closed(router)
        await closing


async def test_a_server_that_stops_does_not_wait_for_ever() -> None:
    gate = Gate(LARGE, is_open=False)
    async with serving(gate) as (server, address), raw_router(address) as router:
        router.send(request(1))
        await gate.has_entered()
        await server.close(grace_seconds=0.0)
        assert await is_closed(router)
        assert server.connections == 0
        gate.opened.set()


@pytest.mark.parametrize("turns", range(5))
async def test_a_server_that_stops_closes_what_it_is_accepting(turns: int) -> None:
    async with serving(Gate(), handshake_seconds=60.0) as (server, address):
        with RawRouter(address) as first, RawRouter(address) as second:
            for _ in range(turns):
                await asyncio.sleep(0)
            await server.close(grace_seconds=0.0)
            assert server.connections == 0
            assert await is_closed(first)
            assert await is_closed(second)


async def test_a_server_can_stop_while_it_is_at_work(caplog: pytest.LogCaptureFixture) -> None:
    gate = Gate(LARGE, is_open=False)
    server = serve_in_thread(gate, CREDENTIALS, host="127.0.0.1", threads=1)
    async with raw_router(server.address) as router:
        router.send(request(1))
        await gate.has_entered()
        await asyncio.to_thread(server.close, 0.0)
        assert await is_closed(router)
    gate.opened.set()
    (worker,) = [one for one in threading.enumerate() if one.name.startswith("lookup")]
    await asyncio.to_thread(worker.join)
    assert caplog.text == ""


async def test_the_unix_socket_is_private_and_goes_with_the_server(tmp_path: Path) -> None:
    path = tmp_path / "shard.sock"
    async with serving(Gate(), path) as (_, address):
        assert address.unix_path == str(path)
        assert path.stat().st_mode & 0o777 == 0o600
    assert not path.exists()


@pytest.mark.parametrize("path", ["{}/" + "x" * 200, "{}/no/such/directory/shard.sock"])
async def test_a_place_where_one_cannot_listen_is_named(tmp_path: Path, path: str) -> None:
    place = path.format(tmp_path)
    with pytest.raises(InvalidArgument, match="cannot listen on") as caught:
        serve_in_thread(Gate(), CREDENTIALS, unix_path=place)
    assert place in caught.value.message
    with pytest.raises(InvalidArgument, match="needs a Unix socket's path or a host"):
        serve_in_thread(Gate(), CREDENTIALS)


async def test_a_server_on_a_thread_of_its_own_serves_both_ways_until_closed(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = str(tmp_path / "shard.sock")
    server = serve_in_thread(
        Gate(), CREDENTIALS, ServerLimits(), unix_path=path, host="127.0.0.1", threads=1
    )
    tcp = Address(host="127.0.0.1", port=server.address.port)
    for address in (server.address, tcp):
        stream = ShardStream("shard 0", address, CREDENTIALS)
        await stream.connect()
        reply = await stream.lookup(gather(3), in_(60.0))
        np.testing.assert_array_equal(reply.results[0], TABLE[[3]])
        await stream.close()
    assert not server.join(timeout=0.0)
    await asyncio.to_thread(server.close)
    assert server.join(timeout=0.0)
    await asyncio.to_thread(server.close)
    assert [record for record in caplog.records if record.levelno >= logging.ERROR] == []
