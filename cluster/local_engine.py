"""The local engine: router and shards in this process, without Ray; the direct doors only."""

from __future__ import annotations

import asyncio
import logging
import os
import threading
from collections.abc import Callable, Coroutine, Mapping
from contextlib import suppress
from typing import Any

import uvloop
from rich.console import Console

from shardserve.cluster.catalog_table import catalog_of, entries
from shardserve.cluster.certificates import certificate_file, follow_certificates
from shardserve.cluster.console import announce, say, start_display
from shardserve.cluster.local_deployer import LocalDeployer
from shardserve.cluster.manager import Manager
from shardserve.cluster.model_source import ModelSource, follow_file
from shardserve.cluster.model_views import ModelView, start_error, warnings_of
from shardserve.cluster.options import ServeOptions
from shardserve.cluster.progress import Start, started
from shardserve.cluster.quiet import quiet_tensorflow
from shardserve.cluster.serving import Endpoints, parallelism_of, start_runtime
from shardserve.cluster.start_checks import check_addresses, check_start, example_of, served_of
from shardserve.cluster.start_log import start_log
from shardserve.cluster.stop_signals import ending_of, stop_signals
from shardserve.cluster.versions import VersionId
from shardserve.router import logs
from shardserve.router.session import start_tensorflow

logger = logging.getLogger(__name__)

#: What may be under way on threads, as a load in TensorFlow, which nothing can interrupt.
_THREADS_SECONDS = 5.0


def serve(options: ServeOptions, console: Console) -> int:
    """Serve what is configured until a signal asks to stop, and end in order then.

    The exit status is that of `ending_of`. Raises a `ServingError` when the models of the start
    cannot be served. May end the process: what threads are busy with is waited for a few seconds
    only.
    """
    logs.configure()
    check_start(options)
    check_addresses(options)
    # Before anything is drawn on the screen that it would write to.
    with quiet_tensorflow():
        start_tensorflow(parallelism_of(options.doors))
    status = uvloop.run(_serve(options, console))
    say(console, "stopped")
    return status


async def _serve(options: ServeOptions, console: Console) -> int:
    signals: asyncio.Queue[int] = asyncio.Queue()
    for number in stop_signals():
        asyncio.get_running_loop().add_signal_handler(number, signals.put_nowait, number)
    with start_display(console, options.engine) as display:
        server = LocalServer(options, display.show)
        starting = asyncio.ensure_future(server.start())
        with start_log(display.warn):
            stopped = await _signal_before(signals, starting)
    is_served = stopped is None
    if stopped is None:
        await server.open()
        served = served_of(server.models)
        announce(console, options, served, example_of(options, served))
        stopped = await signals.get()
    say(console, "stopping")
    ending = ending_of(stopped, options.doors.drain_seconds, is_served=is_served)
    await _drained(server, ending.drain_seconds, signals)
    await server.shut()
    _end_soon(ending.status)
    starting.cancel()
    await server.close()
    await asyncio.wait((starting,))
    return ending.status


async def _signal_before(signals: asyncio.Queue[int], working: asyncio.Future[None]) -> int | None:
    """The signal that came before the work's end, which is still under way; else None."""
    signalled = asyncio.ensure_future(signals.get())
    await asyncio.wait((working, signalled), return_when=asyncio.FIRST_COMPLETED)
    if not working.done():
        return signalled.result()
    working.result()
    if not signalled.cancel():
        signals.put_nowait(signalled.result())
    return None


async def _drained(server: LocalServer, seconds: float, signals: asyncio.Queue[int]) -> None:
    """Answer for so long as one that is about to go. Another signal ends that."""
    if seconds > 0:
        await server.drain()
        with suppress(TimeoutError):
            await asyncio.wait_for(signals.get(), seconds)


def _end_soon(status: int) -> None:
    """End the process, well, unless it has come to its end by itself before.

    Requests are answered and logs written by now; Python would wait for every thread.
    """
    ending = threading.Timer(_THREADS_SECONDS, _end, (status,))
    ending.daemon = True
    ending.start()


def _end(status: int) -> None:
    logger.warning("the process ends while threads are busy, as one that loads a model")
    os._exit(status)


class LocalServer:
    """All of it. Make it on the event loop; `start`, `open`, `shut` and `close` it, each once."""

    def __init__(self, options: ServeOptions, show: Callable[[Start], None]) -> None:
        self._show = show
        self._doors = options.doors
        runtime = start_runtime(options.doors, options.defaults.plan, options.warm_up)
        self._catalog = runtime.catalog
        self._deployer = LocalDeployer(runtime, self._shown)
        roots = options.models.roots
        self._manager = Manager(self._deployer, options.manager, self._changed, roots=roots)
        self._source = ModelSource(options.models, options.defaults)
        self._start = Start(0)
        self._views: Mapping[str, ModelView] = {}
        self._tasks: list[asyncio.Task[None]] = []
        self.endpoints = Endpoints(runtime, self._reload, self._deployer.measures)

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
        # What is loaded from now on is in the logs, and the display at its end.
        self._show = lambda _: None
        self._begin(follow_file(self._source, self._manager.configure, self._shown))

    async def open(self) -> None:
        """Open the doors. Raises Unavailable, naming the address, for a port that is taken."""
        await self.endpoints.open()
        file = certificate_file(self._doors)
        if file is not None:
            self._begin(follow_certificates(file, self.endpoints.renew))

    async def drain(self) -> None:
        """Say to all probes that this server is about to go, and answer requests all the same."""
        await self.endpoints.drain()

    async def shut(self) -> None:
        """Refuse new requests, answer those that came in, for a few seconds, and write the logs."""
        await self.endpoints.close()

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
        logger.critical("a part of the server has ended", exc_info=task.exception())
