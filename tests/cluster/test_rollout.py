"""Versions as they are rolled out on either engine: warmed up, tried out, logged, probed."""

from __future__ import annotations

import asyncio
import json
import shutil
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
import tensorflow as tf
from starlette.requests import Request
from tensorflow_serving.apis import get_model_status_pb2, predict_pb2, prediction_log_pb2

from shardserve.cluster.ingress_requests import Ingress
from shardserve.cluster.lifecycle import Retries
from shardserve.cluster.local_engine import LocalServer
from shardserve.cluster.model_config import Latest, ModelConfig
from shardserve.cluster.model_options import ModelOptions
from shardserve.cluster.options import (
    Application,
    DoorOptions,
    Engine,
    ManagerOptions,
    Models,
    RayOptions,
    ServeOptions,
)
from shardserve.cluster.router_deployment import Router
from shardserve.router.catalog import State
from shardserve.router.computed import Spec, signature
from shardserve.router.experiments import Experiment, stickiness
from shardserve.router.kinds import Version
from shardserve.router.prediction_logs import read_prediction_logs
from shardserve.router.request_logging import RequestLogging
from shardserve.router.rest import Rest
from shardserve.router.warm_up import WARM_UP_FILE
from shardserve.shards.model import PlanOptions
from tests.cluster.runs import serving
from tests.versioned_models import THRESHOLD, Client, export

CUT = ModelOptions(PlanOptions(shards=2, threshold=THRESHOLD))
MANAGER = ManagerOptions(retries=Retries(0), poll_seconds=0.1)
NO_DOORS = DoorOptions(grpc_port=0)
SECONDS = 100.0


@dataclass(frozen=True)
class Served(Client):
    """A client of a server, by whichever wire."""

    rest: Rest | None = None
    ended: Callable[[], Awaitable[None]] | None = None

    async def get(self, path: str) -> tuple[int, bytes]:
        assert self.rest is not None
        response = await self.rest.handle("GET", path, {}, b"")
        return response.status, response.body

    async def counted(self, name: str) -> dict[str, int]:
        """The lines of a metric, by their labels."""
        _, page = await self.get("/monitoring/prometheus/metrics")
        lines = [line for line in page.decode().splitlines() if line.startswith(f"{name}{{")]
        found = (line.rpartition(" ") for line in lines)
        return {labels.partition("{")[2][:-1]: int(count) for labels, _, count in found}

    async def until(self, model: str, states: Mapping[int, State]) -> None:
        """Return when the versions of a model are in these states."""
        async with asyncio.timeout(SECONDS):
            while await self.states(model) != states:
                await pause()

    async def until_ready(self) -> None:
        """Return when no configured model is missing."""
        async with asyncio.timeout(SECONDS):
            while (await self.get("/health/ready"))[0] != 200:
                await pause()

    async def why(self, model: str, version: int) -> str:
        """What GetModelStatus says of a version that failed."""
        request = get_model_status_pb2.GetModelStatusRequest()
        request.model_spec.name = model
        request.model_spec.version.value = version
        reply = await self.answer("GetModelStatus", request)
        (row,) = get_model_status_pb2.GetModelStatusResponse.FromString(reply).model_version_status
        return str(row.status.error_message)


async def pause() -> None:
    """Let what is under way go on."""
    await asyncio.sleep(0.02)


Serve = Callable[..., AbstractAsyncContextManager[Served]]


@asynccontextmanager
async def on_local(models: Models, defaults: ModelOptions) -> AsyncIterator[Served]:
    options = ServeOptions(models, defaults, MANAGER, NO_DOORS, Engine.LOCAL)
    server = LocalServer(options, lambda _: None)
    try:
        async with asyncio.timeout(SECONDS):
            await server.start()
        yield Served(server.endpoints.prediction, rest=server.endpoints.rest, ended=server.close)
    finally:
        await server.close()


@asynccontextmanager
async def on_ray(models: Models, defaults: ModelOptions) -> AsyncIterator[Served]:
    async with serving(models, defaults, SECONDS, MANAGER) as run:
        made = Router.__new__(Router)
        application = Application(run.name, run.name, NO_DOORS, RayOptions())
        await made.__init__(application)  # type: ignore[misc, func-returns-value]
        try:
            yield Served(made.prediction, rest=made._endpoints.rest, ended=made.leave)
        finally:
            await made.leave()


@pytest.fixture
def serve(request: pytest.FixtureRequest) -> Serve:
    """Serves models in this process, but for a Ray engine's actors."""
    if getattr(request, "param", "local") == "local":
        return on_local
    request.getfixturevalue("ray_cluster")
    return on_ray


#: What is the same code behind either engine is asked of one of them.
on_both_engines = pytest.mark.parametrize("serve", ["local", "ray"], indirect=True)


def config_of(base_path: Path, **fields: Any) -> ModelConfig:
    return ModelConfig(base_path.name, base_path, **fields)


def warm_up(version: Path, ids: list[int]) -> None:
    """Let a version bring a request along."""
    log = prediction_log_pb2.PredictionLog()
    log.predict_log.request.model_spec.name = "whatever"
    log.predict_log.request.inputs["ids"].CopyFrom(tf.make_tensor_proto(ids, tf.int64))
    (version / WARM_UP_FILE).parent.mkdir(parents=True, exist_ok=True)
    with tf.io.TFRecordWriter(str(version / WARM_UP_FILE)) as file:
        file.write(log.SerializeToString())


async def test_a_version_whose_warm_up_fails_is_not_served_and_says_which_record(
    serve: Serve, tmp_path: Path
) -> None:
    export(tmp_path / "m", 1, 10.0)
    warm_up(tmp_path / "m" / "1", [3])
    export(tmp_path / "next", 2, 20.0)
    warm_up(tmp_path / "next" / "2", [1_000_000])
    async with serve(Models((config_of(tmp_path / "m"),)), CUT) as client:
        read = await client.counted(":tensorflow:serving:model_warmup_records_read")
        assert read == {f'model_path="{tmp_path}/m/1",status="OK"': 1}
        (tmp_path / "next" / "2").rename(tmp_path / "m" / "2")
        await client.until("m", {1: State.AVAILABLE, 2: State.END})
        assert "tf_serving_warmup_requests: warmup record 0: " in await client.why("m", 2)
        assert await client.ask("m") == 10.0


class _Call:
    """What Serve gives a gRPC method of its ingress."""

    def __init__(self, **metadata: str) -> None:
        self._metadata = [(name.replace("_", "-"), value) for name, value in metadata.items()]

    def invocation_metadata(self) -> list[tuple[str, str]]:
        return self._metadata

    def set_code(self, code: grpc.StatusCode) -> None:
        self.code = code

    def set_details(self, details: str) -> None:
        self.details = details

    def set_trailing_metadata(self, metadata: list[tuple[str, str]]) -> None:
        """Of no interest."""


def _http(path: str, body: bytes, **headers: str) -> Request:
    """What Serve gives its ingress of HTTP."""

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": body, "more_body": False}

    raw = [(name.replace("_", "-").encode(), value.encode()) for name, value in headers.items()]
    scope = {
        "type": "http",
        "method": "POST",
        "path": path,
        "raw_path": path.encode(),
        "query_string": b"",
        "headers": raw,
    }
    return Request(scope, receive)


@on_both_engines
async def test_a_client_sticks_to_a_canary_behind_the_ingress_as_well(
    serve: Serve, tmp_path: Path
) -> None:
    for version in (1, 2):
        export(tmp_path / "m", version, 10.0 * version)
    experiment = Experiment(canary=0.4, key="X-User")
    models = Models((config_of(tmp_path / "m", policy=Latest(2)),))
    request = predict_pb2.PredictRequest()
    request.model_spec.name = "m"
    request.inputs["ids"].CopyFrom(tf.make_tensor_proto([3], tf.int64))
    body = json.dumps({"instances": [3]}).encode()
    async with serve(models, replace(CUT, experiment=experiment)) as client:
        await client.until("m", {1: State.AVAILABLE, 2: State.AVAILABLE})
        assert client.rest is not None
        ingress = Ingress(client.rest, client.prediction)
        for user in ("alice", "bob", "carol", "dave", "erin"):
            version = 2 if stickiness("m", user.encode()) < experiment.canary else 1
            call: Any = _Call(x_user=user)
            reply = await ingress.rpc("Predict", request.SerializeToString(), call)
            found = predict_pb2.PredictResponse.FromString(reply.SerializeToString())
            assert found.model_spec.version.value == version
            answer = await ingress.http(_http("/v1/models/m:predict", body, x_user=user))
            assert json.loads(answer.body) == {"predictions": [10.0 * version]}
        shut, call = Ingress(client.rest, client.prediction, is_open=False), _Call()
        assert (await shut.http(_http("/v1/models/m:predict", body))).status_code == 403
        reply = await shut.rpc("Predict", request.SerializeToString(), call)
        assert (reply.SerializeToString(), call.code) == (b"", grpc.StatusCode.PERMISSION_DENIED)
        counted = await client.counted(":shardserve:experiment_requests")
        assert sum(counted.values()) == 10
        await client.reload("model_config_list {}")
        await client.until_ready()


async def test_a_shadow_of_every_request_is_run_and_counted(serve: Serve, tmp_path: Path) -> None:
    for version in (1, 2):
        export(tmp_path / "m", version, 10.0 * version)
    models = Models((config_of(tmp_path / "m", policy=Latest(2)),))
    defaults = replace(CUT, experiment=Experiment(shadow=1.0))
    async with serve(models, defaults) as client:
        await client.until("m", {1: State.AVAILABLE, 2: State.AVAILABLE})
        for _ in range(5):
            assert await client.ask("m") == 10.0
        expected = {
            'model_name="m",version="1",role="baseline",status="OK"': 5,
            'model_name="m",version="2",role="shadow",status="OK"': 5,
        }
        async with asyncio.timeout(SECONDS):
            while await client.counted(":shardserve:experiment_requests") != expected:
                await pause()


async def test_what_is_logged_warms_the_next_version_up(serve: Serve, tmp_path: Path) -> None:
    export(tmp_path / "m", 1, 10.0)
    export(tmp_path / "next", 2, 20.0)
    root = tmp_path / "logs"
    logging = RequestLogging(Path("m/requests"), 1.0)
    models = Models((config_of(tmp_path / "m", logging=logging),), log_root=root)
    async with serve(models, CUT) as client:
        for _ in range(3):
            await client.ask("m")
        assert client.ended is not None
        await client.ended()
    (written,) = (root / "m").iterdir()
    logs = list(read_prediction_logs(written))
    assert [log.log_metadata.model_spec.version.value for log in logs] == [1, 1, 1]
    (tmp_path / "next" / "2" / WARM_UP_FILE).parent.mkdir()
    shutil.copy(written, tmp_path / "next" / "2" / WARM_UP_FILE)
    async with serve(Models((config_of(tmp_path / "next"),)), CUT) as client:
        assert await client.ask("next") == 20.0
        read = await client.counted(":tensorflow:serving:model_warmup_records_read")
        assert list(read.values()) == [3]


class Repeated:
    """A servable in plain Python, that answers the number in its version's directory."""

    def __init__(self, number: float) -> None:
        ids = Spec(np.dtype(np.int64), (-1,))
        self.signatures = {
            "serving_default": signature({"ids": ids}, {"y": Spec(np.dtype(np.float32), (-1,))})
        }
        self._number = number

    def compute(self, signature: str, inputs: Any, outputs: Any) -> dict[str, Any]:
        return {"y": np.full(len(inputs["ids"]), self._number, np.float32)}


def load(version: Version) -> Repeated:
    return Repeated(float((version.directory / "number").read_text()))


def write_number(base_path: Path, version: int, number: float) -> None:
    (base_path / str(version)).mkdir(parents=True)
    (base_path / str(version) / "number").write_text(str(number))


@on_both_engines
async def test_a_model_of_another_kind_has_versions_warm_up_and_experiments(
    serve: Serve, tmp_path: Path
) -> None:
    for version in (1, 2):
        write_number(tmp_path / "m", version, 10.0 * version)
    warm_up(tmp_path / "m" / "2", [1])
    where = f"{__name__}:load"
    config = config_of(tmp_path / "m", platform=f"python:{where}", policy=Latest(2))
    models = Models((config,), python_servables=frozenset({where}))
    defaults = replace(CUT, experiment=Experiment(canary=1.0))
    async with serve(models, defaults) as client:
        await client.until("m", {1: State.AVAILABLE, 2: State.AVAILABLE})
        assert await client.ask("m") == 20.0
        assert await client.ask("m", version=1) == 10.0
        (tmp_path / "m" / "3").mkdir()
        await client.until("m", {1: State.END, 2: State.AVAILABLE, 3: State.END})
        assert "FileNotFoundError" in await client.why("m", 3)
        assert await client.ask("m") == 20.0


async def test_the_probe_says_which_of_the_configured_models_are_missing(
    serve: Serve, tmp_path: Path
) -> None:
    export(tmp_path / "m", 1, 10.0)
    async with serve(Models((config_of(tmp_path / "m"),)), CUT) as client:
        assert (await client.get("/health/ready"))[0] == 200
        shutil.rmtree(tmp_path / "m" / "1")
        await client.until("m", {1: State.END})
        status, body = await client.get("/health/ready")
        assert (status, json.loads(body)["missing"]) == (503, ["m"])
        await client.reload("model_config_list {}")
        await client.until_ready()
