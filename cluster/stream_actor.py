"""What every actor with a stream of its own does: it begins, registers, stays, and stops.

Ray calls are for control only; requests come over the data plane. What such an actor has to be it
asks its controller, so Ray can make it again alone.
"""

from __future__ import annotations

import logging
import os
import sys
import threading
import time
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, Generic, NoReturn, TypeVar

import ray

from shardserve.cluster.progress import failure_of
from shardserve.cluster.stage_placement import AnySeat
from shardserve.shards.device_loss import DeviceLost
from shardserve.shards.measures import Measure, process_measures
from shardserve.shards.memory import peak_rss_bytes
from shardserve.shards.server import RunningServer

logger = logging.getLogger(__name__)

#: Where controllers have their names in Ray.
NAMESPACE = "shardserve"
#: Between two registrations. The first is at once; the others tell a controller that took this
#: actor for dead that it is not.
_REGISTER_SECONDS = 5.0
#: Between an attempt to begin that failed and the next one.
_RETRY_SECONDS = 2.0
#: What the controller may take to hear why a process ends.
_LAST_WORDS_SECONDS = 1.0

Spec = TypeVar("Spec")


@dataclass(frozen=True)
class Post:
    """Whom an actor reports to: a controller by its name, and there a deployment."""

    controller: str
    deployment: str


@dataclass(frozen=True)
class ActorProcess:
    """An actor's process: its id, the most memory it ever had resident, what it has imported."""

    pid: int
    peak_bytes: int
    packages: tuple[str, ...]


class StreamActor(ABC, Generic[Spec]):
    """Serves and registers when it is made; lives as long as its server does.

    The controller of its post knows what this seat has to be.
    """

    def __init__(self, seat: AnySeat, post: Post) -> None:
        self._seat = seat
        self._deployment = post.deployment
        self._controller: Any = ray.get_actor(post.controller, NAMESPACE)
        spec: Spec = ray.get(self._controller.begins.remote(self._deployment, seat))
        try:
            self._server = self.serve(spec)
        except Exception as error:  # noqa: BLE001 (it is reported, and ends the process)
            ray.get(self._controller.refused.remote(self._deployment, seat, failure_of(error)))
            _give_up()
        self._stopping = False
        self._register(seat)
        threading.Thread(target=self._stay, args=(seat,), name="keeper", daemon=True).start()

    @abstractmethod
    def serve(self, spec: Spec) -> RunningServer:
        """Become what the controller says, and listen."""

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

    def process(self) -> ActorProcess:
        """What this process is, for reports."""
        packages = {name.partition(".")[0] for name in sys.modules}
        return ActorProcess(os.getpid(), peak_rss_bytes(), tuple(sorted(packages)))

    def measures(self) -> list[Measure]:
        """What this process, and what it serves, tell of themselves."""
        return process_measures()

    def end(self, error: DeviceLost) -> None:
        """End the process, so that Ray makes the actor again; routers ask other replicas."""
        logger.critical("%s: %s; the process ends", self._seat, error.message)
        told = self._controller.ended.remote(self._deployment, self._seat, failure_of(error))
        ray.wait([told], timeout=_LAST_WORDS_SECONDS)
        os._exit(1)

    def _register(self, seat: AnySeat) -> None:
        self._controller.register.remote(self._deployment, seat, self._server.address)

    def _stay(self, seat: AnySeat) -> None:
        """Register, again and again. A process whose server has died must not look alive."""
        while not self._server.join(_REGISTER_SECONDS):
            self._register(seat)
        if not self._stopping:
            logger.critical("%s: the server's thread has died, so the process ends", seat)
            os._exit(1)


def _give_up() -> NoReturn:
    """End the process after a while, so that Ray makes the actor again, and it tries again.

    What is raised while an actor is made would end it for good.
    """
    time.sleep(_RETRY_SECONDS)
    os._exit(1)
