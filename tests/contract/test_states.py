"""What each state of a version's life looks like over both wires, alone and beside an older one."""

from __future__ import annotations

import asyncio
import http.client
import json
import urllib.request
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import pytest
import pytest_asyncio
from prometheus_client import CollectorRegistry
from tensorflow_serving.apis import (
    get_model_metadata_pb2,
    get_model_status_pb2,
    model_service_pb2_grpc,
    predict_pb2,
    prediction_service_pb2_grpc,
)

from shardserve.batching.errors import Code
from shardserve.router.catalog import Catalog, Model, State, Version
from shardserve.router.experiments import Experiment, stickiness
from shardserve.router.grpc_door import GrpcDoor
from shardserve.router.handlers import Handlers
from shardserve.router.http_door import HttpDoor
from shardserve.router.metrics import Metrics
from shardserve.router.prediction import PredictionHandlers
from shardserve.router.rest import MONITORING_PATH, Rest
from shardserve.router.servable import Servable
from shardserve.router.session import StageThreads
from shardserve.router.whole import load_whole
from tests.contract.models import export_half_plus_two

#: The server is one for all: each test says first what it has.
pytestmark = pytest.mark.asyncio(loop_scope="module")

HOST = "127.0.0.1"
OLD, NEW = 4, 5

#: The states of a version, by what a person would call them.
STATES: dict[str, Callable[[Servable], Version]] = {
    "start": lambda _: Version(State.START),
    "loading": lambda _: Version(State.LOADING),
    "available": lambda servable: Version(State.AVAILABLE, servable),
    "unloading": lambda _: Version(State.UNLOADING),
    "end": lambda _: Version(State.END),
    "end in error": lambda _: Version(State.END, None, Code.DATA_LOSS, "variables.index: cut off"),
}

of_each_state = pytest.mark.parametrize("state", STATES)
silent_states = pytest.mark.parametrize("state", [one for one in STATES if one != "available"])


@dataclass(frozen=True)
class Server:
    """Both doors of a model `m`, whose version 5 a test puts into a state."""

    catalog: Catalog
    servables: tuple[Servable, Servable]
    rest_port: int
    channel: Any

    def put(self, state: str, *, beside_old: bool = False) -> Version:
        """Version 5 into `state`, which the label `stable` names; version 4 answers or is gone."""
        old, new = self.servables
        version = STATES[state](new)
        versions = {NEW: version}
        if beside_old:
            versions[OLD] = Version(State.AVAILABLE, old)
        self.catalog.replace({"m": Model(versions, {"stable": NEW})})
        return version

    async def rest(
        self, method: str, path: str, body: Any = None, headers: Mapping[str, str] | None = None
    ) -> tuple[int, Any]:
        return await asyncio.to_thread(self._rest, method, path, body, dict(headers or {}))

    def _rest(self, method: str, path: str, body: Any, headers: dict[str, str]) -> tuple[int, Any]:
        connection = http.client.HTTPConnection(HOST, self.rest_port, timeout=30)
        try:
            connection.request(method, path, None if body is None else json.dumps(body), headers)
            reply = connection.getresponse()
            return reply.status, json.loads(reply.read())
        finally:
            connection.close()

    def metrics_page(self) -> bytes:
        with urllib.request.urlopen(f"http://{HOST}:{self.rest_port}{MONITORING_PATH}") as page:
            found: bytes = page.read()
        return found

    async def predict(
        self, metadata: tuple[tuple[str, str], ...] = (), **spec: Any
    ) -> tuple[int, float]:
        """Who answered, and what."""
        stub = prediction_service_pb2_grpc.PredictionServiceStub(self.channel)
        request = predict_pb2.PredictRequest()
        _fill(request.model_spec, spec)
        request.inputs["x"].dtype = 1
        request.inputs["x"].tensor_shape.dim.add(size=1)
        request.inputs["x"].float_val.append(2.0)
        reply = await stub.Predict(request, timeout=30, metadata=metadata)
        return reply.model_spec.version.value, reply.outputs["y"].float_val[0]

    async def metadata(self, **spec: Any) -> int:
        stub = prediction_service_pb2_grpc.PredictionServiceStub(self.channel)
        request = get_model_metadata_pb2.GetModelMetadataRequest(metadata_field=["signature_def"])
        _fill(request.model_spec, spec)
        reply = await stub.GetModelMetadata(request, timeout=30)
        return int(reply.model_spec.version.value)

    async def status(self, **spec: Any) -> list[tuple[int, int, int, str]]:
        """A row for each version: number, state, code, message."""
        stub = model_service_pb2_grpc.ModelServiceStub(self.channel)
        request = get_model_status_pb2.GetModelStatusRequest()
        _fill(request.model_spec, spec)
        reply = await stub.GetModelStatus(request, timeout=30)
        return [
            (row.version, row.state, row.status.error_code, row.status.error_message)
            for row in reply.model_version_status
        ]


def _fill(model_spec: Any, spec: dict[str, Any]) -> None:
    model_spec.name = "m"
    if "version" in spec:
        model_spec.version.value = spec["version"]
    if "label" in spec:
        model_spec.version_label = spec["label"]


@pytest.fixture(scope="module")
def servables(
    tmp_path_factory: pytest.TempPathFactory, threads: StageThreads
) -> tuple[Servable, Servable]:
    path: Path = tmp_path_factory.mktemp("states") / "1"
    export_half_plus_two(path)
    old, new = (load_whole("m", number, path, threads) for number in (OLD, NEW))
    return old, new


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def server(
    servables: tuple[Servable, Servable], threads: StageThreads
) -> AsyncIterator[Server]:
    catalog = Catalog()
    metrics = Metrics(CollectorRegistry())
    handlers = Handlers(catalog, threads, metrics=metrics)
    http_door = HttpDoor(Rest(handlers, metrics), HOST)
    grpc_door = GrpcDoor(PredictionHandlers(handlers, metrics), HOST)
    await http_door.start()
    await grpc_door.start()
    async with grpc.aio.insecure_channel(f"{HOST}:{grpc_door.port}") as channel:
        yield Server(catalog, servables, http_door.port, channel)
    await http_door.stop(grace=0.0)
    await grpc_door.stop(grace=0.0)


async def refusal(call: Any) -> tuple[grpc.StatusCode, str | None]:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    return caught.value.code(), caught.value.details()


#: How the version is asked for over gRPC and REST, and what the original calls what it misses.
ASKED: dict[str, tuple[dict[str, Any], str, str]] = {
    "latest": ({}, "", "Latest(m)"),
    "version": ({"version": NEW}, f"/versions/{NEW}", f"Specific(m, {NEW})"),
    "label": ({"label": "stable"}, "/labels/stable", f"Specific(m, {NEW})"),
}

however_asked = pytest.mark.parametrize("asked", ASKED)


@however_asked
@silent_states
async def test_a_version_that_is_not_available_is_not_found(
    server: Server, state: str, asked: str
) -> None:
    server.put(state)
    spec, which, missed = ASKED[asked]
    text = f"Servable not found for request: {missed}"
    for call in (server.predict(**spec), server.metadata(**spec)):
        assert await refusal(call) == (grpc.StatusCode.NOT_FOUND, text)
    body = {"instances": [2.0]}
    assert await server.rest("POST", f"/v1/models/m{which}:predict", body) == (404, {"error": text})
    found = await server.rest("GET", f"/v1/models/m{which}/metadata")
    assert found == (404, {"error": text})


@however_asked
async def test_a_version_that_is_available_answers(server: Server, asked: str) -> None:
    server.put("available", beside_old=True)
    spec, which, _ = ASKED[asked]
    assert await server.predict(**spec) == (NEW, 3.0)
    assert await server.metadata(**spec) == NEW
    body = {"instances": [2.0]}
    predictions = {"predictions": [3.0]}
    assert await server.rest("POST", f"/v1/models/m{which}:predict", body) == (200, predictions)


@silent_states
async def test_the_older_version_answers_while_the_newer_one_does_not(
    server: Server, state: str
) -> None:
    server.put(state, beside_old=True)
    assert await server.predict() == (OLD, 3.0)
    assert await server.metadata() == OLD
    status, _ = await server.rest("POST", "/v1/models/m:predict", {"instances": [2.0]})
    assert status == 200


@of_each_state
async def test_the_status_says_the_state_and_why(server: Server, state: str) -> None:
    version = server.put(state, beside_old=True)
    row = (NEW, int(version.state), int(version.code), version.message)
    old = (OLD, int(State.AVAILABLE), 0, "")
    assert await server.status() == [row, old]
    assert await server.status(version=NEW) == [row]
    assert await server.status(label="stable") == [row, old]
    status, found = await server.rest("GET", f"/v1/models/m/versions/{NEW}")
    assert status == 200
    assert found["model_version_status"] == [
        {
            "version": str(NEW),
            "state": version.state.name,
            "status": {"error_code": version.code.name, "error_message": version.message},
        }
    ]


@of_each_state
async def test_the_probe_is_ready_once_a_version_is_available(server: Server, state: str) -> None:
    server.put(state)
    status, found = await server.rest("GET", "/health/ready")
    assert (status == 200) == found["ready"] == (state == "available")
    server.put(state, beside_old=True)
    assert (await server.rest("GET", "/health/ready"))[0] == 200


async def test_a_client_of_a_canary_is_known_by_the_header_it_sends(server: Server) -> None:
    """Over both wires, and by the same version: what answers is in the metrics."""
    old, new = server.servables
    versions = {OLD: Version(State.AVAILABLE, old), NEW: Version(State.AVAILABLE, new)}
    experiment = Experiment(canary=0.5, key="X-Client")
    server.catalog.replace({"m": Model(versions, {}, experiment)})
    for number in range(20):
        client = f"client-{number}"
        expected = NEW if stickiness("m", client.encode()) < experiment.canary else OLD
        for _ in range(2):
            assert (await server.predict((("x-client", client),)))[0] == expected
        body = {"instances": [2.0]}
        path = "/v1/models/m:predict"
        status, _ = await server.rest("POST", path, body, {"X-CLIENT": client})
        assert status == 200
    page = (await asyncio.to_thread(server.metrics_page)).decode()
    for version, role in ((OLD, "baseline"), (NEW, "canary")):
        labels = f'model_name="m",version="{version}",role="{role}",status="OK"'
        counted = [line for line in page.splitlines() if labels in line]
        (count,) = [int(line.rpartition(" ")[2]) for line in counted]
        assert count % 3 == 0
