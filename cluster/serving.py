"""A router in one process, whoever started it: what its models share, and the direct doors."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, fields, replace
from typing import TypeVar

from shardserve.batching.driver import BatchDevice
from shardserve.batching.memory import settle_memory
from shardserve.batching.stage import StageCounts
from shardserve.cluster.doors import doors_of, handler_options
from shardserve.cluster.options import DoorOptions
from shardserve.router.catalog import Catalog
from shardserve.router.handlers import Handlers
from shardserve.router.metrics import Measured, Metrics, nothing_measured
from shardserve.router.prediction import PredictionHandlers
from shardserve.router.reload import Reload, refuse_reload
from shardserve.router.rest import Rest
from shardserve.router.session import Parallelism, StageThreads, start_tensorflow
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

    Versions are loaded on threads of their own, `loaders`.
    """

    threads: StageThreads
    device: BatchDevice
    doors: DoorOptions = DoorOptions()  # noqa: RUF009 (frozen)
    warm_up: WarmUpOptions = WarmUpOptions()  # noqa: RUF009 (frozen)
    loaders: ThreadPoolExecutor = field(default_factory=_loaders)

    @property
    def parallelism(self) -> Parallelism:
        """TensorFlow's own threads."""
        return parallelism_of(self.doors)

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


def start_runtime(doors: DoorOptions, defaults: PlanOptions, warm_up: WarmUpOptions) -> Runtime:
    """Start the threads that serve, TensorFlow's among them. Call it before TensorFlow is used.

    The server's batching parameters say how many batches run at the same time, if there are any.
    """
    start_tensorflow(parallelism_of(doors))
    threads = StageThreads()
    batching = defaults.batching.parameters
    device = BatchDevice(threads.count if batching is None else batching.num_batch_threads)
    return Runtime(threads, device, doors, warm_up)


def parallelism_of(doors: DoorOptions) -> Parallelism:
    """TensorFlow's own threads, as the flags say."""
    return Parallelism(doors.intra_op_threads, doors.inter_op_threads, doors.session_config)


class Serving:
    """The handlers of a catalog, and the doors that lead to them.

    `reload` takes new configurations, `measured` asks the shards, for the metrics page.
    """

    def __init__(
        self,
        catalog: Catalog,
        runtime: Runtime,
        reload: Reload = refuse_reload,
        measured: Measured = nothing_measured,
    ) -> None:
        options = runtime.doors
        handlers = Handlers(catalog, runtime.threads, handler_options(options))
        metrics = Metrics(stages=lambda: stage_counts(catalog))
        self.rest = Rest(
            handlers,
            metrics,
            options.rest_timeout,
            options.monitoring.path,
            measured,
            cors=options.cors,
            compress_from=options.compress_from,
        )
        self.prediction = PredictionHandlers(handlers, metrics, reload)
        self._doors = doors_of(options, self.rest, self.prediction)

    async def open(self) -> None:
        """Open the doors. Raises Unavailable, naming the address, for a port that is taken."""
        settle_memory()
        for door in self._doors:
            await door.start()

    async def close(self) -> None:
        """Refuse new requests, and answer those that came in, for a few seconds at most."""
        for door in self._doors:
            await door.stop()


def stage_counts(catalog: Catalog) -> dict[str, StageCounts]:
    """What the stages of all models have done; those of a model's versions under one name."""
    found: dict[str, StageCounts] = {}
    for model in catalog.models.values():
        for version in model.versions.values():
            counts = {} if version.servable is None else version.servable.stage_counts()
            for name, one in counts.items():
                found[name] = _added(found[name], one) if name in found else one
    return found


def _added(one: StageCounts, other: StageCounts) -> StageCounts:
    """What both have done; the timeout and the size are the other's."""
    done = {
        field.name: getattr(one, field.name) + getattr(other, field.name)
        for field in fields(StageCounts)
        if field.name not in ("timeout_micros", "batch_size")
    }
    return replace(other, **done)
