"""Doors over a catalog made by hand, for what a server shows for moments only, and for options."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from prometheus_client import CollectorRegistry

from shardserve.batching.errors import Code, Unavailable
from shardserve.router.catalog import Catalog, Model, State, Version
from shardserve.router.grpc_door import GrpcDoor
from shardserve.router.handlers import HandlerOptions, Handlers
from shardserve.router.http_door import HttpDoor
from shardserve.router.metrics import Metrics
from shardserve.router.prediction import PredictionHandlers
from shardserve.router.rest import Rest
from shardserve.router.servable import Array, RequestContext
from shardserve.router.session import StageThreads
from shardserve.router.whole import WholeServable, load_whole
from tests.contract.endpoint import HOST, Endpoint, Failure
from tests.contract.models import export_examples, export_half_plus_two, export_types

FAILURE = Failure(15, "variables.index: cut off")

_AS_BY_DEFAULT = HandlerOptions()


class BusyServable(WholeServable):
    """A model whose queue is full."""

    def admit(self, deadline: float) -> None:
        raise Unavailable("The batch scheduling queue is full")


class OpenServable(WholeServable):
    """A model with all of its graph in one session."""

    async def run_tensors(
        self,
        feeds: dict[str, Array],
        fetches: Sequence[str],
        targets: Sequence[str],
        context: RequestContext,
    ) -> list[Array]:
        stage = self._runner.make_callable(tuple(feeds), fetches, targets)
        return await self._runner.run(stage, list(feeds.values()), context)


def catalog(root: Path, threads: StageThreads) -> Catalog:
    """As `Endpoint` says; besides, `busy` admits nobody, and no version of `new` has come up."""
    half = _loaded(root / "half_plus_two" / "123", export_half_plus_two, "half_plus_two", threads)
    examples = _loaded(root / "examples" / "1", export_examples, "examples", threads)
    types = _loaded(root / "types" / "1", export_types, "types", threads)
    failed = Version(State.END, code=Code(FAILURE.code), message=FAILURE.text)
    versions = {
        122: Version(State.END),
        123: Version(State.AVAILABLE, half),
        124: Version(State.LOADING),
        125: failed,
    }
    return Catalog(
        {
            "half_plus_two": Model(versions, {"stable": 123, "old": 122}),
            "examples": Model({1: Version(State.AVAILABLE, examples)}),
            "types": Model({1: Version(State.AVAILABLE, _as(OpenServable, types))}),
            "busy": Model({1: Version(State.AVAILABLE, _as(BusyServable, half))}),
            "new": Model({1: Version(State.START)}),
        }
    )


def _loaded(
    path: Path, export: Callable[[Path], None], name: str, threads: StageThreads
) -> WholeServable:
    if not path.exists():
        export(path)
    return load_whole(name, int(path.name), path, threads)


def _as(kind: type[WholeServable], servable: WholeServable) -> WholeServable:
    other = kind.__new__(kind)
    other.__dict__.update(servable.__dict__)
    return other


@contextmanager
def local_server(root: Path, options: HandlerOptions = _AS_BY_DEFAULT) -> Iterator[Endpoint]:
    """Both direct doors, in an event loop of their own beside the test."""
    threads = StageThreads(2)
    handlers = Handlers(catalog(root, threads), threads, options)
    metrics = Metrics(CollectorRegistry())
    rest = Rest(handlers, metrics, cors=True, compress_from=1 << 16)
    doors = HttpDoor(rest, HOST), GrpcDoor(PredictionHandlers(handlers, metrics), HOST)
    loop = asyncio.new_event_loop()
    running = threading.Thread(target=loop.run_forever)
    running.start()
    try:
        for door in doors:
            _await(loop, door.start())
        yield Endpoint(doors[0].port, doors[1].port, FAILURE)
        for door in doors:
            _await(loop, door.stop(grace=0.0))
    finally:
        loop.call_soon_threadsafe(loop.stop)
        running.join()
        loop.close()
        threads.close()


def _await(loop: asyncio.AbstractEventLoop, work: Any) -> None:
    asyncio.run_coroutine_threadsafe(work, loop).result(60)
