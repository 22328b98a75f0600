"""An identity stage in a process of its own, asked over a stage actor's stream.

`python -m benchmarks.batching_stream TENSORS:PATH` serves it on a Unix socket until its input ends.
"""

from __future__ import annotations

import asyncio
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import uvloop

from benchmarks.batching_subjects import MAX_BATCH
from benchmarks.transport_cases import processes
from shardserve.batching.driver import BatchDevice
from shardserve.batching.memory import settle_memory
from shardserve.batching.parameters import BatchingParameters
from shardserve.batching.tensor_stage import TensorBatch, TensorStage
from shardserve.batching.tensors import Array
from shardserve.router.servable import RequestContext
from shardserve.router.stage_host import StageHost
from shardserve.shards.address import Address, this_node
from shardserve.shards.handshake import Credentials
from shardserve.shards.replicas import Replicas
from shardserve.shards.server import StreamServer
from shardserve.shards.stage_messages import StageReply, StageRequest
from shardserve.shards.stage_wire import STAGES
from shardserve.shards.stage_work import StageService

CREDENTIALS = Credentials(b"a secret for the benchmark alone", "benchmark")
NAME = "identity"


class IdentityStage:
    """Batch, nothing, and Unbatch. Implements `HostedStage`."""

    def __init__(self, tensors: int, parameters: BatchingParameters) -> None:
        outputs = [f"y{place}" for place in range(tensors)]
        self._stage = TensorStage(BatchDevice(1), NAME, parameters, _identity, outputs)
        self.counts = self._stage.counts
        self.drain = self._stage.drain

    async def run(
        self, tensors: Sequence[Array], rows: int, context: RequestContext
    ) -> list[Array]:
        """The tensors."""
        return [*await self._stage(tensors, rows, context.deadline)]


async def _identity(tensors: list[Array], batch: TensorBatch) -> list[Array]:
    return tensors


@contextmanager
def identity_process(tensors: int) -> Iterator[tuple[str, int]]:
    """Such a process, of requests with so many tensors: its socket's path, and its id."""
    with tempfile.TemporaryDirectory() as directory:
        path = str(Path(directory, "stage.sock"))
        with processes("benchmarks.batching_stream", [f"{tensors}:{path}"]) as (process,):
            yield path, process


async def connected(path: str) -> Replicas[StageRequest, StageReply]:
    """A channel to it."""
    channel = Replicas(NAME, [Address(path, node=this_node())], CREDENTIALS, STAGES)
    await channel.connected()
    return channel


async def _serve(tensors: int, path: str) -> None:
    stage = IdentityStage(tensors, BatchingParameters(max_batch_size=MAX_BATCH))
    server = StreamServer(StageService(StageHost({NAME: stage})), CREDENTIALS)
    await server.listen(unix_path=path)
    print("listening", flush=True)
    await asyncio.to_thread(sys.stdin.read)
    await server.close()


if __name__ == "__main__":
    settle_memory()
    number, _, where = sys.argv[1].partition(":")
    uvloop.run(_serve(int(number), where))
