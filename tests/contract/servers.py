"""Servers that the contract is held against, each with what its cases may rely on."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from prometheus_client import CollectorRegistry
from tensorflow_serving.config import model_server_config_pb2

from shardserve.batching.errors import Code, Unavailable, Unknown
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
from tests.contract.models import export_examples, export_half_plus_two, export_types

HOST = "127.0.0.1"

_AS_BY_DEFAULT = HandlerOptions()


@dataclass(frozen=True)
class Endpoint:
    """Where a server listens.

    It serves `half_plus_two` (versions 122 END, 123 AVAILABLE, 124 LOADING, 125 END in error;
    labels stable 123, old 122), `examples` 1 and `types` 1, as `models` exports them; `busy`, which
    admits nobody; `new`, of which no version has come up yet.
    """

    rest_port: int
    grpc_port: int

    def url(self, path: str) -> str:
        return f"http://{HOST}:{self.rest_port}{path}"

    @property
    def grpc(self) -> str:
        return f"{HOST}:{self.grpc_port}"


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


async def reload(config: model_server_config_pb2.ModelServerConfig) -> None:
    """Loads nothing: a model called `bad` fails."""
    if any(model.name == "bad" for model in config.model_config_list.config):
        raise Unknown(
            "1 model(s) did not become available: {{{name: bad version: 1} due to error: ...}, }"
        )


def catalog(root: Path, threads: StageThreads) -> Catalog:
    """What `Endpoint` says."""
    half = _loaded(root / "half_plus_two" / "123", export_half_plus_two, "half_plus_two", threads)
    examples = _loaded(root / "examples" / "1", export_examples, "examples", threads)
    types = _loaded(root / "types" / "1", export_types, "types", threads)
    failed = Version(State.END, code=Code.DATA_LOSS, message="variables.index: cut off")
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
    doors = HttpDoor(rest, HOST), GrpcDoor(PredictionHandlers(handlers, metrics, reload), HOST)
    loop = asyncio.new_event_loop()
    running = threading.Thread(target=loop.run_forever)
    running.start()
    try:
        for door in doors:
            _await(loop, door.start())
        yield Endpoint(doors[0].port, doors[1].port)
        for door in doors:
            _await(loop, door.stop(grace=0.0))
    finally:
        loop.call_soon_threadsafe(loop.stop)
        running.join()
        loop.close()
        threads.close()


def _await(loop: asyncio.AbstractEventLoop, work: Any) -> None:
    asyncio.run_coroutine_threadsafe(work, loop).result(60)


#: By engine. One that runs on Ray is to serve the same models, and joins this table.
ENGINES = {"local": local_server}
