"""Stage servers for tests: executors, and servers and channels around them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace

import numpy as np

from shardserve.shards.address import Address
from shardserve.shards.link import LinkLimits
from shardserve.shards.messages import Array
from shardserve.shards.replicas import Replicas
from shardserve.shards.server import ServerLimits, StreamServer
from shardserve.shards.stage_messages import StageReply, StageRequest
from shardserve.shards.stage_wire import STAGES
from shardserve.shards.stage_work import StageExecutor, StageService
from tests.shards.plane import CREDENTIALS, until

StageChannel = Replicas[StageRequest, StageReply]


class Doubling:
    """Doubles tensors once it is open; remembers who came, and who was withdrawn."""

    def __init__(self, *, is_open: bool = True) -> None:
        self.came: list[StageRequest] = []
        self.withdrawn: list[StageRequest] = []
        self.closed = False
        self.opened = asyncio.Event()
        if is_open:
            self.opened.set()

    async def run(self, request: StageRequest, arrived: float, deadline: float) -> StageReply:
        self.came.append(request)
        try:
            await self.opened.wait()
        except asyncio.CancelledError:
            self.withdrawn.append(request)
            raise
        return StageReply(tuple(tensor + tensor for tensor in request.tensors), 0.25, 0.5)

    async def drain(self) -> None:
        self.opened.set()

    def close(self) -> None:
        self.closed = True


class Failing(Doubling):
    """Fails every request with `error`."""

    def __init__(self, error: BaseException) -> None:
        super().__init__()
        self._error = error

    async def run(self, request: StageRequest, arrived: float, deadline: float) -> StageReply:
        self.came.append(request)
        raise self._error


@asynccontextmanager
async def stages(
    executor: StageExecutor, **limits: float
) -> AsyncIterator[tuple[StreamServer, Address]]:
    """A stage server on this loop, on TCP."""
    changed = replace(ServerLimits(), **limits)  # type: ignore[arg-type]
    server = StreamServer(StageService(executor), CREDENTIALS, changed)
    address = await server.listen(host="127.0.0.1")
    try:
        yield server, address
    finally:
        await server.close()
        assert server.connections == 0
        assert server.in_flight == 0


async def _no_pause(_seconds: float) -> None:
    await asyncio.sleep(0)


@asynccontextmanager
async def channel_to(*addresses: Address) -> AsyncIterator[StageChannel]:
    channel: StageChannel = Replicas(
        "stage tower",
        addresses,
        CREDENTIALS,
        STAGES,
        LinkLimits(),
        patience_seconds=60.0,
        pause=_no_pause,
    )
    await until(lambda: all(stream.is_up for stream in channel._streams))
    try:
        yield channel
        assert channel.in_flight == 0
    finally:
        await channel.close()


def floats(*values: float, stage: str = "tower") -> StageRequest:
    return StageRequest(stage, (np.array(values, np.float32),), len(values))


def only(reply: StageReply) -> list[object]:
    (tensor,) = reply.tensors
    values: list[object] = tensor.tolist()
    return values


def strings(*values: bytes) -> Array:
    array = np.empty(len(values), object)
    array[:] = values
    return array
