"""What the data plane relies on in a transport: true of sockets, and of the tests' own alike."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import pytest

from tests.shards.memory import PAIRS
from tests.shards.plane import until

Pair = Callable[
    [asyncio.BufferedProtocol, asyncio.BufferedProtocol],
    Awaitable[tuple[asyncio.Transport, asyncio.Transport]],
]


class Recorder(asyncio.BufferedProtocol):
    """Keeps all that happens to it."""

    def __init__(self) -> None:
        self.received = b""
        self.events: list[str] = []
        self._buffer = bytearray(1000)

    def get_buffer(self, sizehint: int) -> bytearray:
        return self._buffer

    def buffer_updated(self, nbytes: int) -> None:
        self.received += self._buffer[:nbytes]

    def pause_writing(self) -> None:
        self.events.append("pause")

    def resume_writing(self) -> None:
        self.events.append("resume")

    def eof_received(self) -> None:
        self.events.append("eof")

    def connection_lost(self, exc: Exception | None) -> None:
        self.events.append("lost")


@pytest.fixture(params=sorted(PAIRS))
def pair(request: pytest.FixtureRequest) -> Pair:
    made: Pair = PAIRS[request.param]
    return made


async def test_bytes_arrive_in_order_and_once(pair: Pair) -> None:
    left, right = Recorder(), Recorder()
    ends = await pair(left, right)
    ends[0].write(b"one ")
    ends[0].writelines([b"two ", memoryview(b"three ")])
    ends[1].write(b"back")
    ends[0].write(bytes(5000))
    await until(lambda: len(right.received) == 14 + 5000 and left.received == b"back")
    assert right.received == b"one two three " + bytes(5000)
    ends[0].abort()
    await until(lambda: right.events)


async def test_what_was_written_before_close_arrives_and_then_the_end(pair: Pair) -> None:
    left, right = Recorder(), Recorder()
    ends = await pair(left, right)
    ends[0].write(b"goodbye")
    ends[0].close()
    assert ends[0].is_closing()
    ends[0].write(b"too late")
    await until(lambda: "lost" in right.events and "lost" in left.events)
    assert right.received == b"goodbye"
    assert right.events == ["eof", "lost"]
    assert left.events == ["lost"]


async def test_abort_ends_both_sides_once(pair: Pair) -> None:
    left, right = Recorder(), Recorder()
    ends = await pair(left, right)
    ends[0].abort()
    ends[0].abort()
    await until(lambda: "lost" in right.events and "lost" in left.events)
    assert left.events == ["lost"]
    assert right.events.count("lost") == 1


async def test_a_reader_that_pauses_stops_the_writer_until_it_goes_on(pair: Pair) -> None:
    left, right = Recorder(), Recorder()
    ends = await pair(left, right)
    ends[0].set_write_buffer_limits(high=1000)
    ends[1].pause_reading()
    assert not ends[1].is_reading()
    total = 0
    while "pause" not in left.events:
        ends[0].write(bytes(100_000))
        total += 100_000
        await asyncio.sleep(0)
    assert ends[0].get_write_buffer_size() > 1000
    ends[1].resume_reading()
    await until(lambda: len(right.received) == total)
    assert left.events == ["pause", "resume"]
    assert ends[0].get_write_buffer_size() == 0
    ends[1].abort()
    await until(lambda: "lost" in left.events)
