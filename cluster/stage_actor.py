"""One replica of a group of stage actors: a Ray actor that runs regions of a model on one device.

All routers' requests for its regions meet in its queues. What it has to be it asks its controller.
"""

from __future__ import annotations

import math
import os
from dataclasses import dataclass
from hashlib import sha256

import ray

from shardserve.cluster.private_directory import socket_path
from shardserve.cluster.stage_placement import StageSeat
from shardserve.cluster.stream_actor import StreamActor
from shardserve.shards.handshake import Credentials
from shardserve.shards.model import ModelPlan
from shardserve.shards.server import RunningServer, StreamServer, start_in_thread
from shardserve.shards.stage_work import StageService


@dataclass(frozen=True)
class StageSpec:
    """All that a stage actor is. `run` tells apart the sockets of different runs of the server."""

    run: str
    seat: StageSeat
    plan: ModelPlan
    credentials: Credentials


class StageActor(StreamActor[StageSpec]):
    """Holds what regions need of a model, and runs them on one device."""

    def serve(self, spec: StageSpec) -> RunningServer:
        """See `StreamActor.serve`."""
        # A GPU may be shared with other processes, which TensorFlow leaves nothing otherwise.
        os.environ.setdefault("TF_FORCE_GPU_ALLOW_GROWTH", "true")
        from shardserve.router.stage_loading import load_stages  # noqa: PLC0415 (TensorFlow)

        group = spec.plan.stage_group(spec.seat.group)
        host = load_stages(spec.plan, group, cores=max(1, math.ceil(group.num_cpus)))
        socket = socket_path(spec.run, f"{_short(spec.seat.group)}-{spec.seat.replica}")
        socket.unlink(missing_ok=True)  # It is there if the process before this one was killed.
        return start_in_thread(
            lambda: StreamServer(StageService(host()), spec.credentials),
            unix_path=str(socket),
            host=ray.util.get_node_ip_address(),
        )


def _short(group: str) -> str:
    """A group's name for a socket, whose path may not be long."""
    return sha256(group.encode()).hexdigest()[:12]
