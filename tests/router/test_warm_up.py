"""A version's warm-up file is replayed as requests are answered; what is wrong with it is said."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tensorflow as tf
from prometheus_client import CollectorRegistry
from tensorflow_serving.apis import prediction_log_pb2

from shardserve.batching.errors import (
    Code,
    DataLoss,
    InvalidArgument,
    ServingError,
    Unimplemented,
)
from shardserve.batching.parameters import BatchingParameters
from shardserve.router.batched import BatchedServable
from shardserve.router.metrics import Metrics
from shardserve.router.servable import Signature, TensorInfo
from shardserve.router.session import StageThreads
from shardserve.router.warm_up import WARM_UP_FILE, replay
from shardserve.router.warm_up_options import WarmUpOptions
from shardserve.router.whole import load_whole
from tests.contract.models import CLASSIFY, REGRESS, export_examples

PREFIX = ":tensorflow:serving:model_warmup"


@pytest.fixture(scope="module")
def examples_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("examples") / "1"
    export_examples(path)
    return path


@pytest.fixture
def half(half_plus_two_dir: Path, threads: StageThreads) -> BatchedServable:
    """It counts what it is asked."""
    whole = load_whole("half_plus_two", 123, half_plus_two_dir, threads)
    return BatchedServable(whole, BatchingParameters())


@pytest.fixture
def examples(examples_dir: Path, threads: StageThreads) -> BatchedServable:
    whole = load_whole("examples", 1, examples_dir, threads)
    return BatchedServable(whole, BatchingParameters())


@pytest.fixture
def metrics() -> Metrics:
    return Metrics(CollectorRegistry())


def asked(servable: BatchedServable) -> int:
    return servable.stage_counts()[f"{servable.name}/requests"].tasks


def written(directory: Path, *logs: prediction_log_pb2.PredictionLog | bytes) -> Path:
    path = directory / WARM_UP_FILE
    path.parent.mkdir(parents=True, exist_ok=True)
    with tf.io.TFRecordWriter(str(path)) as file:
        for log in logs:
            file.write(log if isinstance(log, bytes) else log.SerializeToString())
    return directory


def predict_log(name: str = "half_plus_two", key: str = "x") -> prediction_log_pb2.PredictionLog:
    log = prediction_log_pb2.PredictionLog()
    request = log.predict_log.request
    request.model_spec.name = name
    request.model_spec.version.value = 7
    request.inputs[key].CopyFrom(tf.make_tensor_proto([1.0, 2.0], tf.float32))
    return log


def example_logs() -> list[prediction_log_pb2.PredictionLog]:
    example = tf.train.Example()
    example.features.feature["x"].float_list.value.append(3.0)
    logs = [prediction_log_pb2.PredictionLog() for _ in range(3)]
    asking = (
        (logs[0].classify_log.request, "classify"),
        (logs[1].regress_log.request, "regress"),
    )
    for request, signature in asking:
        request.model_spec.name = "another"
        request.model_spec.signature_name = signature
        request.input.example_list.examples.append(example)
    both = logs[2].multi_inference_log.request
    both.input.example_list.examples.append(example)
    for signature, method in (("classify", CLASSIFY), ("regress", REGRESS)):
        task = both.tasks.add(method_name=method)
        task.model_spec.name = "another"
        task.model_spec.signature_name = signature
    return logs


@pytest.mark.parametrize(("iterations", "at_once"), [(1, 1), (3, 1), (2, 5)])
async def test_every_record_is_sent_so_often_whatever_model_it_was_of(
    half: BatchedServable,
    tmp_path: Path,
    threads: StageThreads,
    metrics: Metrics,
    iterations: int,
    at_once: int,
) -> None:
    directory = written(tmp_path, *[predict_log("any") for _ in range(4)])
    options = WarmUpOptions(iterations=iterations, threads=at_once)
    assert await replay(half, directory, threads, options, metrics=metrics) == 4
    assert asked(half) == 4 * iterations
    page = metrics.page().decode()
    labels = f'{{model_path="{tmp_path}",status="OK"}}'
    assert f"{PREFIX}_records_read{labels} 4" in page
    assert f"{PREFIX}_latency_count{labels} 1" in page


class Prompt:
    """A servable that never waits, as a stage that runs on the event loop does not."""

    name = "prompt"
    version = 1
    signatures = {"serving_default": Signature("", {"x": TensorInfo("x:0", 1, None)}, {})}  # noqa: RUF012
    signature_def_map = b""

    def __init__(self, turns: Turns) -> None:
        self.turns = turns
        self.asked_in: list[int] = []

    async def run(self, signature: str, inputs: Any, outputs: Any, context: Any) -> dict[str, Any]:
        self.asked_in.append(self.turns.count)
        return {"y": inputs["x"]}


class Turns:
    """Counts those of the event loop."""

    count = 0

    async def go_on(self) -> None:
        while True:
            self.count += 1
            await asyncio.sleep(0)


async def test_a_replay_leaves_the_event_loop_to_others_after_each_record(
    tmp_path: Path, threads: StageThreads
) -> None:
    turns = Turns()
    servable = Prompt(turns)
    others = asyncio.ensure_future(turns.go_on())
    await replay(servable, written(tmp_path, *[predict_log()] * 20), threads)
    others.cancel()
    assert len(set(servable.asked_in)) == 20


async def test_all_kinds_of_requests_are_replayed(
    examples: BatchedServable, tmp_path: Path, threads: StageThreads
) -> None:
    assert await replay(examples, written(tmp_path, *example_logs()), threads) == 3
    assert asked(examples) == 4


async def test_without_a_file_or_if_it_is_not_wanted_nothing_is_done(
    half: BatchedServable, tmp_path: Path, threads: StageThreads, metrics: Metrics
) -> None:
    assert await replay(half, tmp_path, threads, metrics=metrics) == 0
    written(tmp_path, b"\xff\xff")
    assert await replay(half, tmp_path, threads, WarmUpOptions(enabled=False)) == 0
    assert "model_path" not in metrics.page().decode()


async def test_a_record_of_no_kind_is_passed_over(
    half: BatchedServable, tmp_path: Path, threads: StageThreads
) -> None:
    directory = written(tmp_path, prediction_log_pb2.PredictionLog(), predict_log())
    assert await replay(half, directory, threads) == 2
    assert asked(half) == 1


def _session_run() -> prediction_log_pb2.PredictionLog:
    log = prediction_log_pb2.PredictionLog()
    log.session_run_log.request.model_spec.name = "m"
    return log


def _streamed() -> prediction_log_pb2.PredictionLog:
    log = prediction_log_pb2.PredictionLog()
    log.predict_streamed_log.SetInParent()
    return log


@pytest.mark.parametrize(
    ("logs", "error", "text"),
    [
        (lambda: [_session_run()], Unimplemented, "Unsupported log_type for warmup: session_run"),
        (lambda: [_streamed()], Unimplemented, "Unsupported log_type for warmup: predict_streamed"),
        (lambda: [b"\xff\xff"], InvalidArgument, "Failed to parse warmup record 0"),
        (lambda: [predict_log()] * 1001, InvalidArgument, r"exceeds the maximum \(1000\)"),
        (lambda: [predict_log(), predict_log(key="z")], InvalidArgument, "warmup record 1: .*x:0"),
    ],
)
async def test_what_cannot_be_replayed_fails_the_load_and_is_named(
    half: BatchedServable,
    tmp_path: Path,
    threads: StageThreads,
    metrics: Metrics,
    logs: Callable[[], list[prediction_log_pb2.PredictionLog | bytes]],
    error: type[ServingError],
    text: str,
) -> None:
    directory = written(tmp_path, *logs())
    with pytest.raises(error, match=text) as caught:
        await replay(half, directory, threads, metrics=metrics)
    assert str(directory / WARM_UP_FILE) in caught.value.message
    assert f'status="{Code(caught.value.code).name}"' in metrics.page().decode()


async def test_a_file_that_is_no_tfrecord_is_data_loss(
    half: BatchedServable, tmp_path: Path, threads: StageThreads
) -> None:
    directory = written(tmp_path)
    (directory / WARM_UP_FILE).write_bytes(b"these are no records at all")
    with pytest.raises(DataLoss, match="verify your warmup data is in TFRecord format"):
        await replay(half, directory, threads)
