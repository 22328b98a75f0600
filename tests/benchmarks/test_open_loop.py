from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import numpy as np
import pytest

from benchmarks.open_loop import NEVER_ANSWERED, NEVER_SENT, Run, closed_loop, open_loop
from benchmarks.serving_senders import HttpSender, OnReply

GIVE_UP = 30.0


class Echo:
    """A sender that answers at once, but those bodies it was told to hold."""

    def __init__(self, held: frozenset[bytes] = frozenset()) -> None:
        self.sent: list[bytes] = []
        self._held = held

    def send(self, body: bytes, on_reply: OnReply) -> None:
        self.sent.append(body)
        if body not in self._held:
            asyncio.get_running_loop().call_soon(on_reply, body)


async def test_bodies_are_sent_in_turn_and_replies_kept_in_order() -> None:
    run = Run([b"a", b"b"], Echo())
    await open_loop(run, np.array([0.0, 0.001, 0.002]), GIVE_UP)
    assert run.replies == [b"a", b"b", b"a"]
    assert np.all(np.array(run.latencies) >= np.array(run.late))
    assert run.answered == 3


async def test_a_request_that_waits_too_long_ends_the_load() -> None:
    run = Run([b"held"], Echo(held=frozenset([b"held"])), drain_seconds=0.0)
    await open_loop(run, np.array([0.0, 0.02, 3600.0]), give_up=0.01)
    # Timers may fire a little early: whether the second goes out is left open.
    assert run.replies in (
        [NEVER_ANSWERED, NEVER_SENT, NEVER_SENT],
        [NEVER_ANSWERED, NEVER_ANSWERED, NEVER_SENT],
    )
    assert np.isnan(run.latencies).all()


async def test_latency_counts_from_when_the_request_was_due() -> None:
    run = Run([b"a"], Echo())
    run.send(due=time.perf_counter() - 10.0)
    await asyncio.sleep(0)
    assert run.latencies[0] >= 10.0
    assert run.late[0] >= 10.0


async def test_a_closed_loop_keeps_its_clients_busy() -> None:
    run = Run([b"a"], Echo())
    await closed_loop(run, clients=3, seconds=0.01)
    assert len(run.replies) >= 3
    assert set(run.replies) == {b"a"}


@asynccontextmanager
async def http_server(reply: bytes, close: bool = False) -> AsyncIterator[int]:
    """Answers each POST with `reply`, after its body has come; the port."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(asyncio.IncompleteReadError):
            while not writer.is_closing():
                head = await reader.readuntil(b"\r\n\r\n")
                length = int(head.lower().split(b"content-length: ")[1].split(b"\r\n")[0])
                await reader.readexactly(length)
                writer.write(reply)
                if close:
                    writer.close()
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        server.close()


async def ask(sender: HttpSender, *bodies: bytes) -> list[bytes | str]:
    run = Run(bodies, sender)
    await open_loop(run, np.zeros(len(bodies)), GIVE_UP)
    return run.replies


OK = b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nyes"
CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\ny\r\n2\r\nes\r\n0\r\n\r\n"
REFUSED = b"HTTP/1.1 503 Service Unavailable\r\nContent-Length: 4\r\n\r\nbusy"
CUT = b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\ncut"


@pytest.mark.parametrize("connections", [1, 3])
@pytest.mark.parametrize("reply", [OK, CHUNKED])
async def test_http_requests_share_connections(reply: bytes, connections: int) -> None:
    async with http_server(reply) as port:
        sender = await HttpSender.connect("127.0.0.1", port, "/path", connections)
        assert await ask(sender, *[b"{}"] * 5) == [b"yes"] * 5
        sender.close()


async def test_a_refusal_is_an_error_that_names_status_and_body() -> None:
    async with http_server(REFUSED) as port:
        sender = await HttpSender.connect("127.0.0.1", port, "/path", 1)
        assert await ask(sender, b"{}") == ["503: busy"]
        sender.close()


async def test_a_connection_that_is_lost_under_a_request_fails_it() -> None:
    async with http_server(CUT, close=True) as port:
        sender = await HttpSender.connect("127.0.0.1", port, "/path", 1)
        assert await ask(sender, b"{}") == ["connection lost: closed by the server"]
        sender.close()


async def test_a_connection_that_is_closed_between_requests_is_opened_anew() -> None:
    async with http_server(OK) as port:
        sender = await HttpSender.connect("127.0.0.1", port, "/path", 1)
        (lost,) = sender._free
        lost.connection_lost(None)
        assert await ask(sender, b"{}") == [b"yes"]
        lost.close()
        sender.close()
