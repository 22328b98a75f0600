"""The control plane of a run: keeps its models as they are configured, and tells routers of them.

Crash-only: all that it is told it is told when it is made, but for a configuration that came by a
reload, which Ray keeps. When its process dies, Ray ends its actors and makes it anew, and the new
one plans and places again; routers serve on with what they have, and say what that is.
"""

from __future__ import annotations

import asyncio
import logging
import os
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field

from shardserve.batching.errors import NotFound, ServingError
from shardserve.cluster import fleet
from shardserve.cluster.catalog_table import CatalogTable, entries, following, table_changes
from shardserve.cluster.configured import ConfiguredModel
from shardserve.cluster.kept import Kept
from shardserve.cluster.leases import RouterReport
from shardserve.cluster.manager import Manager
from shardserve.cluster.model_options import ModelOptions
from shardserve.cluster.model_source import ModelSource, follow_file
from shardserve.cluster.model_views import ModelView, start_error, warnings_of
from shardserve.cluster.options import Application, ManagerOptions, Models
from shardserve.cluster.progress import Failure, Start, failure_of, started
from shardserve.cluster.published import Published
from shardserve.cluster.ray_deployer import RayDeployer
from shardserve.cluster.router_watch import RouterWatch
from shardserve.cluster.shard_actor import ShardSpec
from shardserve.cluster.stage_actor import StageSpec
from shardserve.cluster.stage_placement import AnySeat
from shardserve.cluster.stream_actor import ActorProcess
from shardserve.cluster.table import RoutingTable
from shardserve.cluster.versions import VersionId
from shardserve.shards.address import Address
from shardserve.shards.measures import Measure
from shardserve.shards.model import ModelPlan

logger = logging.getLogger(__name__)

_LONG_POLL_SECONDS = 30.0
#: Well under a router's lease.
_ROUTER_POLL_SECONDS = 5.0
#: What Ray keeps of a run: the configuration of a reload, and that its doors have been open.
_RELOADED, _OPENED = "reloaded", "opened"


@dataclass(frozen=True)
class Run:
    """One run of the server.

    Where the cluster `can_grow`, room for actors is waited for. Without an `application` there are
    no routers of ours.
    """

    name: str
    models: Models
    can_grow: bool
    defaults: ModelOptions = ModelOptions()  # noqa: RUF009 (frozen)
    manager: ManagerOptions = field(default_factory=ManagerOptions)
    application: Application | None = None

    @property
    def routers(self) -> int:
        """How many routers there are to be."""
        return self.application.ray.routers if self.application is not None else 0


class Controller:
    """An asyncio Ray actor, named `Run.name`. It begins when it is made."""

    def __init__(self, run: Run, secret: bytes) -> None:
        self._run = run
        self._secret = secret
        self._kept = Kept(run.name)
        self._source = ModelSource(run.models, run.defaults)
        # A controller that is made anew starts from a number not used before.
        self._catalog = Published(CatalogTable(time.time_ns() // 1_000_000))
        self._start = Published(Start(0))
        self._views: Mapping[str, ModelView] = {}
        self._routers = RouterWatch(run.routers)
        self._deployer = RayDeployer(
            run.name,
            secret,
            self._routers,
            self._publish,
            can_grow=run.can_grow,
            room_for=run.routers,
        )
        roots = run.models.roots
        self._manager = Manager(self._deployer, run.manager, self._changed, roots=roots)
        self._tasks = [
            asyncio.ensure_future(work)
            for work in (self._serve(), self._bring_up_routers(), self._routers.expire())
        ]

    async def secret(self) -> bytes:
        """The cluster's secret, for routers."""
        return self._secret

    async def pid(self) -> int:
        """The controller's own process."""
        return os.getpid()

    async def wait_for_table(self, known: int) -> CatalogTable:
        """The table, as soon as its number is not `known`, or after a while as it is."""
        return await self._catalog.wait(known, _LONG_POLL_SECONDS)

    async def wait_for_start(self, known: int) -> Start:
        """As `wait_for_table`, how far the start has come."""
        return await self._start.wait(known, _LONG_POLL_SECONDS)

    async def wait_for_catalog(self, router: str, known: int, report: RouterReport) -> CatalogTable:
        """As `wait_for_table`, for a router, which says by it that it is there, and what it has."""
        self._routers.heard(router, report)
        return await self._catalog.wait(known, _ROUTER_POLL_SECONDS)

    async def report_router(self, router: str, report: RouterReport) -> None:
        """A router has something new to say."""
        self._routers.heard(router, report)

    async def reload(self, config: bytes) -> Failure | None:
        """Serve what a serialised `ModelServerConfig` says from now on. What fails comes back."""
        try:
            models = await asyncio.to_thread(self._source.requested, config)
            await self._manager.configure(models, lambda: self._kept.put(_RELOADED, config))
        except ServingError as error:
            return failure_of(error)
        return None

    async def measures(self) -> list[Measure]:
        """What all actors tell of themselves, by model, shard or group, and replica.

        Those that do not answer at once, as while they start, are left out.
        """
        return await self._deployer.measures()

    async def plan(self, deployment: str) -> ModelPlan:
        """The plan of a deployment. Raises NotFound for one that is over."""
        return await self._deployer.deployment(deployment).plan()

    async def process_of(self, version: VersionId, seat: AnySeat) -> ActorProcess:
        """The process of a seat that has registered."""
        return await self._deployer.of_version(version).process_of(seat)

    async def wait_for_routing(self, deployment: str, known: int) -> RoutingTable:
        """As `wait_for_table`, of one deployment."""
        found = self._deployer.deployment(deployment)
        return await found.wait_for_routing(known, _LONG_POLL_SECONDS)

    async def begins(self, deployment: str, seat: AnySeat) -> ShardSpec | StageSpec:
        """A process for a seat has started; what it has to be. NotFound where that is over."""
        return await self._deployer.deployment(deployment).begins(seat)

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

    async def end(self) -> None:
        """End routers and actors, which answer what has come in, and give back their room."""
        if self._run.application is not None:
            await asyncio.to_thread(_withdraw, self._run.application)
        for task in self._tasks:
            task.cancel()
        await self._manager.abandon()
        await self._deployer.stop()
        await asyncio.to_thread(fleet.release_all, self._run.name)
        await asyncio.to_thread(self._kept.forget, _RELOADED, _OPENED)

    async def _serve(self) -> None:
        """Serve what is configured, for ever. A start that fails is told, and is the last one."""
        try:
            await asyncio.to_thread(fleet.release_all, self._run.name)
            polling = asyncio.ensure_future(self._manager.run())
            self._tasks.append(polling)
            await self._begin()
            await follow_file(self._source, self._configure_from_file)
            await polling
        except Exception:
            logger.critical("the controller ends, to be made anew", exc_info=True)
            os._exit(1)

    async def _begin(self) -> None:
        was_open = await asyncio.to_thread(self._kept.get, _OPENED) is not None
        try:
            await self._manager.configure(await asyncio.to_thread(self._first_models, was_open))
        except Exception as error:
            self._progress(failure=failure_of(start_error(error)))
            if not was_open:
                return
            logger.exception("not all is served again")
        await asyncio.to_thread(self._kept.put, _OPENED, b"1")
        self._manager.started()
        self._routers.started()
        self._publish(opens=True)
        self._progress(is_settled=True)

    def _first_models(self, was_open: bool) -> Sequence[ConfiguredModel]:
        """What was last configured, as far as is known."""
        reloaded = self._kept.get(_RELOADED)
        if reloaded is not None:
            return self._source.requested(reloaded)
        if was_open and self._source.is_polled:
            with suppress(ServingError):
                return self._source.read_again()
        return self._source.at_start()

    async def _configure_from_file(self, models: Sequence[ConfiguredModel]) -> None:
        await self._manager.configure(models, lambda: self._kept.forget(_RELOADED))

    async def _bring_up_routers(self) -> None:
        try:
            if self._run.application is not None:
                await asyncio.to_thread(_deploy, self._run.application)
        except Exception as error:  # noqa: BLE001 (whoever waits for the start gets it)
            self._progress(failure=failure_of(error))
        else:
            self._progress(is_routed=True)

    def _changed(self, views: Mapping[str, ModelView]) -> None:
        self._views = views
        self._publish()

    def _publish(self, *, opens: bool | None = None) -> int:
        models = entries(self._views, self._deployer.servings)
        table = following(self._catalog.latest, models, opens=opens)
        for line in table_changes(self._catalog.latest, table):
            logger.info("table %d: %s", table.number, line)
        self._catalog.publish(table)
        self._progress(versions=self._deployer.progress, warnings=warnings_of(self._views))
        return table.number

    def _progress(self, **changed: object) -> None:
        self._start.publish(started(self._start.latest, **changed))


def _deploy(application: Application) -> None:
    from shardserve.cluster import serve_app  # noqa: PLC0415 (slow to import; the plan goes first)

    serve_app.deploy(application)


def _withdraw(application: Application) -> None:
    from shardserve.cluster import serve_app  # noqa: PLC0415

    serve_app.withdraw(application)
