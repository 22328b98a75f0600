"""One replica of one shard: a Ray actor that holds its slices and answers on a stream of its own.

The process never loads TensorFlow.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import ray

from shardserve.cluster.placement import Seat
from shardserve.cluster.private_directory import socket_path
from shardserve.cluster.stream_actor import StreamActor
from shardserve.cluster.tally import Tally
from shardserve.shards.device_loss import UntilLost
from shardserve.shards.handshake import Credentials
from shardserve.shards.jobs import LookupExecutor
from shardserve.shards.layout import Slice
from shardserve.shards.measures import Measure
from shardserve.shards.memory import release_code_pages
from shardserve.shards.server import RunningServer, serve_in_thread
from shardserve.shards.shard import Shard
from shardserve.shards.tables import TableSource

_REPORT_SECONDS = 0.2
#: Large requests at work at once; more where they wait for a disk, which does many reads at a time.
_THREADS = 2
_WAITING_THREADS = 8


@dataclass(frozen=True)
class ShardSpec:
    """All that a shard actor is. `sockets` begins the names of its deployment's sockets."""

    sockets: str
    seat: Seat
    slices: tuple[Slice, ...]
    sources: Mapping[str, TableSource]
    credentials: Credentials
    cache_bytes: int = 0


class ShardActor(StreamActor[ShardSpec]):
    """Holds a shard's slices, and answers lookups on them."""

    def serve(self, spec: ShardSpec) -> RunningServer:
        """See `StreamActor.serve`."""
        self._shard = self._load(spec)
        return _serve(spec, UntilLost(self._shard, self.end), may_wait=self._shard.may_wait)

    def measures(self) -> list[Measure]:
        """What the shard and its process tell of themselves."""
        return [*self._shard.measures(), *super().measures()]

    def _load(self, spec: ShardSpec) -> Shard:
        release_code_pages()
        tally = Tally(
            lambda total: self._controller.report.remote(self._deployment, spec.seat, total),
            _REPORT_SECONDS,
        )
        return Shard.load(spec.sources, spec.slices, tally.add, spec.cache_bytes)


def _serve(spec: ShardSpec, executor: LookupExecutor, *, may_wait: bool) -> RunningServer:
    socket = socket_path(spec.sockets, f"{spec.seat.shard}-{spec.seat.replica}")
    socket.unlink(missing_ok=True)  # It is there if the process before this one was killed.
    host = ray.util.get_node_ip_address()
    threads = _WAITING_THREADS if may_wait else _THREADS
    return serve_in_thread(
        executor, spec.credentials, threads=threads, unix_path=str(socket), host=host
    )
