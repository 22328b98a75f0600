"""One of a group's stage actors: a Ray actor that runs stages of a model on one device.

All routers' requests for its regions, sequences and loops meet there.
"""

from __future__ import annotations

import asyncio
import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from hashlib import sha256
from typing import TYPE_CHECKING, Any

import ray

from shardserve.cluster.private_directory import socket_path
from shardserve.cluster.routing import Routing
from shardserve.cluster.stage_placement import StageSeat
from shardserve.cluster.stream_actor import StreamActor
from shardserve.cluster.table import RoutingTable
from shardserve.shards.handshake import Credentials
from shardserve.shards.measures import Measure
from shardserve.shards.messages import ShardChannel
from shardserve.shards.model import ModelPlan
from shardserve.shards.server import RunningServer, StreamServer, start_in_thread
from shardserve.shards.stage_groups import StageGroup
from shardserve.shards.stage_work import StageService

if TYPE_CHECKING:
    from shardserve.router.stage_host import StageHost
    from shardserve.router.stage_loading import LoadedStages


@dataclass(frozen=True)
class StageSpec:
    """All that a stage actor is. `sockets` begins the names of its deployment's sockets.

    The secret is for the shards that its stages may look up in.
    """

    sockets: str
    seat: StageSeat
    plan: ModelPlan
    credentials: Credentials
    secret: bytes


class StageActor(StreamActor[StageSpec]):
    """Holds what stages need of a model, and runs them on one device."""

    def serve(self, spec: StageSpec) -> RunningServer:
        """See `StreamActor.serve`."""
        loaded = _load(spec.plan, spec.plan.stage_group(spec.seat.group))
        asked = self._controller.wait_for_routing.remote(self._deployment, -1)
        table: RoutingTable = ray.get(asked)
        socket = socket_path(spec.sockets, f"{_short(spec.seat.group)}-{spec.seat.replica}")
        socket.unlink(missing_ok=True)  # It is there if the process before this one was killed.

        def make() -> StreamServer:
            host = self._host(loaded, spec, table)
            return StreamServer(StageService(host), spec.credentials)

        return start_in_thread(make, unix_path=str(socket), host=ray.util.get_node_ip_address())

    def _host(self, loaded: LoadedStages, spec: StageSpec, table: RoutingTable) -> StageHost:
        """On the event loop of the server."""
        channels: Sequence[ShardChannel] = ()
        if loaded.needs_shards:
            routing = Routing(spec.plan, table, spec.secret, stages=False)
            tables = partial(_next_table, self._controller, self._deployment)
            self._following = asyncio.ensure_future(routing.follow(tables))
            channels = routing.channels
        from shardserve.router.stage_loading import host_of  # noqa: PLC0415 (TensorFlow)

        self._hosting = host_of((loaded, channels))
        return self._hosting

    def measures(self) -> list[Measure]:
        """What its queues and its process tell of themselves."""
        return [*self._hosting.measures(), *super().measures()]


async def _next_table(controller: Any, deployment: str, known: int) -> RoutingTable:
    """Not a method: Ray would take the class for one whose methods all run on one event loop."""
    table: RoutingTable = await controller.wait_for_routing.remote(deployment, known)
    return table


def _load(plan: ModelPlan, group: StageGroup) -> LoadedStages:
    # Otherwise TensorFlow takes all of a GPU that others may have a part in.
    os.environ.setdefault("TF_FORCE_GPU_ALLOW_GROWTH", "true")
    from shardserve.router.session import (  # noqa: PLC0415 (TensorFlow)
        Parallelism,
        StageThreads,
        start_tensorflow,
    )
    from shardserve.router.stage_loading import load_stages  # noqa: PLC0415

    parallelism = Parallelism(intra_op_threads=max(1, math.ceil(group.num_cpus)))
    start_tensorflow(parallelism)
    # For as many batches as the device may find out that it should have in flight.
    threads = StageThreads(2 * (os.cpu_count() or 1))
    return load_stages(plan, group, threads, parallelism)


def _short(group: str) -> str:
    """A group's name for a socket, whose path may not be long."""
    return sha256(group.encode()).hexdigest()[:12]
