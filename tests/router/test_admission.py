"""A request that a servable would refuse is refused before anything of it is decoded."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry
from tensorflow_serving.apis import model_pb2, predict_pb2

from shardserve.batching.errors import Code, InvalidArgument, NotFound, Unavailable
from shardserve.router.catalog import Catalog, Model, ModelSpec, State, Version
from shardserve.router.experiments import Experiment
from shardserve.router.handlers import Handlers
from shardserve.router.logs import REQUEST_ID
from shardserve.router.metrics import Metrics
from shardserve.router.model_specs import peek_spec
from shardserve.router.prediction import LARGE_REQUEST, RPCS, PredictionHandlers
from shardserve.router.rest import Rest
from shardserve.router.servable import Array, RequestContext, Signature, TensorInfo
from shardserve.router.session import StageThreads
from shardserve.router.tracing import Ended, TracedContext


class Draining:
    """A servable that admits until it is told to stop."""

    name = "m"
    version = 1
    signatures = {"serving_default": Signature("", {"x": TensorInfo("x:0", 1, None)}, {})}  # noqa: RUF012
    signature_def_map = b""

    def __init__(self) -> None:
        self.stopped = False
        self.deadlines: list[float] = []

    def admit(self, deadline: float) -> None:
        self.deadlines.append(deadline)
        if self.stopped:
            raise Unavailable("the server is shutting down")

    async def run(
        self, signature: str, inputs: Any, outputs: Any, context: Any
    ) -> dict[str, Array]:
        return {"y": inputs["x"]}


@pytest.fixture
def draining() -> Draining:
    return Draining()


@pytest.fixture
def served(draining: Draining, threads: StageThreads) -> Handlers:
    return Handlers(Catalog({"m": Model({1: Version(State.AVAILABLE, draining)})}), threads)


async def test_a_body_is_not_looked_at_where_its_servable_refuses(
    served: Handlers, draining: Draining
) -> None:
    context = RequestContext("id", 12.5)
    assert await served.predict_json(ModelSpec("m"), b'{"inputs": 1}', context)
    draining.stopped = True
    for ask in (served.predict_json, served.examples.classify_json, served.examples.regress_json):
        with pytest.raises(Unavailable, match="shutting down"):
            await ask(ModelSpec("m"), b"no JSON", context)
    assert draining.deadlines == [12.5] * 4


async def test_what_is_wrong_with_a_body_comes_before_a_model_that_there_is_not(
    served: Handlers,
) -> None:
    context = RequestContext("id", math.inf)
    with pytest.raises(InvalidArgument, match="JSON Parse error"):
        await served.predict_json(ModelSpec("no"), b"no JSON", context)
    with pytest.raises(NotFound):
        await served.predict_json(ModelSpec("no"), b'{"inputs": 1}', context)


async def test_a_large_request_is_not_parsed_where_its_servable_refuses(
    served: Handlers, draining: Draining
) -> None:
    rpcs = PredictionHandlers(served, Metrics(CollectorRegistry()))
    draining.stopped = True
    head = predict_pb2.PredictRequest(model_spec=model_pb2.ModelSpec(name="m")).SerializeToString()
    no_request = head + b"\xff" * LARGE_REQUEST
    for method in ("Predict", "Classify", "Regress", "SessionRun"):
        with pytest.raises(Unavailable, match="shutting down"):
            await rpcs.answer(RPCS[method], no_request, RequestContext("id", math.inf))
    draining.stopped = False
    with pytest.raises(InvalidArgument, match="the request is not a"):
        await rpcs.answer(RPCS["Predict"], no_request, RequestContext("id", math.inf))


@given(st.text(max_size=200), st.none() | st.integers(0, 2**63 - 1), st.binary(max_size=20))
def test_the_model_that_a_request_begins_with_is_found(
    name: str, version: int | None, rest: bytes
) -> None:
    spec = model_pb2.ModelSpec(name=name)
    if version is not None:
        spec.version.value = version
    raw = predict_pb2.PredictRequest(model_spec=spec).SerializeToString()
    assert peek_spec(raw + rest) == ModelSpec(name, version)


@given(st.binary(max_size=30))
def test_any_bytes_begin_with_a_model_or_do_not(raw: bytes) -> None:
    assert peek_spec(raw) is None or isinstance(peek_spec(raw), ModelSpec)
    assert peek_spec(b"\x12" + raw) is None


async def test_a_path_seen_before_is_refused_by_its_head_while_its_servable_refuses(
    served: Handlers, draining: Draining
) -> None:
    metrics = Metrics(CollectorRegistry())
    rest = Rest(served, metrics, timeout=5.0)
    path = "/v1/models/m:predict"
    assert rest.refusal("POST", path, {}) is None
    answered = await rest.handle("POST", path, {}, b'{"instances": [1.0]}')
    assert answered.status == 200
    assert rest.refusal("POST", path, {}) is None
    draining.stopped = True
    refused = rest.refusal("POST", path, {REQUEST_ID: "mine"})
    assert refused is not None
    assert (refused.status, json.loads(refused.body)) == (
        503,
        {"error": "the server is shutting down"},
    )
    assert (REQUEST_ID, "mine") in refused.headers
    assert b'request_count{model_name="m",status="UNAVAILABLE"} 1' in metrics.page([])


async def test_a_model_on_trial_is_not_refused_by_its_head_while_its_newest_version_refuses(
    draining: Draining, threads: StageThreads
) -> None:
    baseline, draining.version = Draining(), 2
    versions = {1: Version(State.AVAILABLE, baseline), 2: Version(State.AVAILABLE, draining)}
    catalog = Catalog({"m": Model(versions, experiment=Experiment(shadow=0.01))})
    rest = Rest(Handlers(catalog, threads), Metrics(CollectorRegistry()))
    draining.stopped = True
    for _ in range(2):
        assert rest.refusal("POST", "/v1/models/m:predict", {}) is None
        answered = await rest.handle("POST", "/v1/models/m:predict", {}, b'{"instances": [1.0]}')
        assert answered.status == 200


class Kept:
    """Traces that a test looks at."""

    def __init__(self) -> None:
        self.kept: list[tuple[str, Ended]] = []

    def ended(self, context: TracedContext, ended: Ended) -> None:
        self.kept.append((context.request_id, ended))

    def close(self) -> None: ...


async def test_what_is_refused_by_its_head_is_traced(served: Handlers, draining: Draining) -> None:
    traces = Kept()
    rest = Rest(served, Metrics(CollectorRegistry()), traces=traces)
    path = "/v1/models/m:predict"
    await rest.handle("POST", path, {}, b'{"instances": [1.0]}')
    draining.stopped = True
    assert rest.refusal("POST", path, {REQUEST_ID: "mine"}) is not None
    request_id, ended = traces.kept[-1]
    assert (request_id, ended.name, ended.code) == ("mine", "POST predict", Code.UNAVAILABLE)
    assert ended.attributes["http.response.status_code"] == 503
    assert ended.attributes["url.path"] == path


async def test_what_asks_for_no_prediction_is_never_refused_by_its_head(
    served: Handlers, draining: Draining
) -> None:
    rest = Rest(served, Metrics(CollectorRegistry()))
    draining.stopped = True
    for method, path in (("GET", "/v1/models/m"), ("POST", "/v1/models/other:predict")):
        await rest.handle(method, path, {}, b'{"instances": [1.0]}')
        assert rest.refusal(method, path, {}) is None
