"""Requests that are logged can be read by TensorFlow Serving's messages, and warm a model up."""

from __future__ import annotations

import math
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pytest
import tensorflow as tf
from prometheus_client import CollectorRegistry
from tensorflow_serving.apis import predict_pb2, prediction_log_pb2

from shardserve.router.catalog import Catalog, Model, State, Version
from shardserve.router.experiments import Experiment
from shardserve.router.handlers import Handlers
from shardserve.router.metrics import Metrics
from shardserve.router.prediction import RPCS, PredictionHandlers
from shardserve.router.prediction_logs import LogLimits, PredictionLogWriter, read_prediction_logs
from shardserve.router.request_logging import RequestLogging
from shardserve.router.request_logs import RequestLogs
from shardserve.router.rest import Rest
from shardserve.router.servable import RequestContext
from shardserve.router.session import StageThreads
from shardserve.router.warm_up import WARM_UP_FILE, replay
from shardserve.router.whole import WholeServable, load_whole
from tests.contract.models import export_examples
from tests.router.test_trials import example_request, predict_request


@pytest.fixture(scope="module")
def examples_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("examples") / "4"
    export_examples(path)
    return path


@pytest.fixture
def examples(examples_dir: Path, threads: StageThreads) -> WholeServable:
    return load_whole("m", 4, examples_dir, threads)


class Doors:
    """Both wires to one model that logs."""

    def __init__(self, servable: WholeServable, threads: Any, prefix: Path, rate: float = 1.0):
        self.metrics = Metrics(CollectorRegistry())
        self.prefix = prefix
        self.version = Version(State.AVAILABLE, servable)
        self.catalog = Catalog({"m": self.model(rate)})
        self.handlers = Handlers(self.catalog, threads, metrics=self.metrics)
        self.rest = Rest(self.handlers, self.metrics)
        self.prediction = PredictionHandlers(self.handlers, self.metrics)

    def model(self, rate: float) -> Model:
        servable = self.version.servable
        assert servable is not None
        logging = RequestLogging(self.prefix, rate)
        versions = {servable.version: self.version}
        return Model(versions, {"stable": servable.version}, Experiment(), logging)

    async def post(self, action: str, body: Any, which: str = "", spaces: int = 0) -> None:
        path = f"/v1/models/m{which}:{action}"
        text = orjson.dumps(body) + b" " * spaces
        response = await self.rest.handle("POST", path, {}, text)
        assert response.status == 200, response.body

    async def call(self, method: str, request: Any) -> bytes:
        context = RequestContext("r", math.inf)
        return await self.prediction.answer(RPCS[method], request.SerializeToString(), context)

    def logged(self) -> list[prediction_log_pb2.PredictionLog]:
        self.handlers.logs.close()
        return [log for path in files(self.prefix) for log in read_prediction_logs(path)]


def files(prefix: Path) -> Sequence[Path]:
    return sorted(prefix.parent.glob(f"{prefix.name}-*.tfrecord"))


async def test_predictions_are_logged_alike_over_both_wires(
    half_plus_two_dir: Path, tmp_path: Path, threads: StageThreads
) -> None:
    servable = load_whole("m", 123, half_plus_two_dir, threads)
    doors = Doors(servable, threads, tmp_path / "logs" / "m")
    reply = await doors.call("Predict", predict_request(version_label="stable"))
    await doors.post("predict", {"instances": [2.0]}, "/labels/stable")
    grpc, rest = doors.logged()
    response = predict_pb2.PredictResponse.FromString(reply)
    for log in (grpc, rest):
        assert log.log_metadata.model_spec.version.value == 123
        assert log.log_metadata.model_spec.signature_name == "serving_default"
        assert log.log_metadata.sampling_config.sampling_rate == 1.0
        assert log.log_metadata.timestamp_secs > 1_600_000_000
        assert log.predict_log.request.model_spec.version_label == "stable"
        sent = tf.make_ndarray(log.predict_log.request.inputs["x"])
        assert sent.tolist() == [2.0]
        assert log.predict_log.response == response
    page = doors.metrics.page().decode()
    name = ":tensorflow:serving:request_log_count"
    assert f'{name}{{model_name="m",status_code="OK"}} 2' in page


async def test_every_kind_of_request_is_logged_and_what_is_logged_warms_up(
    examples: WholeServable, tmp_path: Path, threads: StageThreads
) -> None:
    doors = Doors(examples, threads, tmp_path / "m")
    await doors.call("MultiInference", example_request("classify", "regress"))
    for action in ("classify", "regress"):
        body = {"signature_name": action, "examples": [{"x": 3.0}], "context": {"name": "z"}}
        await doors.post(action, body)
    logs = doors.logged()
    kinds = [log.WhichOneof("log_type") for log in logs]
    assert kinds == ["multi_inference_log", "classify_log", "regress_log"]
    classified = logs[1].classify_log.response.result.classifications[0].classes
    assert [one.label for one in classified] == ["z0", "z1"]
    assert logs[2].regress_log.response.result.regressions[0].value == 6.0
    warm_up = tmp_path / "4" / WARM_UP_FILE
    warm_up.parent.mkdir(parents=True)
    shutil.copy(*files(doors.prefix), warm_up)
    assert await replay(examples, tmp_path / "4", threads) == 3


async def test_requests_that_fail_are_not_logged(
    half_plus_two: WholeServable, tmp_path: Path, threads: StageThreads
) -> None:
    doors = Doors(half_plus_two, threads, tmp_path / "m")
    response = await doors.rest.handle("POST", "/v1/models/m:predict", {}, b"{}")
    assert response.status == 400
    assert doors.logged() == []


@pytest.mark.parametrize(("rate", "expected"), [(0.0, 0), (0.25, 1), (1.0, 4)])
def test_the_share_that_is_logged_is_the_one_that_was_asked_for(
    half_plus_two: WholeServable, tmp_path: Path, rate: float, expected: int
) -> None:
    draws = iter([0.0, 0.25, 0.5, 0.75])
    model = Doors(half_plus_two, None, tmp_path / "m").model(rate)
    logs = RequestLogs(Catalog({"m": model}), draw=lambda: next(draws))
    assert sum(logs.sampled("m") is not None for _ in range(4)) == expected
    assert logs.sampled("other") is None
    logs.close()


def test_a_log_is_closed_with_its_model_or_when_it_is_another(
    half_plus_two: WholeServable, tmp_path: Path
) -> None:
    model = Doors(half_plus_two, None, tmp_path / "m").model(1.0)
    catalog = Catalog({"m": model})
    logs = RequestLogs(catalog)
    first = logs.sampled("m")
    catalog.replace({"m": model, "n": Model({})})
    assert logs.sampled("m") is first
    catalog.replace({"m": Model(model.versions)})
    assert logs.sampled("m") is None
    assert first is not None
    assert not first.writer.write(lambda: b"")
    catalog.replace({"m": model})
    assert logs.sampled("m") not in (first, None)
    logs.close()


async def test_what_finds_too_much_waiting_is_dropped_and_counted(
    half_plus_two_dir: Path, tmp_path: Path, threads: StageThreads
) -> None:
    servable = load_whole("m", 123, half_plus_two_dir, threads)
    doors = Doors(servable, threads, tmp_path / "m")
    doors.handlers.logs._open["m"].writer.close()
    doors.handlers.logs._open["m"].writer = writer = PredictionLogWriter(
        tmp_path / "small", LogLimits(waiting_bytes=200)
    )
    request = predict_request()
    request.inputs["x"].CopyFrom(tf.make_tensor_proto(np.zeros(100, np.float32)))
    await doors.call("Predict", request)
    await doors.call("Predict", predict_request())
    assert len(doors.logged()) == 0
    assert (writer.written, writer.dropped) == (1, 1)
    page = doors.metrics.page().decode()
    assert 'model_name="m",status_code="RESOURCE_EXHAUSTED"} 1' in page


@pytest.mark.parametrize("action", ["predict", "classify"])
async def test_what_waits_over_rest_is_counted_by_its_arrays_and_not_by_its_text(
    half_plus_two: WholeServable,
    examples: WholeServable,
    tmp_path: Path,
    threads: StageThreads,
    action: str,
) -> None:
    if action == "predict":
        doors = Doors(half_plus_two, threads, tmp_path / "m")
        few, many = {"instances": [2.0]}, {"instances": [2.0] * 100}
    else:
        doors = Doors(examples, threads, tmp_path / "m")
        few, many = (
            {"signature_name": "classify", "examples": [{"x": 3.0}] * count} for count in (1, 100)
        )
    doors.handlers.logs._open["m"].writer.close()
    doors.handlers.logs._open["m"].writer = writer = PredictionLogWriter(
        tmp_path / "small", LogLimits(waiting_bytes=300)
    )
    await doors.post(action, many)
    await doors.post(action, few, spaces=1000)
    doors.logged()
    assert (writer.written, writer.dropped) == (1, 1)
