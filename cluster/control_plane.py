"""Keeps a run's models as they are configured, and tells routers of them.

Crash-only: all that it is told it is told when it is made, but for a configuration that came by a
reload, which Ray keeps. When its process dies, Ray ends its actors and makes it anew, and the new
one plans and places again; routers serve on with what they have, and say what that is.
"""

from __future__ import annotations

import asyncio
import logging
import os
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial

from shardserve.batching.errors import ServingError
from shardserve.cluster import fleet
from shardserve.cluster.catalog_table import CatalogTable, entries, following, table_changes
from shardserve.cluster.configured import ConfiguredModel
from shardserve.cluster.kept import Kept
from shardserve.cluster.manager import Manager
from shardserve.cluster.model_source import ModelSource, first_models, follow_file
from shardserve.cluster.model_views import ModelView, problems_of, start_error, warnings_of
from shardserve.cluster.options import Application
from shardserve.cluster.progress import Failure, Start, failure_of, started
from shardserve.cluster.published import Published
from shardserve.cluster.ray_deployer import RayDeployer
from shardserve.cluster.router_app import RouterApp
from shardserve.cluster.router_metrics import RouterMetrics
from shardserve.cluster.router_watch import RouterWatch
from shardserve.cluster.run import Run
from shardserve.cluster.site import Site
from shardserve.router.tls import Tls

logger = logging.getLogger(__name__)

#: What routers may take to say what they have counted.
_COLLECT_SECONDS = 1.0
#: What Ray keeps of a run: the configuration of a reload, and that its doors have been open.
_RELOADED, _OPENED = "reloaded", "opened"


class ControlPlane:
    """Of one run. It begins when it is made, on the running event loop."""

    def __init__(self, run: Run, secret: bytes) -> None:
        self._run = run
        self._kept = Kept(run.name)
        #: One, so that what is kept last is what was configured last.
        self._keeper = ThreadPoolExecutor(1, "keeper")
        self._is_reloaded = False
        application = run.application
        self._app = None if application is None else _app_of(application)
        self._source = ModelSource(run.models, run.defaults)
        # A controller that is made anew starts from a number not used before.
        self.catalog = Published(CatalogTable(time.time_ns() // 1_000_000))
        self.start = Published(Start(0))
        self.routers = RouterWatch(run.routers)
        self.metrics = RouterMetrics()
        self._views: Mapping[str, ModelView] = {}
        self._is_adopted = asyncio.Event()
        site = Site(run.name, secret, can_grow=run.can_grow, routers=run.routers)
        self.deployer = RayDeployer(site, self.routers, self._publish)
        roots = run.models.roots
        self._manager = Manager(self.deployer, run.manager, self._changed, roots=roots)
        self._tasks = [
            asyncio.ensure_future(work)
            for work in (
                self._serve(),
                self._bring_up_routers(),
                self.routers.expire(self.metrics.gone),
            )
        ]

    async def reload(self, config: bytes) -> Failure | None:
        """Serve what a serialised `ModelServerConfig` says from now on. What fails comes back."""
        failure = None
        try:
            models = await asyncio.to_thread(self._source.requested, config)
            await self._manager.configure(models, partial(self._keep_reload, config))
        except ServingError as error:
            failure = failure_of(error)
        # Whoever has the answer may ask any router for what it says, labels too.
        self._changed(self._manager.models)
        await self.routers.follow(self.catalog.latest.number)
        return failure

    async def table(self, known: int, seconds: float) -> CatalogTable | None:
        """See `Published.wait`; None while it is not known yet what is configured.

        A router that followed a table without models would drop all that it serves.
        """
        try:
            async with asyncio.timeout(seconds):
                await self._is_adopted.wait()
        except TimeoutError:
            return None
        return await self.catalog.wait(known, seconds)

    @property
    def tls(self) -> Tls | None:
        """What the routers' doors show clients and ask of them."""
        return self._run.application.doors.tls if self._run.application is not None else None

    def router_failed(self, failure: Failure) -> None:
        """A router cannot start; that is the end of a start."""
        logger.error("a router cannot start: %s", failure.message)
        self._progress(failure=failure)

    def left(self, router: str) -> None:
        """A router goes, and has nothing any more."""
        self.routers.left(router)
        self.metrics.gone(router)

    async def collected(self) -> bytes:
        """What all routers have counted together, as far as they answer in a moment."""
        number = self.catalog.latest.collect + 1
        self._publish(collect=number)
        return await self.metrics.collected(number, self.routers.ids, _COLLECT_SECONDS)

    async def end(self) -> None:
        """End routers and actors, which answer what has come in, and give back their room."""
        if self._app is not None:
            await self._app.end()
        for task in self._tasks:
            task.cancel()
        self.routers.end()
        await self._manager.abandon()
        await self.deployer.stop()
        await asyncio.to_thread(fleet.release_all, self._run.name)
        await self._on_keeper(partial(self._kept.forget, _RELOADED, _OPENED))

    async def _serve(self) -> None:
        """Serve what is configured, for ever. A start that fails is told, and is the last one."""
        try:
            await asyncio.to_thread(fleet.release_all, self._run.name)
            async with asyncio.TaskGroup() as group:
                group.create_task(self._manager.run())
                await self._begin()
                group.create_task(
                    follow_file(self._source, self._configure_from_file, self._publish_all)
                )
        except Exception:
            logger.critical("the controller ends, to be made anew", exc_info=True)
            os._exit(1)

    async def _begin(self) -> None:
        was_open = await asyncio.to_thread(self._kept.get, _OPENED) is not None
        try:
            await self._manager.configure(await self._first_models(was_open))
        except Exception as error:
            self._progress(failure=failure_of(start_error(error)))
            if not was_open:
                return
            logger.exception("not all is served again")
        await self._on_keeper(partial(self._kept.put, _OPENED, b"1"))
        self._manager.started()
        self.routers.started()
        self._publish(opens=True)
        self._progress(is_settled=True)

    async def _first_models(self, was_open: bool) -> Sequence[ConfiguredModel]:
        reloaded = await asyncio.to_thread(self._kept.get, _RELOADED)
        self._is_reloaded = reloaded is not None
        return await first_models(self._source, reloaded, was_open=was_open)

    async def _configure_from_file(self, models: Sequence[ConfiguredModel]) -> None:
        await self._manager.configure(models, self._forget_reload)

    async def _keep_reload(self, config: bytes) -> None:
        self._is_reloaded = True
        await self._on_keeper(partial(self._kept.put, _RELOADED, config))

    async def _forget_reload(self) -> None:
        if self._is_reloaded:
            self._is_reloaded = False
            await self._on_keeper(partial(self._kept.forget, _RELOADED))

    async def _on_keeper(self, call: Callable[[], None]) -> None:
        await asyncio.get_running_loop().run_in_executor(self._keeper, call)

    async def _bring_up_routers(self) -> None:
        try:
            if self._app is not None:
                await self._app.start()
        except Exception as error:  # noqa: BLE001 (whoever waits for the start gets it)
            self._progress(failure=failure_of(error))
        else:
            self._progress(is_routed=True)

    def _changed(self, views: Mapping[str, ModelView]) -> None:
        self._views = views
        self._publish()
        self._is_adopted.set()

    def _publish(self, *, opens: bool | None = None, collect: int | None = None) -> int:
        models = entries(self._views, self.deployer.servings)
        problems = tuple(filter(None, (self._source.problem, *problems_of(self._views))))
        table = following(
            self.catalog.latest, models, problems=problems, opens=opens, collect=collect
        )
        for line in table_changes(self.catalog.latest, table):
            logger.info("table %d: %s", table.number, line)
        self.catalog.publish(table)
        self._progress(versions=self.deployer.progress, warnings=warnings_of(self._views))
        return table.number

    def _publish_all(self) -> None:
        self._publish()

    def _progress(self, **changed: object) -> None:
        self.start.publish(started(self.start.latest, **changed))


def _app_of(application: Application) -> RouterApp:
    return RouterApp(partial(_deploy, application), partial(_withdraw, application))


def _deploy(application: Application) -> None:
    from shardserve.cluster import serve_app  # noqa: PLC0415 (slow to import; the plan goes first)

    serve_app.deploy(application)


def _withdraw(application: Application) -> None:
    from shardserve.cluster import serve_app  # noqa: PLC0415

    serve_app.withdraw(application)
