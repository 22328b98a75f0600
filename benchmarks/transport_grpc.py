"""grpc.aio as a subject: 4 servers on Unix sockets, raw array bytes as messages, no protobuf.

`python -m benchmarks.transport_grpc PATH` is one of the servers.
"""

from __future__ import annotations

import asyncio
import sys
import tempfile
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import grpc
import numpy as np
import uvloop

from benchmarks.transport_cases import (
    CASES,
    COLUMNS,
    SHARDS,
    Array,
    Case,
    Rows,
    concurrent_rate,
    processes,
    timed_async,
)

METHOD = "/shard/Lookup"
DEADLINE_SECONDS = 10.0
OPTIONS = [("grpc.max_receive_message_length", 1 << 30), ("grpc.use_local_subchannel_pool", 1)]


class GrpcAio:
    """Unary calls on one channel to each server; every call has a deadline."""

    name = "grpc.aio"

    def __init__(
        self, loop: asyncio.AbstractEventLoop, processes: Sequence[int], paths: Sequence[str]
    ) -> None:
        self.processes = processes
        self._loop = loop
        loop.run_until_complete(self._connect(paths))

    def latencies(self, case: Case, count: int) -> list[float]:
        """See `Subject`."""
        return self._loop.run_until_complete(timed_async(self._fan_out(case), count))

    def rate(self, case: Case, seconds: float) -> float:
        """See `Subject`."""
        return self._loop.run_until_complete(
            concurrent_rate(self._fan_out(case), case.depth, seconds)
        )

    def close(self) -> None:
        """Close the channels."""
        for channel in self._channels:
            self._loop.run_until_complete(channel.close())

    async def _connect(self, paths: Sequence[str]) -> None:
        self._channels = [grpc.aio.insecure_channel(f"unix:{path}", OPTIONS) for path in paths]
        self._calls = [
            channel.unary_unary(METHOD, _bytes_of_rows, _array_of_bytes)
            for channel in self._channels
        ]
        for case in CASES:
            Rows().check(case, await self._fan_out(case)())

    def _fan_out(self, case: Case) -> Callable[[], Awaitable[list[Array]]]:
        rows = case.wanted

        async def ask() -> list[Array]:
            calls = [call(rows, timeout=DEADLINE_SECONDS) for call in self._calls]
            return [await call for call in calls]

        return ask


def _bytes_of_rows(rows: Array) -> bytes:
    return rows.tobytes()


def _array_of_bytes(reply: bytes) -> Array:
    return np.frombuffer(reply, np.float32).reshape(-1, COLUMNS)


@contextmanager
def grpc_aio(loop: asyncio.AbstractEventLoop) -> Iterator[GrpcAio]:
    """Start the servers, connect, and end both in the end."""
    with tempfile.TemporaryDirectory() as directory:
        sockets = [str(Path(directory, f"{place}.sock")) for place in range(SHARDS)]
        with processes(__name__, sockets) as running:
            subject = GrpcAio(loop, running, sockets)
            try:
                yield subject
            finally:
                subject.close()


async def serve(path: str) -> None:
    """Serve until standard input ends."""
    rows = Rows()

    async def lookup(request: bytes, context: object) -> bytes:
        return rows.take(np.frombuffer(request, np.int64)).tobytes()

    server = grpc.aio.server(options=OPTIONS)
    handler = grpc.method_handlers_generic_handler(
        "shard", {"Lookup": grpc.unary_unary_rpc_method_handler(lookup)}
    )
    server.add_generic_rpc_handlers((handler,))
    server.add_insecure_port(f"unix:{path}")
    await server.start()
    print("listening", flush=True)
    await asyncio.to_thread(sys.stdin.read)
    await server.stop(None)


if __name__ == "__main__":
    uvloop.run(serve(sys.argv[1]))
