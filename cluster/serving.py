"""A router in one process, whoever started it: what its models share, and the direct doors."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

from shardserve.batching.driver import BatchDevice
from shardserve.batching.memory import settle_memory
from shardserve.batching.parameters import BatchingParameters
from shardserve.cluster.doors import doors_of, handler_options
from shardserve.cluster.options import DoorOptions
from shardserve.router.catalog import Catalog
from shardserve.router.handlers import Handlers
from shardserve.router.metrics import Collected, Measured, Metrics, nothing_measured
from shardserve.router.prediction import PredictionHandlers
from shardserve.router.reload import Reload, refuse_reload
from shardserve.router.rest import Rest
from shardserve.router.servable import Servable
from shardserve.router.session import Parallelism, StageThreads, start_tensorflow
from shardserve.router.tls import Tls
from shardserve.router.tracing import traces_to
from shardserve.router.warm_up import replay
from shardserve.router.warm_up_options import WarmUpOptions
from shardserve.shards.model import PlanOptions

T = TypeVar("T")

#: Versions that are loaded at the same time: how many the manager allows, and those that are given
#: up but not at their end yet.
_LOADERS = 16


def _loaders() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(_LOADERS, thread_name_prefix="load")


@dataclass(frozen=True)
class Runtime:
    """What all models of a process share: its threads, and the device that batches take turns on.

    Models that are run whole have no stages besides, and take turns on `whole_requests`.
    `metrics` count what is done to the models of `catalog`. Versions are loaded on threads of their
    own, `loaders`.
    """

    threads: StageThreads
    device: BatchDevice
    catalog: Catalog = field(default_factory=Catalog)
    metrics: Metrics = field(default_factory=Metrics)
    doors: DoorOptions = DoorOptions()  # noqa: RUF009 (frozen)
    warm_up: WarmUpOptions = WarmUpOptions()  # noqa: RUF009 (frozen)
    loaders: ThreadPoolExecutor = field(default_factory=_loaders)
    whole: BatchDevice | None = None

    @property
    def whole_requests(self) -> BatchDevice:
        """What batches of whole requests take turns on; `device`, if there is no other."""
        return self.whole or self.device

    @property
    def parallelism(self) -> Parallelism:
        """TensorFlow's own threads."""
        return parallelism_of(self.doors)

    async def warm_up_version(self, servable: Servable, directory: Path) -> None:
        """Replay the requests that a version brings along. Raises as `replay` does."""
        said = handler_options(self.doors)
        await replay(servable, directory, self.threads, self.warm_up, said, self.metrics)

    async def on_loader(
        self,
        work: Callable[[], T],
        abandon: Callable[[T], object],
        stop: Callable[[], None] = lambda: None,
    ) -> T:
        """What `work` returns or raises, on a thread for loading.

        A thread cannot be cancelled: who is cancelled calls `stop` and waits for its end, and what
        it made nevertheless is given to `abandon`.
        """
        making = asyncio.get_running_loop().run_in_executor(self.loaders, work)
        try:
            return await asyncio.shield(making)
        except asyncio.CancelledError:
            stop()
            await asyncio.wait([making])
            if not making.cancelled() and making.exception() is None:
                abandon(making.result())
            raise


def start_runtime(
    doors: DoorOptions, defaults: PlanOptions, warm_up: WarmUpOptions, router: str = ""
) -> Runtime:
    """Start the threads that serve, TensorFlow's among them. Call it before TensorFlow is used.

    `router` tells processes apart whose metrics come on one page.
    """
    start_tensorflow(parallelism_of(doors))
    threads = StageThreads()
    batching = defaults.batching.parameters
    device = BatchDevice(slots_of_stages(batching, threads.count))
    catalog = Catalog()
    metrics = Metrics(models=lambda: catalog.models, router=router)
    whole = BatchDevice(threads.count if batching is None else batching.slots)
    return Runtime(threads, device, catalog, metrics, doors, warm_up, whole=whole)


def slots_of_stages(server: BatchingParameters | None, threads: int) -> int:
    """How many batches of stages run at once in a router of so many stage threads.

    As the server's parameters say; if they do not, one thread is left to stages that are not
    batched, so that the next batch finds requests that are ready for it. There is no thread besides
    for batches: more threads at work than there are cores make each of them slower than they gain.
    """
    told = None if server is None else server.num_batch_threads
    return told or max(1, threads - 1)


def parallelism_of(doors: DoorOptions) -> Parallelism:
    """TensorFlow's own threads, as the flags say."""
    said = doors.sessions
    return Parallelism(said.intra_op_threads, said.inter_op_threads, said.config)


class Endpoints:
    """The handlers of a process's models, and the doors that lead to them.

    `reload` takes new configurations. The metrics page is of what is `collected`, of all routers or
    of this one alone, and of what is `measured` on shards.
    """

    def __init__(
        self,
        runtime: Runtime,
        reload: Reload = refuse_reload,
        measured: Measured = nothing_measured,
        collected: Collected | None = None,
    ) -> None:
        options = runtime.doors
        self.catalog = runtime.catalog
        metrics = runtime.metrics
        self._handlers = Handlers(
            runtime.catalog, runtime.threads, handler_options(options), metrics
        )
        self._traces = traces_to(options.trace_collector)
        self.rest = Rest(
            self._handlers,
            metrics,
            options.rest_timeout,
            options.monitoring.path,
            measured,
            collected,
            cors=options.cors,
            compress_from=options.compress_from,
            most=options.rest_max_requests,
            traces=self._traces,
        )
        self.prediction = PredictionHandlers(self._handlers, metrics, reload, self._traces)
        self._doors = doors_of(options, self.rest, self.prediction)

    async def open(self) -> None:
        """Open the doors. Raises Unavailable, naming the address, for a port that is taken."""
        settle_memory()
        for door in self._doors:
            await door.start()

    def renew(self, tls: Tls) -> None:
        """Show these certificates to clients from now on. Raises as the doors do."""
        for door in self._doors:
            door.renew(tls)

    async def drain(self) -> None:
        """Be ready no more, as probes and gRPC's health have it. Requests are answered still.

        Those that came over REST's own door are the last of their connections.
        """
        self.rest.drain()
        for door in self._doors:
            await door.drain()

    async def close(self) -> None:
        """Refuse new requests, and answer those that came in, for a few seconds at most.

        Logs and traces are written then. Once is enough.
        """
        await self.drain()
        await asyncio.gather(*(door.stop() for door in self._doors))
        traces, self._traces = self._traces, None
        if traces is not None:
            await asyncio.to_thread(traces.close)
        await asyncio.to_thread(self._handlers.logs.close)
