"""A model that is taken out of the catalog answers the requests that had come, and is then free."""

from __future__ import annotations

import asyncio
import contextlib
import math
from collections.abc import Awaitable, Callable
from typing import Any

import orjson
import pytest
from prometheus_client import CollectorRegistry
from tensorflow_serving.apis import model_management_pb2, predict_pb2

from shardserve.batching.errors import NotFound
from shardserve.router.catalog import Catalog, Model, State, Version
from shardserve.router.handlers import Handlers
from shardserve.router.metrics import Metrics
from shardserve.router.prediction import RPCS, PredictionHandlers
from shardserve.router.rest import Rest
from shardserve.router.servable import Array, RequestContext, Signature
from shardserve.router.session import StageThreads
from shardserve.router.whole import WholeServable

Ask = Callable[[], Awaitable[Any]]


class Slow:
    """A servable whose answers wait to be let go."""

    name = "half_plus_two"
    version = 123
    signature_def_map = b""

    def __init__(self, servable: WholeServable) -> None:
        self._servable = servable
        self.signatures: dict[str, Signature] = dict(servable.signatures)
        self.asked, self.go = asyncio.Event(), asyncio.Event()

    async def run(self, *arguments: Any) -> dict[str, Array]:
        self.asked.set()
        await self.go.wait()
        return await self._servable.run(*arguments)

    def stage_counts(self) -> dict[str, Any]:
        return {}

    async def close(self) -> None: ...


@pytest.fixture
async def slow(half_plus_two: WholeServable) -> Slow:
    return Slow(half_plus_two)


@pytest.fixture
def handlers(slow: Slow, threads: StageThreads) -> Handlers:
    versions = {123: Version(State.AVAILABLE, slow)}
    return Handlers(Catalog({"half_plus_two": Model(versions)}), threads)


@pytest.fixture(params=["REST", "GRPC"])
def ask(request: pytest.FixtureRequest, handlers: Handlers) -> Ask:
    metrics = Metrics(CollectorRegistry())
    if request.param == "REST":
        rest = Rest(handlers, metrics)
        path = "/v1/models/half_plus_two:predict"
        return lambda: rest.handle("POST", path, {}, orjson.dumps({"instances": [1.0]}))
    asked = predict_pb2.PredictRequest()
    asked.model_spec.name = "half_plus_two"
    asked.inputs["x"].dtype = 1
    asked.inputs["x"].float_val.append(1.0)
    raw = asked.SerializeToString()
    prediction = PredictionHandlers(handlers, metrics)
    return lambda: prediction.answer(RPCS["Predict"], raw, RequestContext("r", math.inf))


async def test_what_is_under_way_is_waited_for_and_answered(
    ask: Ask, slow: Slow, handlers: Handlers
) -> None:
    under_way = asyncio.ensure_future(ask())
    await slow.asked.wait()
    handlers.catalog.replace({})
    quiet = asyncio.ensure_future(handlers.catalog.quiesce())
    await asyncio.sleep(0)
    assert not quiet.done()
    slow.go.set()
    assert b"2.5" in getattr(await under_way, "body", b"2.5")
    await asyncio.wait_for(quiet, 5)


async def test_a_request_that_is_cancelled_or_fails_is_not_waited_for(
    ask: Ask, slow: Slow, handlers: Handlers
) -> None:
    gives_up = asyncio.ensure_future(ask())
    await slow.asked.wait()
    handlers.catalog.replace({})
    gives_up.cancel()
    with pytest.raises(asyncio.CancelledError):
        await gives_up
    await asyncio.wait_for(handlers.catalog.quiesce(), 5)
    with contextlib.suppress(NotFound):
        assert (await ask()).status == 404
    handlers.catalog.replace({})
    await asyncio.wait_for(handlers.catalog.quiesce(), 5)


async def test_a_reload_may_wait_for_an_unload(handlers: Handlers) -> None:
    """So the unload does not wait for it."""

    async def unload(_: Any) -> None:
        handlers.catalog.replace({})
        await asyncio.wait_for(handlers.catalog.quiesce(), 5)

    prediction = PredictionHandlers(handlers, Metrics(CollectorRegistry()), unload)
    request = model_management_pb2.ReloadConfigRequest()
    request.config.model_config_list.SetInParent()
    raw = request.SerializeToString()
    context = RequestContext("r", math.inf)
    reply = await prediction.answer(RPCS["HandleReloadConfigRequest"], raw, context)
    status = model_management_pb2.ReloadConfigResponse.FromString(reply).status
    assert status.error_code == 0
    assert not handlers.catalog.models
