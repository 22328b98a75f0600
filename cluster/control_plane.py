"""Keeps a run's models as they are configured, and tells routers of them.

Crash-only: all that it is told it is told when it is made, but for the configuration that came
last, by a reload or by the file, which Ray keeps. When its process dies, Ray ends its actors and
makes it anew, and the new one plans and places again; routers serve on with what they have, and say
what that is.
"""

from __future__ import annotations

import asyncio
import logging
import os
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial

from shardserve.batching.errors import ServingError
from shardserve.cluster import fleet
from shardserve.cluster.awaited_tls import AwaitedTls
from shardserve.cluster.catalog_table import CatalogTable, entries, following, table_changes
from shardserve.cluster.configured import ConfiguredModel
from shardserve.cluster.manager import Manager
from shardserve.cluster.memory import Memory
from shardserve.cluster.model_source import ModelSource, first_models, follow_file
from shardserve.cluster.model_views import ModelView, problems_of, start_error, warnings_of
from shardserve.cluster.progress import Failure, Start, failure_of, started
from shardserve.cluster.published import Published
from shardserve.cluster.ray_deployer import RayDeployer
from shardserve.cluster.router_app import app_of
from shardserve.cluster.router_metrics import RouterMetrics
from shardserve.cluster.router_watch import RouterWatch
from shardserve.cluster.run import Run
from shardserve.cluster.serve_ingress import ServeIngress
from shardserve.cluster.site import Site
from shardserve.router.tls import Tls

logger = logging.getLogger(__name__)

#: What routers may take to say what they have counted.
_COLLECT_SECONDS = 1.0
#: What telling Ray why the controller ends may take.
_LAST_WORDS_SECONDS = 5.0


def _die() -> None:
    os._exit(1)


class ControlPlane:
    """Of one run. It begins when it is made, on the running event loop."""

    def __init__(self, run: Run, secret: bytes, die: Callable[[], None] = _die) -> None:
        """`die` ends the process."""
        self._run = run
        self._die = die
        self._memory = Memory(run.name)
        application = run.application
        self._app = None if application is None else app_of(application)
        self._tls = AwaitedTls(application)
        self._source = ModelSource(run.models, run.defaults)
        # A controller that is made anew starts from a number not used before.
        self.catalog = Published(CatalogTable(time.time_ns() // 1_000_000))
        self.start = Published(Start(0))
        self.routers = RouterWatch(run.routers)
        self.metrics = RouterMetrics()
        self._views: Mapping[str, ModelView] = {}
        self._is_adopted = asyncio.Event()
        site = Site(
            run.name,
            secret,
            can_grow=run.can_grow,
            routers=run.routers,
            sessions=run.sessions,
        )
        self.deployer = RayDeployer(site, self.routers, self._publish, self._progressed)
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
            await self._manager.configure(models, partial(self._memory.reloads, config))
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

    def renew(self, number: int, tls: Tls) -> None:
        """Have the routers' doors show these certificates. May be repeated; numbers rise."""
        if number > self.catalog.latest.renewed:
            self._tls.say(tls)
            self._publish(renewed=number)

    async def tls(self) -> Tls | None:
        """What the routers' doors show clients and ask of them, once it is known."""
        return await self._tls.latest()

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

    def drain(self) -> None:
        """Have routers be ready no more, as probes ask it. Requests are answered still."""
        self._publish(draining=True)

    async def end(self) -> None:
        """End routers and actors, which answer what has come in, and give back their room."""
        await self._end_routers()
        for task in self._tasks:
            task.cancel()
        self.routers.end()
        await self._manager.abandon()
        await self.deployer.stop()
        await asyncio.to_thread(fleet.release_all, self._run.name)
        await self._memory.forget()

    async def _end_routers(self) -> None:
        """Whatever becomes of that: actors end in order all the same."""
        if self._app is None:
            return
        try:
            await self._app.end()
        except Exception:
            logger.exception("the routers are not ended")

    async def _serve(self) -> None:
        """Serve what is configured, for ever. What nobody expected ends that, and is told."""
        try:
            await self._memory.recall()
            await asyncio.to_thread(fleet.release_all, self._run.name)
            async with asyncio.TaskGroup() as group:
                group.create_task(self._manager.run())
                await self._begin()
                group.create_task(
                    follow_file(self._source, self._configure_from_file, self._publish_all)
                )
        except Exception as error:
            logger.critical("the controller ends", exc_info=True)
            await self._fail(error)

    async def _fail(self, error: Exception) -> None:
        """Tell why the controller ends: to who waits for the start, else to its next life."""
        failure = failure_of(error)
        self._progress(failure=failure)
        if not self._memory.has_opened:
            return
        try:
            async with asyncio.timeout(_LAST_WORDS_SECONDS):
                await self._memory.fails(failure.message)
        finally:
            self._die()

    async def _begin(self) -> None:
        try:
            await self._manager.configure(await self._first_models())
        except Exception as error:
            self._progress(failure=failure_of(start_error(error)))
            if not self._memory.has_opened:
                return
            logger.exception("not all is served again")
        await self._memory.opened()
        self._manager.started()
        self.routers.started()
        self._publish(opens=True)
        self._progress(is_settled=True)

    async def _first_models(self) -> Sequence[ConfiguredModel]:
        known = self._memory
        return await first_models(
            self._source, known.reloaded, known.followed, was_open=known.has_opened
        )

    async def _configure_from_file(self, models: Sequence[ConfiguredModel]) -> None:
        text = self._source.text
        await self._manager.configure(models, partial(self._memory.follows, text))

    async def _bring_up_routers(self) -> None:
        try:
            ingress = ServeIngress() if self._app is None else await self._app.start()
        except Exception as error:
            # Whoever waits for the start gets it; in a life after that nobody does.
            logger.exception("the routers do not start")
            self._progress(failure=failure_of(error))
        else:
            self._progress(is_routed=True, ingress=ingress)

    def _changed(self, views: Mapping[str, ModelView]) -> None:
        self._views = views
        self._publish()
        self._is_adopted.set()

    def _publish(self, **changed: object) -> int:
        models = entries(self._views, self.deployer.servings)
        problems = tuple(filter(None, (self._source.problem, *problems_of(self._views))))
        if self._memory.failure is not None:
            problems = (f"the controller was made anew: {self._memory.failure}", *problems)
        table = following(self.catalog.latest, models, problems=problems, **changed)
        for line in table_changes(self.catalog.latest, table):
            logger.info("table %d: %s", table.number, line)
        self.catalog.publish(table)
        self._progress(versions=self.deployer.progress, warnings=warnings_of(self._views))
        return table.number

    def _progressed(self) -> None:
        """For whoever waits for the start: nobody else is told how far a version is."""
        if not self.start.latest.is_served:
            self._progress(versions=self.deployer.progress)

    def _publish_all(self) -> None:
        self._publish()

    def _progress(self, **changed: object) -> None:
        self.start.publish(started(self.start.latest, **changed))
