"""Experiments over both wires: who answers, who is silent, and what neither can do to a client."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pytest
import tensorflow as tf
from prometheus_client import CollectorRegistry
from prometheus_client.parser import text_string_to_metric_families
from tensorflow_serving.apis import inference_pb2, predict_pb2

from shardserve.batching.errors import (
    DeadlineExceeded,
    InvalidArgument,
    ResourceExhausted,
    Unavailable,
)
from shardserve.router.catalog import Catalog, Model, State, Version
from shardserve.router.experiments import Experiment, stickiness
from shardserve.router.handlers import Handlers
from shardserve.router.metrics import Metrics
from shardserve.router.prediction import RPCS, PredictionHandlers
from shardserve.router.rest import Rest
from shardserve.router.servable import Array, RequestContext, Servable
from shardserve.router.session import StageThreads
from shardserve.router.whole import WholeServable, load_whole
from tests.contract.models import CLASSIFY, REGRESS, export_examples

KEY = "x-client"


class Doors:
    """The handlers of one catalog as both wires reach them, and the metrics page."""

    def __init__(self, versions: Mapping[int, Servable], experiment: Experiment, threads: Any):
        self.metrics = Metrics(CollectorRegistry())
        self.catalog = Catalog({})
        self.serve(versions, experiment)
        handlers = Handlers(self.catalog, threads, metrics=self.metrics)
        self.rest = Rest(handlers, self.metrics)
        self.prediction = PredictionHandlers(handlers, self.metrics)

    def serve(self, versions: Mapping[int, Servable], experiment: Experiment) -> None:
        found = {number: Version(State.AVAILABLE, one) for number, one in versions.items()}
        self.catalog.replace({"m": Model(found, {"old": min(versions)}, experiment)})

    async def post(self, action: str, body: Any, key: str | None = None, which: str = "") -> Any:
        headers = {} if key is None else {KEY: key}
        path = f"/v1/models/m{which}:{action}"
        response = await self.rest.handle("POST", path, headers, orjson.dumps(body))
        assert response.status == 200, response.body
        return orjson.loads(response.body)

    async def call(self, method: str, request: Any, key: str | None = None) -> bytes:
        headers = {} if key is None else {KEY: key.encode()}
        context = RequestContext("r", math.inf, headers=headers)
        return await self.prediction.answer(RPCS[method], request.SerializeToString(), context)

    def counted(self, name: str) -> dict[tuple[str, ...], float]:
        """A family of the page by its labels' values, without the model's name."""
        page = self.metrics.page().decode().replace(":shardserve:", "shardserve_")
        families = text_string_to_metric_families(page)
        return {
            tuple(v for k, v in sample.labels.items() if k != "model_name"): sample.value
            for family in families
            for sample in family.samples
            if sample.name in (f"shardserve_{name}", f"shardserve_{name}_total")
        }

    async def settled(self) -> None:
        """Every shadow has ended."""
        await asyncio.gather(*[t for t in asyncio.all_tasks() if t.get_name() == "shadow"])


@pytest.fixture(scope="module")
def one(half_plus_two_dir: Path, threads: StageThreads) -> WholeServable:
    """y = x / 2 + 2."""
    return load_whole("m", 1, half_plus_two_dir, threads)


@pytest.fixture(scope="module")
def two(tf1_dir: Path, threads: StageThreads) -> WholeServable:
    """y = 3 x + 1."""
    return load_whole("m", 2, tf1_dir, threads)


@pytest.fixture(scope="module")
def examples(tmp_path_factory: pytest.TempPathFactory, threads: StageThreads) -> list[Servable]:
    path = tmp_path_factory.mktemp("examples") / "1"
    export_examples(path)
    return [load_whole("m", number, path, threads) for number in (1, 2)]


def predict_request(**spec: Any) -> predict_pb2.PredictRequest:
    request = predict_pb2.PredictRequest()
    request.model_spec.name = "m"
    for name, value in spec.items():
        if name == "version":
            request.model_spec.version.value = value
        else:
            setattr(request.model_spec, name, value)
    request.inputs["x"].CopyFrom(tf.make_tensor_proto([2.0], tf.float32))
    return request


async def predicted(doors: Doors, key: str | None = None, **spec: Any) -> tuple[int, float]:
    """Who says to have answered over gRPC, and the answer."""
    reply = await doors.call("Predict", predict_request(**spec), key)
    response = predict_pb2.PredictResponse.FromString(reply)
    return response.model_spec.version.value, response.outputs["y"].float_val[0]


async def test_a_client_sticks_to_its_version_over_both_wires(one, two, threads) -> None:
    share = 0.3
    doors = Doors({1: one, 2: two}, Experiment(canary=share, key="X-Client"), threads)
    answers = {1: 3.0, 2: 7.0}
    for number in range(40):
        key = f"client {number}"
        expected = 2 if stickiness("m", key.encode()) < share else 1
        assert await predicted(doors, key) == (expected, answers[expected])
        body = await doors.post("predict", {"instances": [2.0]}, key)
        assert body == {"predictions": [answers[expected]]}
    counted = doors.counted("experiment_requests")
    assert set(counted) == {("1", "baseline", "OK"), ("2", "canary", "OK")}
    assert sum(counted.values()) == 80
    latencies = doors.counted("experiment_latency_count")
    assert latencies == {labels[:2]: count for labels, count in counted.items()}


async def test_without_a_key_a_share_of_the_requests_goes_to_the_newest(one, two, threads) -> None:
    doors = Doors({1: one, 2: two}, Experiment(canary=0.5), threads)
    found = [(await predicted(doors))[0] for _ in range(200)]
    assert 50 < found.count(2) < 150


async def test_who_names_a_version_or_a_label_is_in_no_experiment(one, two, threads) -> None:
    doors = Doors({1: one, 2: two}, Experiment(canary=1.0, shadow=0.0), threads)
    assert (await predicted(doors, version=1))[0] == 1
    assert (await predicted(doors, version_label="old"))[0] == 1
    body = await doors.post("predict", {"instances": [2.0]}, which="/versions/1")
    assert body == {"predictions": [3.0]}
    assert doors.counted("experiment_requests") == {}


async def test_a_single_version_is_not_on_trial(one, threads) -> None:
    doors = Doors({1: one}, Experiment(canary=0.05, shadow=1.0), threads)
    assert await predicted(doors) == (1, 3.0)
    await doors.settled()
    assert doors.counted("experiment_requests") == {}


def example_request(*signatures: str) -> inference_pb2.MultiInferenceRequest:
    request = inference_pb2.MultiInferenceRequest()
    request.input.example_list.examples.add().features.feature["x"].float_list.value.append(3.0)
    for signature in signatures:
        method = CLASSIFY if signature == "classify" else REGRESS
        task = request.tasks.add(method_name=method)
        task.model_spec.name = "m"
        task.model_spec.signature_name = signature
    return request


async def test_requests_of_examples_are_in_experiments_too(examples, threads) -> None:
    doors = Doors({1: examples[0], 2: examples[1]}, Experiment(shadow=1.0), threads)
    both = await doors.call("MultiInference", example_request("classify", "regress"))
    response = inference_pb2.MultiInferenceResponse.FromString(both)
    assert [result.model_spec.version.value for result in response.results] == [1, 1]
    for method, signature in (("classify", "classify"), ("regress", "regress")):
        body = {"signature_name": signature, "examples": [{"x": 3.0}]}
        assert "results" in await doors.post(method, body)
    await doors.settled()
    counted = {("1", "baseline", "OK"): 4, ("2", "shadow", "OK"): 4}
    assert doors.counted("experiment_requests") == counted


class Second:
    """A newest version that a test can make fail or hang; else as the one it is made of."""

    name = "m"
    version = 2
    signature_def_map = b""

    def __init__(self, servable: Servable) -> None:
        self._servable = servable
        self.signatures = dict(servable.signatures)
        self.asked: list[Mapping[str, Array]] = []
        self.error: Exception | None = None
        self.began = asyncio.Event()
        self.go: asyncio.Event | None = None

    async def run(self, signature: str, inputs: Any, outputs: Any, context: Any) -> Any:
        self.asked.append(inputs)
        self.began.set()
        assert context.deadline < math.inf
        if self.go is not None:
            await self.go.wait()
        if self.error is not None:
            raise self.error
        return await self._servable.run(signature, inputs, outputs, context)

    def stage_counts(self) -> dict[str, Any]:
        return {}

    async def close(self) -> None: ...


SHADOWED = Experiment(shadow=1.0)


@pytest.mark.parametrize(
    ("error", "status"),
    [(None, "OK"), (Unavailable("no"), "UNAVAILABLE"), (ZeroDivisionError("!"), "INTERNAL")],
)
async def test_a_shadow_gets_the_request_and_nobody_hears_of_it(
    one, threads, error: Exception | None, status: str
) -> None:
    shadow = Second(one)
    shadow.error = error
    doors = Doors({1: one, 2: shadow}, SHADOWED, threads)
    assert await predicted(doors) == (1, 3.0)
    assert await doors.post("predict", {"instances": [2.0]}) == {"predictions": [3.0]}
    await doors.settled()
    assert [inputs["x"].tolist() for inputs in shadow.asked] == [[2.0], [2.0]]
    assert doors.counted("experiment_requests") == {
        ("1", "baseline", "OK"): 2,
        ("2", "shadow", status): 2,
    }


async def test_a_shadow_that_has_no_such_signature_or_input_is_an_error_of_its_own(
    one, mixed, threads
) -> None:
    doors = Doors({1: one, 2: Second(mixed)}, SHADOWED, threads)
    assert await predicted(doors) == (1, 3.0)
    await doors.settled()
    counted = doors.counted("experiment_requests")
    assert counted[("2", "shadow", "INVALID_ARGUMENT")] == 1


async def test_shadows_that_hang_hold_up_nobody_and_are_few(one, threads) -> None:
    shadow = Second(one)
    shadow.go = asyncio.Event()
    doors = Doors({1: one, 2: shadow}, SHADOWED, threads)
    for _ in range(50):
        assert await asyncio.wait_for(predicted(doors), 10) == (1, 3.0)
    await asyncio.sleep(0)
    assert len(shadow.asked) == 16
    assert doors.counted("experiment_shadows_dropped") == {("2",): 34}
    shadow.go.set()
    await doors.settled()
    assert await predicted(doors) == (1, 3.0)
    await doors.settled()
    assert len(shadow.asked) == 17


async def test_shadows_of_more_bytes_than_may_be_kept_are_dropped(one, threads) -> None:
    shadow = Second(one)
    doors = Doors({1: one, 2: shadow}, SHADOWED, threads)
    request = predict_request()
    large = np.zeros((64 << 20) // 4 + 1, np.float32)
    request.inputs["x"].CopyFrom(tf.make_tensor_proto(large))
    await doors.call("Predict", request)
    assert doors.counted("experiment_shadows_dropped") == {("2",): 1}
    assert not shadow.asked


async def test_a_version_is_not_freed_under_its_shadows_nor_asked_after_it_has_gone(
    one, threads
) -> None:
    shadow = Second(one)
    shadow.go = asyncio.Event()
    doors = Doors({1: one, 2: shadow}, SHADOWED, threads)
    await predicted(doors)
    await asyncio.sleep(0)
    doors.serve({1: one}, SHADOWED)
    quiet = asyncio.ensure_future(doors.catalog.quiesce())
    await asyncio.sleep(0)
    assert not quiet.done()
    shadow.go.set()
    await asyncio.wait_for(quiet, 5)
    await predicted(doors)
    await doors.settled()
    assert len(shadow.asked) == 1


async def test_a_version_is_not_freed_before_its_shadow_has_begun(one, threads) -> None:
    shadow = Second(one)
    shadow.go = asyncio.Event()
    doors = Doors({1: one, 2: shadow}, SHADOWED, threads)
    await predicted(doors)
    assert not shadow.asked
    doors.serve({1: one}, SHADOWED)
    quiet = asyncio.ensure_future(doors.catalog.quiesce())
    await asyncio.sleep(0)
    assert shadow.asked
    assert not quiet.done()
    shadow.go.set()
    await asyncio.wait_for(quiet, 5)


async def test_a_shadow_that_is_cancelled_before_it_has_begun_keeps_nothing(one, threads) -> None:
    doors = Doors({1: one, 2: Second(one)}, SHADOWED, threads)
    await predicted(doors)
    [shadow] = [task for task in asyncio.all_tasks() if task.get_name() == "shadow"]
    shadow.cancel()
    doors.serve({1: one}, SHADOWED)
    await asyncio.wait_for(doors.catalog.quiesce(), 5)


async def test_a_defect_of_a_version_on_trial_counts_as_one(one, threads) -> None:
    newest = Second(one)
    newest.error = ZeroDivisionError("!")
    doors = Doors({1: one, 2: newest}, Experiment(canary=1.0), threads)
    body = orjson.dumps({"instances": [2.0]})
    response = await doors.rest.handle("POST", "/v1/models/m:predict", {}, body)
    assert response.status == 500
    assert doors.counted("experiment_requests") == {("2", "canary", "INTERNAL"): 1}


async def test_a_request_that_outlasts_its_shadow_s_version_has_none(one, threads) -> None:
    """Its own servable is kept for it; who is silent is not."""
    before, shadow = Second(one), Second(one)
    before.version, before.go = 1, asyncio.Event()
    doors = Doors({1: before, 2: shadow}, SHADOWED, threads)
    asked = asyncio.ensure_future(doors.post("predict", {"instances": [2.0]}))
    await before.began.wait()
    doors.serve({1: before}, SHADOWED)
    before.go.set()
    assert await asked == {"predictions": [3.0]}
    await doors.settled()
    assert not shadow.asked


@pytest.mark.parametrize(
    ("error", "status", "has_shadow"),
    [
        (InvalidArgument("indices[0] = 9 is not in [0, 3)"), "INVALID_ARGUMENT", True),
        (DeadlineExceeded("late"), "DEADLINE_EXCEEDED", True),
        (ZeroDivisionError("!"), "INTERNAL", True),
        (Unavailable("the queue is full"), "UNAVAILABLE", False),
        (ResourceExhausted("too many"), "RESOURCE_EXHAUSTED", False),
    ],
)
async def test_a_request_that_fails_casts_a_shadow_unless_it_was_refused(
    one, two, threads, error: Exception, status: str, *, has_shadow: bool
) -> None:
    before = Second(one)
    before.version, before.error = 1, error
    doors = Doors({1: before, 2: Second(two)}, SHADOWED, threads)
    body = orjson.dumps({"instances": [2.0]})
    response = await doors.rest.handle("POST", "/v1/models/m:predict", {}, body)
    assert response.status >= 400
    await doors.settled()

    shadows = {("2", "shadow", "OK"): 1.0} if has_shadow else {}
    assert doors.counted("experiment_requests") == {("1", "baseline", status): 1.0, **shadows}


async def test_a_client_that_goes_away_casts_no_shadow(one, two, threads) -> None:
    before = Second(one)
    before.version, before.go = 1, asyncio.Event()
    doors = Doors({1: before, 2: Second(two)}, SHADOWED, threads)
    asked = asyncio.ensure_future(doors.post("predict", {"instances": [2.0]}))
    await before.began.wait()
    asked.cancel()
    await asyncio.wait((asked,))
    await doors.settled()
    assert doors.counted("experiment_requests") == {("1", "baseline", "CANCELLED"): 1.0}


async def test_a_request_that_cannot_be_read_casts_no_shadow(one, two, threads) -> None:
    doors = Doors({1: one, 2: Second(two)}, SHADOWED, threads)
    body = orjson.dumps({"instances": ["no number"]})
    response = await doors.rest.handle("POST", "/v1/models/m:predict", {}, body)
    assert response.status == 400
    await doors.settled()
    assert doors.counted("experiment_requests") == {}
