"""What the tests of the data plane share: shards to ask, in memory and over sockets."""

from __future__ import annotations

import asyncio
import socket
import threading
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np

from shardserve.batching.errors import ServingError
from shardserve.shards.address import Address
from shardserve.shards.frames import Frame, FrameReader, Kind
from shardserve.shards.handshake import NONCE_BYTES, ClientHandshake, Credentials
from shardserve.shards.messages import Array, LookupReply, LookupRequest, Op, Part
from shardserve.shards.server import ServerLimits, ShardServer

CREDENTIALS = Credentials(b"sixteen bytes or more", "plan/0")
TABLE = np.arange(400, dtype=np.float32).reshape(100, 4)
LIMITS = ServerLimits()
#: Larger than `ServerLimits.inline_cost`: goes to the pool.
LARGE = 1 << 24


class Gate:
    """An executor over `TABLE`, every request of which costs `cost`, and stops in `execute`.

    `entered` counts those that have come in; `open` lets all of them go on.
    """

    def __init__(self, cost: int = 0, *, is_open: bool = True) -> None:
        self.price = cost
        self.entered = threading.Semaphore(0)
        self.opened = threading.Event()
        self.executed: list[int] = []
        if is_open:
            self.opened.set()

    def execute(self, request: LookupRequest) -> tuple[Array, ...]:
        self.executed.append(int(request.parts[0].rows[0]))
        self.entered.release()
        assert self.opened.wait(60)
        return tuple(TABLE[part.rows] for part in request.parts)

    def cost(self, request: LookupRequest) -> int:
        return self.price

    async def has_entered(self) -> None:
        """One more request is being executed."""
        await asyncio.to_thread(self.entered.acquire)


class Raising:
    """An executor whose every request fails with `error`."""

    def __init__(self, error: Exception, *, in_cost: bool = False) -> None:
        self._error = error
        self._in_cost = in_cost

    def execute(self, request: LookupRequest) -> tuple[Array, ...]:
        raise self._error

    def cost(self, request: LookupRequest) -> int:
        if self._in_cost:
            raise self._error
        return 0


class Outcomes:
    """A sink that remembers how every call ended."""

    def __init__(self) -> None:
        self.ended: dict[int, list[LookupReply | ServingError]] = {}

    def replied(self, tag: int, reply: LookupReply) -> None:
        self.ended.setdefault(tag, []).append(reply)

    def failed(self, tag: int, error: ServingError) -> None:
        self.ended.setdefault(tag, []).append(error)


def gather(*rows: int) -> LookupRequest:
    return LookupRequest((Part(0, Op.GATHER, np.array(rows, np.int64)),))


def in_(seconds: float) -> float:
    return time.monotonic() + seconds


async def until(condition: Callable[[], object]) -> None:
    """Let the event loop turn until the condition holds."""
    async with asyncio.timeout(30):
        while not condition():  # noqa: ASYNC110 (every turn of the loop counts)
            await asyncio.sleep(0)


@asynccontextmanager
async def serving(
    executor: Gate | Raising,
    path: Path | None = None,
    credentials: Credentials = CREDENTIALS,
    *,
    threads: int = 1,
    **limits: float,
) -> AsyncIterator[tuple[ShardServer, Address]]:
    """A shard on this loop, on a Unix socket at `path` or on TCP."""
    changed = replace(LIMITS, **limits)  # type: ignore[arg-type]
    server = ShardServer(executor, credentials, changed, threads=threads)
    if path is not None:
        address = await server.listen(unix_path=str(path))
    else:
        address = await server.listen(host="127.0.0.1")
    try:
        yield server, address
    finally:
        if isinstance(executor, Gate):
            executor.opened.set()
        await server.close()
        assert server.connections == 0
        assert server.in_flight == 0


class RawRouter:
    """A router's end of a connection, frame by frame, with a thread's plain blocking socket."""

    def __init__(self, address: Address, timeout: float = 30.0) -> None:
        assert address.host is not None
        self.socket = socket.create_connection((address.host, address.port), timeout)
        self._reader = FrameReader(Kind, 1 << 30)
        self._frames: list[Frame] = []

    def __enter__(self) -> RawRouter:
        return self

    def __exit__(self, *_: object) -> None:
        self.socket.close()

    def send(self, *buffers: bytes | memoryview) -> None:
        self.socket.sendall(b"".join(buffers))

    def receive(self) -> Frame | None:
        """The next frame; None when the shard has closed the connection."""
        while not self._frames:
            count = self.socket.recv_into(self._reader.get_buffer())
            if count == 0:
                return None
            self._frames = self._reader.received(count)
        return self._frames.pop(0)

    def shake_hands(self, credentials: Credentials = CREDENTIALS, limit: int = 1 << 30) -> None:
        handshake = ClientHandshake(credentials, limit, bytes(NONCE_BYTES))
        self.send(handshake.hello())
        while handshake.peer_limit is None:
            received = self.receive()
            assert received is not None
            self.send(handshake.receive(received))


@asynccontextmanager
async def raw_router(
    address: Address, credentials: Credentials = CREDENTIALS, limit: int = 1 << 30
) -> AsyncIterator[RawRouter]:
    """A router that has proved itself."""
    router = await asyncio.to_thread(RawRouter, address)
    with router:
        await asyncio.to_thread(router.shake_hands, credentials, limit)
        yield router
