"""The actor that a run is controlled by, as the driver, routers, shards and stages call it.

All of these load this module when they look for the actor, so it loads nothing of what it is made
of before it is made.
"""

from __future__ import annotations

import logging
import os
from contextlib import suppress
from typing import TYPE_CHECKING

from shardserve.batching.errors import NotFound

if TYPE_CHECKING:
    from shardserve.cluster.catalog_table import CatalogTable
    from shardserve.cluster.leases import RouterReport
    from shardserve.cluster.progress import Failure, Start
    from shardserve.cluster.run import Run
    from shardserve.cluster.shard_actor import ShardSpec
    from shardserve.cluster.stage_actor import StageSpec
    from shardserve.cluster.stage_placement import AnySeat
    from shardserve.cluster.stream_actor import ActorProcess
    from shardserve.cluster.table import RoutingTable
    from shardserve.cluster.versions import VersionId
    from shardserve.router.tls import Tls
    from shardserve.shards.address import Address
    from shardserve.shards.measures import Measure
    from shardserve.shards.model import ModelPlan

logger = logging.getLogger(__name__)

_LONG_POLL_SECONDS = 30.0
#: Well under a router's lease.
_ROUTER_POLL_SECONDS = 5.0


class Controller:
    """An asyncio Ray actor, named `Run.name`. It begins when it is made; see `ControlPlane`."""

    def __init__(self, run: Run, secret: bytes) -> None:
        from shardserve.cluster.control_plane import ControlPlane  # noqa: PLC0415

        self._secret = secret
        self._plane = ControlPlane(run, secret)
        self._deployer = self._plane.deployer

    # For the driver.

    async def wait_for_table(self, known: int) -> CatalogTable:
        """The table, as soon as its number is not `known`, or after a while as it is."""
        while (table := await self._plane.table(known, _LONG_POLL_SECONDS)) is None:
            pass
        return table

    async def wait_for_start(self, known: int) -> Start:
        """As `wait_for_table`, how far the start has come."""
        return await self._plane.start.wait(known, _LONG_POLL_SECONDS)

    async def renew(self, number: int, tls: Tls) -> None:
        """Have the doors show these certificates from now on. May be repeated; numbers rise."""
        self._plane.renew(number, tls)

    async def drain(self) -> None:
        """Have routers be ready no more, as probes ask it, and answer requests all the same."""
        self._plane.drain()

    async def end(self) -> None:
        """End routers and actors, which answer what has come in, and give back their room."""
        await self._plane.end()

    async def pid(self) -> int:
        """The controller's own process."""
        return os.getpid()

    async def process_of(self, version: VersionId, seat: AnySeat) -> ActorProcess:
        """The process of a seat that has registered."""
        return await self._deployer.of_version(version).process_of(seat)

    # For routers.

    async def secret(self) -> bytes:
        """The cluster's secret."""
        return self._secret

    async def tls(self) -> Tls | None:
        """What the doors show clients and ask of them, the key too; None for doors in the clear.

        The driver says it, for Ray keeps what an actor is made with.
        """
        return await self._plane.tls()

    async def wait_for_catalog(
        self, router: str, known: int, report: RouterReport
    ) -> CatalogTable | None:
        """As `wait_for_table`. A router says by it that it is there, and what it has.

        None while a controller that was made anew does not know yet what is configured.
        """
        self._plane.routers.heard(router, report)
        return await self._plane.table(known, _ROUTER_POLL_SECONDS)

    async def report_router(self, router: str, report: RouterReport) -> None:
        """A router has something new to say."""
        self._plane.routers.heard(router, report)

    async def router_failed(self, failure: Failure) -> None:
        """A router cannot start."""
        self._plane.router_failed(failure)

    async def left(self, router: str) -> None:
        """A router goes, and has nothing any more."""
        self._plane.left(router)

    async def plan(self, deployment: str) -> ModelPlan:
        """The plan of a deployment. Raises NotFound for one that is over."""
        return await self._deployer.deployment(deployment).plan()

    async def reload(self, config: bytes) -> Failure | None:
        """Serve what a serialised `ModelServerConfig` says from now on. What fails comes back."""
        return await self._plane.reload(config)

    async def measures(self) -> list[Measure]:
        """What all actors tell of themselves, by model, shard or group, and replica.

        Those that do not answer at once, as while they start, are left out.
        """
        return await self._deployer.measures()

    async def collected(self) -> bytes:
        """What all routers have counted together, a packed snapshot."""
        return await self._plane.collected()

    async def report_metrics(self, router: str, number: int, snapshot: bytes) -> None:
        """What a router has counted, as the table of that `collect` number asks for."""
        self._plane.metrics.reported(router, number, snapshot)

    # For the actors of deployments. Late news of one that is over is none.

    async def begins(self, deployment: str, seat: AnySeat) -> ShardSpec | StageSpec:
        """A process for a seat has started; what it has to be. NotFound where that is over."""
        return await self._deployer.deployment(deployment).begins(seat)

    async def wait_for_routing(self, deployment: str, known: int) -> RoutingTable:
        """As `wait_for_table`, of one deployment."""
        found = self._deployer.deployment(deployment)
        return await found.wait_for_routing(known, _LONG_POLL_SECONDS)

    async def report(self, deployment: str, seat: AnySeat, nbytes: int) -> None:
        """A seat has so many bytes of what it loads in memory."""
        with suppress(NotFound):
            self._deployer.deployment(deployment).report(seat, nbytes)

    async def verified(self, deployment: str, nbytes: int, total: int) -> None:
        """So many bytes more of the checkpoint, of `total`, have the right checksum."""
        with suppress(NotFound):
            self._deployer.deployment(deployment).verified(nbytes, total)

    async def refused(self, deployment: str, seat: AnySeat, failure: Failure) -> None:
        """A seat could not load its part; it tries again."""
        with suppress(NotFound):
            self._deployer.deployment(deployment).refused(seat, failure)

    async def ended(self, deployment: str, seat: AnySeat, failure: Failure) -> None:
        """A seat's process ends itself, for a reason that a new one may not have."""
        logger.error("deployment %s: %s ends: %s", deployment, seat, failure.message)

    async def register(self, deployment: str, seat: AnySeat, address: Address) -> None:
        """A seat serves at `address`. May be repeated."""
        with suppress(NotFound):
            self._deployer.deployment(deployment).register(seat, address)
