"""The data plane's own subject: 4 shard servers, and a router's channels to them.

`python -m benchmarks.transport_ours PATH` is one of the servers.
"""

from __future__ import annotations

import asyncio
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from benchmarks.transport_cases import (
    CASES,
    SHARDS,
    Array,
    Case,
    Rows,
    concurrent_rate,
    processes,
    timed_async,
)
from shardserve.shards.address import Address, this_node
from shardserve.shards.fan_out import fan_out
from shardserve.shards.handshake import Credentials
from shardserve.shards.messages import LookupReply, LookupRequest, Op, Part
from shardserve.shards.replicas import ReplicatedChannel
from shardserve.shards.server import serve_in_thread

CREDENTIALS = Credentials(b"a secret for the benchmark alone", "benchmark")
DEADLINE_SECONDS = 10.0


class RowsExecutor:
    """`Rows` as a shard's executor."""

    def __init__(self) -> None:
        self._rows = Rows()

    def execute(self, request: LookupRequest) -> tuple[Array, ...]:
        """The rows of each part."""
        return tuple([self._rows.take(part.rows) for part in request.parts])

    def cost(self, request: LookupRequest) -> int:
        """Bytes read and written."""
        return sum([part.rows.size * 512 for part in request.parts])


class ShardServe:
    """Our channels to 4 servers. Every request has a deadline, and every stream a secret."""

    name = "shardserve"

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
        self._channels = [
            ReplicatedChannel(f"shard {place}", [Address(path, node=this_node())], CREDENTIALS)
            for place, path in enumerate(paths)
        ]
        for channel in self._channels:
            await channel.connected()
        for case in CASES:
            replies = await self._fan_out(case)()
            Rows().check(case, [reply.results[0] for reply in replies])

    def _fan_out(self, case: Case) -> Callable[[], Awaitable[list[LookupReply]]]:
        request = LookupRequest((Part(0, Op.GATHER, case.wanted),))
        asked = [(channel, request) for channel in self._channels]

        def ask() -> Awaitable[list[LookupReply]]:
            return fan_out(asked, time.monotonic() + DEADLINE_SECONDS)

        return ask


@contextmanager
def shardserve(loop: asyncio.AbstractEventLoop) -> Iterator[ShardServe]:
    """Start the servers, connect, and end both in the end."""
    with tempfile.TemporaryDirectory() as directory:
        sockets = [str(Path(directory, f"{place}.sock")) for place in range(SHARDS)]
        with processes(__name__, sockets) as running:
            subject = ShardServe(loop, running, sockets)
            try:
                yield subject
            finally:
                subject.close()


def main(path: str) -> None:
    """Serve until standard input ends."""
    server = serve_in_thread(RowsExecutor(), CREDENTIALS, unix_path=path)
    print("listening", flush=True)
    sys.stdin.read()
    server.close()


if __name__ == "__main__":
    main(sys.argv[1])
