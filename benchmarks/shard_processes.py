"""Shards in processes of their own, for benchmarks: each serves on a path until its input ends."""

from __future__ import annotations

import asyncio
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from benchmarks.transport_cases import processes
from shardserve.shards.address import Address, this_node
from shardserve.shards.handshake import Credentials
from shardserve.shards.replicas import ReplicatedChannel
from shardserve.shards.server import serve_in_thread
from shardserve.shards.shard import Shard

CREDENTIALS = Credentials(b"a secret for the benchmark alone", "benchmark")


@contextmanager
def shard_processes(
    loop: asyncio.AbstractEventLoop, module: str, count: int, argument: Callable[[str, int], str]
) -> Iterator[list[ReplicatedChannel]]:
    """Run `python -m module argument(path, part)` for each part; give connected channels to them.

    Each process is to end in `serve` with the path it was given.
    """
    with tempfile.TemporaryDirectory() as directory:
        paths = [str(Path(directory, f"{part}.sock")) for part in range(count)]
        with processes(module, [argument(path, part) for part, path in enumerate(paths)]):
            channels = loop.run_until_complete(_connected(paths))
            try:
                yield channels
            finally:
                for channel in channels:
                    loop.run_until_complete(channel.close())


async def _connected(paths: Sequence[str]) -> list[ReplicatedChannel]:
    channels = [
        ReplicatedChannel(f"shard {place}", [Address(path, node=this_node())], CREDENTIALS)
        for place, path in enumerate(paths)
    ]
    for channel in channels:
        await channel.connected()
    return channels


def serve(shard: Shard, path: str) -> None:
    """Serve on a Unix socket, on one thread, until standard input ends."""
    server = serve_in_thread(shard, CREDENTIALS, unix_path=path, threads=1)
    print("listening", flush=True)
    sys.stdin.read()
    server.close()
