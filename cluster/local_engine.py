"""The local engine: router and shards in this process, without Ray; the direct doors only."""

from __future__ import annotations

import asyncio
import logging
import os
import threading
from collections.abc import Callable, Coroutine, Mapping
from typing import Any

import uvloop
from rich.console import Console

from shardserve.cluster.catalog_table import catalog_of, entries
from shardserve.cluster.console import announce, start_display
from shardserve.cluster.local_deployer import LocalDeployer
from shardserve.cluster.manager import Manager
from shardserve.cluster.model_source import ModelSource, follow_file
from shardserve.cluster.model_views import ModelView, start_error, warnings_of
from shardserve.cluster.options import ServeOptions
from shardserve.cluster.progress import Start, started
from shardserve.cluster.quiet import quiet_tensorflow
from shardserve.cluster.serving import Serving, parallelism_of, start_runtime
from shardserve.cluster.start_checks import check_addresses, check_start, example_of, served_of
from shardserve.cluster.start_log import start_log
from shardserve.cluster.stop_signals import stop_signals
from shardserve.cluster.versions import VersionId
from shardserve.router import logs
from shardserve.router.session import start_tensorflow

logger = logging.getLogger(__name__)

#: What may be under way on threads, as a load in TensorFlow, which nothing can interrupt.
_THREADS_SECONDS = 5.0


def serve(options: ServeOptions, console: Console) -> None:
    """Serve what is configured until a signal asks to stop, and end well then, served or not.

    Raises a `ServingError` when the models of the start cannot be served. May end the process: what
    threads are busy with is waited for a few seconds only.
    """
    logs.configure()
    check_start(options)
    check_addresses(options)
    # Before anything is drawn on the screen that it would write to.
    with quiet_tensorflow():
        start_tensorflow(parallelism_of(options.doors))
    uvloop.run(_serve(options, console))
    console.print("stopped")


async def _serve(options: ServeOptions, console: Console) -> None:
    stopping = asyncio.Event()
    for number in stop_signals():
        asyncio.get_running_loop().add_signal_handler(number, stopping.set)
    with start_display(console, options.engine) as display:
        server = LocalServer(options, display.show)
        starting = asyncio.ensure_future(server.start())
        with start_log(display.warn):
            is_served = await _unless(stopping, starting)
    if is_served:
        await server.open()
        served = served_of(server.models)
        announce(console, options, served, example_of(options, served))
        await stopping.wait()
    console.print("stopping")
    await server.shut()
    _end_soon()
    starting.cancel()
    await server.close()
    await asyncio.wait((starting,))


async def _unless(stopping: asyncio.Event, working: asyncio.Future[None]) -> bool:
    """Whether the work came to its end before there was a signal; else it is still under way."""
    signalled = asyncio.ensure_future(stopping.wait())
    await asyncio.wait((working, signalled), return_when=asyncio.FIRST_COMPLETED)
    signalled.cancel()
    if working.done():
        working.result()
    return working.done()


def _end_soon() -> None:
    """End the process, well, unless it has come to its end by itself before.

    Requests are answered and logs written by now; Python would wait for every thread.
    """
    ending = threading.Timer(_THREADS_SECONDS, _end)
    ending.daemon = True
    ending.start()


def _end() -> None:
    logger.warning("the process ends while threads are busy, as one that loads a model")
    os._exit(0)


class LocalServer:
    """All of it. Make it on the event loop; `start`, `open`, `shut` and `close` it, each once."""

    def __init__(self, options: ServeOptions, show: Callable[[Start], None]) -> None:
        self._show = show
        runtime = start_runtime(options.doors, options.defaults.plan, options.warm_up)
        self._catalog = runtime.catalog
        self._deployer = LocalDeployer(runtime, self._shown)
        roots = options.models.roots
        self._manager = Manager(self._deployer, options.manager, self._changed, roots=roots)
        self._source = ModelSource(options.models, options.defaults)
        self._start = Start(0)
        self._views: Mapping[str, ModelView] = {}
        self._tasks: list[asyncio.Task[None]] = []
        self.serving = Serving(runtime, self._reload, self._deployer.measures)

    @property
    def models(self) -> Mapping[str, Any]:
        """Every model there is or was, by name."""
        return entries(self._views, {})

    async def start(self) -> None:
        """Return when the models of the start are served. Raises the `ServingError` why not."""
        self._begin(self._manager.run())
        try:
            await self._manager.configure(await asyncio.to_thread(self._source.at_start))
        except Exception as error:
            raise start_error(error) from error
        self._manager.started()
        self._begin(follow_file(self._source, self._manager.configure, self._shown))

    async def open(self) -> None:
        """Open the doors. Raises Unavailable, naming the address, for a port that is taken."""
        await self.serving.open()

    async def shut(self) -> None:
        """Refuse new requests, answer those that came in, for a few seconds, and write the logs."""
        await self.serving.close()

    async def close(self) -> None:
        """`shut` it, if nobody has, and end all else. Waits for loads, which end when they can."""
        await self.shut()
        for task in self._tasks:
            task.cancel()
        await self._manager.abandon()

    async def _reload(self, config: Any) -> None:
        models = await asyncio.to_thread(self._source.requested, config.SerializeToString())
        await self._manager.configure(models)

    def _changed(self, views: Mapping[str, ModelView]) -> None:
        self._views = views
        ready = {
            VersionId(name, version) for name, view in views.items() for version in view.available
        }
        self._catalog.replace(catalog_of(entries(views, {}), self._deployer.servables(ready)))
        self._shown()

    def _shown(self) -> None:
        warnings = (*warnings_of(self._views), *self._deployer.warnings)
        self._start = started(self._start, versions=self._deployer.progress, warnings=warnings)
        self._show(self._start)

    def _begin(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.ensure_future(work)
        task.add_done_callback(_ended)
        self._tasks.append(task)


def _ended(task: asyncio.Task[None]) -> None:
    if not task.cancelled() and task.exception() is not None:
        logger.critical("models are looked after no more", exc_info=task.exception())
