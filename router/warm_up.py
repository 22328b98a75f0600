"""Replays the requests of a version's warm-up file, before the version is available.

They go through the handlers as real requests do, to a catalog that has nothing but the version.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tensorflow_serving.apis import prediction_log_pb2

from shardserve.batching.errors import Code, ServingError, Unimplemented, error_of
from shardserve.router.catalog import Catalog, Model, State, Version
from shardserve.router.handlers import HandlerOptions, Handlers
from shardserve.router.metrics import Metrics
from shardserve.router.prediction_logs import read_prediction_logs
from shardserve.router.regions import together
from shardserve.router.serialized_examples import ExamplesRequest, MultiInferenceRequest
from shardserve.router.servable import RequestContext, Servable
from shardserve.router.session import StageThreads
from shardserve.router.warm_up_options import WarmUpOptions

#: Where a version directory has them, if it does.
WARM_UP_FILE = Path("assets.extra") / "tf_serving_warmup_requests"


async def replay(
    servable: Servable,
    directory: Path,
    threads: StageThreads,
    options: WarmUpOptions = WarmUpOptions(),  # noqa: B008 (frozen)
    handler_options: HandlerOptions = HandlerOptions(),  # noqa: B008 (frozen)
    metrics: Metrics | None = None,
) -> int:
    """Send `servable` the requests of its version directory; how many records there were.

    On the event loop that is to serve it. Which model a request names does not matter. Raises as
    `read_prediction_logs` does, Unimplemented for a record of a kind that is not replayed, and the
    first error of a request, naming the file and the record; the load has failed then. Does nothing
    where there is no file. What came of it is told to `metrics`.
    """
    path = directory / WARM_UP_FILE
    if not options.enabled or not await asyncio.to_thread(path.is_file):
        return 0
    replaying = _Replay(servable, path, threads, handler_options)
    started = time.perf_counter()
    code = Code.CANCELLED
    try:
        await replaying.run(options)
        code = Code.OK
    except ServingError as error:
        code = error.code
        raise
    finally:
        if metrics is not None:
            seconds = time.perf_counter() - started
            metrics.warm_up(str(directory), code, seconds, replaying.records)
    return replaying.records


@dataclass(frozen=True)
class _Record:
    """A log of the file, and where in it."""

    number: int
    log: prediction_log_pb2.PredictionLog


class _Replay:
    """One file on its way through the handlers."""

    def __init__(
        self, servable: Servable, path: Path, threads: StageThreads, options: HandlerOptions
    ) -> None:
        model = Model({servable.version: Version(State.AVAILABLE, servable)})
        self._handlers = Handlers(Catalog({servable.name: model}), threads, options)
        self._name = servable.name
        self._path = path
        #: How many were read.
        self.records = 0

    async def run(self, options: WarmUpOptions) -> None:
        records = await asyncio.to_thread(self._read)
        self.records = len(records)
        requests = iter([record for record in records for _ in range(options.iterations)])
        await together([self._send(requests) for _ in range(options.threads)])

    def _read(self) -> Sequence[_Record]:
        return [_Record(n, log) for n, log in enumerate(read_prediction_logs(self._path))]

    async def _send(self, requests: Iterator[_Record]) -> None:
        """One after the other, of those that nobody else has taken."""
        for record in requests:
            try:
                await self._answer(record.log)
            except ServingError as error:
                where = f"{self._path}: warmup record {record.number}"
                raise error_of(error.code, f"{where}: {error.message}") from error
            # Nothing else need suspend, and other versions serve on this loop.
            await asyncio.sleep(0)

    async def _answer(self, log: prediction_log_pb2.PredictionLog) -> None:
        context = RequestContext("warm-up", math.inf)
        examples = self._handlers.examples
        match log.WhichOneof("log_type"):
            case "predict_log":
                await self._handlers.predict(self._named(log.predict_log.request), context)
            case "classify_log":
                request = _reparsed(log.classify_log.request, ExamplesRequest)
                await examples.classify(self._named(request), context)
            case "regress_log":
                request = _reparsed(log.regress_log.request, ExamplesRequest)
                await examples.regress(self._named(request), context)
            case "multi_inference_log":
                request = _reparsed(log.multi_inference_log.request, MultiInferenceRequest)
                for task in request.tasks:
                    self._named(task)
                await examples.multi_inference(request, context)
            case None:
                return
            case kind:
                raise Unimplemented(f"Unsupported log_type for warmup: {kind}")

    def _named(self, request: Any) -> Any:
        """The request, meant for this version whatever it was logged of."""
        request.model_spec.name = self._name
        request.model_spec.ClearField("version")
        request.model_spec.ClearField("version_label")
        return request


def _reparsed(request: Any, kind: Any) -> Any:
    """The request as the handlers take it, with its Examples serialised."""
    return kind.FromString(request.SerializeToString())
