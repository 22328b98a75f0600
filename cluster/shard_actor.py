"""One replica of one shard: a Ray actor that holds its slices and answers on a stream of its own.

Ray calls are for control only; lookups come over the data plane. The process never loads
TensorFlow. What it has to be it asks its controller, so Ray can make it again alone.
"""

from __future__ import annotations

import logging
import os
import sys
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import NoReturn

import ray

from shardserve.cluster.placement import Seat
from shardserve.cluster.private_directory import socket_path
from shardserve.cluster.progress import failure_of
from shardserve.shards.device_loss import DeviceLost, UntilLost
from shardserve.shards.handshake import Credentials
from shardserve.shards.layout import Slice
from shardserve.shards.measures import Measure, process_measures
from shardserve.shards.memory import peak_rss_bytes, release_code_pages
from shardserve.shards.server import RunningServer, serve_in_thread
from shardserve.shards.shard import Shard
from shardserve.shards.tables import TableSource

logger = logging.getLogger(__name__)

#: Where controllers have their names in Ray.
NAMESPACE = "shardserve"
#: Between two registrations. The first is at once; the others tell a controller that took this
#: actor for dead that it is not.
_REGISTER_SECONDS = 5.0
_REPORT_SECONDS = 0.2
#: Large requests at work at once; more where they wait for a disk, which does many reads at a time.
_THREADS = 2
_WAITING_THREADS = 8
#: Between an attempt to load that failed and the next one.
_RETRY_SECONDS = 2.0
#: What the controller may take to hear why a process ends.
_LAST_WORDS_SECONDS = 1.0


@dataclass(frozen=True)
class ShardSpec:
    """All that a shard actor is. `run` tells apart the sockets of different runs of the server."""

    run: str
    seat: Seat
    slices: tuple[Slice, ...]
    sources: Mapping[str, TableSource]
    credentials: Credentials
    cache_bytes: int = 0


@dataclass(frozen=True)
class ShardProcess:
    """A shard's process: its id, the most memory it ever had resident, what it has imported."""

    pid: int
    peak_bytes: int
    packages: tuple[str, ...]


class ShardActor:
    """Loads, serves and registers when it is made; lives as long as its server does.

    `controller` names the `Controller` that knows what this seat has to hold.
    """

    def __init__(self, seat: Seat, controller: str) -> None:
        self._seat = seat
        self._controller = ray.get_actor(controller, NAMESPACE)
        spec: ShardSpec = ray.get(self._controller.begins.remote(seat))
        try:
            self._shard = self._load(spec)
            self._server = _serve(spec, self._shard, self._end)
        except Exception as error:  # noqa: BLE001 (it is reported, and ends the process)
            ray.get(self._controller.refused.remote(seat, failure_of(error)))
            _give_up()
        self._stopping = False
        self._register(seat)
        threading.Thread(target=self._stay, args=(seat,), name="keeper", daemon=True).start()

    def serves_as(self, instance: str) -> bool:
        """Whether this is the process that registered as `instance`, and its server is up."""
        return self._server.address.instance == instance and not self._server.join(0.0)

    def until_gone(self, instance: str) -> None:
        """Return when this process does not serve as `instance`; as a rule it dies meanwhile."""
        if self.serves_as(instance):
            self._server.join()

    def stop(self) -> None:
        """Answer what has come in, and serve no more. The process waits to be killed."""
        self._stopping = True
        self._server.close()

    def process(self) -> ShardProcess:
        """What this process is, for reports."""
        packages = {name.partition(".")[0] for name in sys.modules}
        return ShardProcess(os.getpid(), peak_rss_bytes(), tuple(sorted(packages)))

    def measures(self) -> list[Measure]:
        """What the shard and its process tell of themselves."""
        return [*self._shard.measures(), *process_measures()]

    def _end(self, error: DeviceLost) -> None:
        """End the process, so that Ray makes the actor again; routers ask other replicas."""
        logger.critical("%s: %s; the process ends", self._seat, error.message)
        told = self._controller.ended.remote(self._seat, failure_of(error))
        ray.wait([told], timeout=_LAST_WORDS_SECONDS)
        os._exit(1)

    def _load(self, spec: ShardSpec) -> Shard:
        release_code_pages()
        tally = Tally(
            lambda total: self._controller.report.remote(spec.seat, total), _REPORT_SECONDS
        )
        return Shard.load(spec.sources, spec.slices, tally.add, spec.cache_bytes)

    def _register(self, seat: Seat) -> None:
        self._controller.register.remote(seat, self._server.address)

    def _stay(self, seat: Seat) -> None:
        """Register, again and again. A process whose server has died must not look alive."""
        while not self._server.join(_REGISTER_SECONDS):
            self._register(seat)
        if not self._stopping:
            logger.critical("%s: the server's thread has died, so the process ends", seat)
            os._exit(1)


def _serve(spec: ShardSpec, shard: Shard, lost: Callable[[DeviceLost], None]) -> RunningServer:
    socket = socket_path(spec.run, spec.seat.shard, spec.seat.replica)
    socket.unlink(missing_ok=True)  # It is there if the process before this one was killed.
    host = ray.util.get_node_ip_address()
    threads = _WAITING_THREADS if shard.may_wait else _THREADS
    executor = UntilLost(shard, lost)
    return serve_in_thread(
        executor, spec.credentials, threads=threads, unix_path=str(socket), host=host
    )


def _give_up() -> NoReturn:
    """End the process after a while, so that Ray makes the actor again, and it tries again.

    What is raised while an actor is made would end it for good.
    """
    time.sleep(_RETRY_SECONDS)
    os._exit(1)


class Tally:
    """Adds up what was loaded, and reports the sum, at most once in `seconds`."""

    def __init__(self, report: Callable[[int], object], seconds: float) -> None:
        self._report = report
        self._seconds = seconds
        self._due = 0.0
        self._total = 0

    def add(self, nbytes: int) -> None:
        """So many bytes more."""
        self._total += nbytes
        now = time.monotonic()
        if now >= self._due:
            self._due = now + self._seconds
            self._report(self._total)
