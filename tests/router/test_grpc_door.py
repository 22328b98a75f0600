"""The gRPC door over real sockets, asked by the stubs of tensorflow-serving-api."""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncIterator
from typing import Any

import grpc
import numpy as np
import pytest
import tensorflow as tf
from prometheus_client import CollectorRegistry
from tensorflow_serving.apis import (
    get_model_metadata_pb2,
    get_model_status_pb2,
    model_service_pb2_grpc,
    predict_pb2,
    prediction_service_pb2_grpc,
)

from shardserve.batching.errors import InvalidArgument, Unavailable
from shardserve.router.catalog import Catalog, Model, State, Version
from shardserve.router.grpc_door import GrpcDoor
from shardserve.router.handlers import Handlers
from shardserve.router.metrics import Metrics
from shardserve.router.prediction import RPCS, PredictionHandlers
from shardserve.router.servable import Array, RequestContext, Signature, TensorInfo
from shardserve.router.session import StageThreads


@pytest.fixture
def metrics() -> Metrics:
    return Metrics(CollectorRegistry())


@pytest.fixture
async def door(handlers: Handlers, metrics: Metrics) -> AsyncIterator[GrpcDoor]:
    door = GrpcDoor(PredictionHandlers(handlers, metrics), "127.0.0.1")
    await door.start()
    yield door
    await door.stop(grace=0.0)


@pytest.fixture
async def channel(door: GrpcDoor) -> AsyncIterator[grpc.aio.Channel]:
    options = [("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1)]
    async with grpc.aio.insecure_channel(f"127.0.0.1:{door.port}", options) as channel:
        yield channel


@pytest.fixture
def prediction(channel: grpc.aio.Channel) -> Any:
    return prediction_service_pb2_grpc.PredictionServiceStub(channel)


def request_for(values: Any, name: str = "half_plus_two") -> predict_pb2.PredictRequest:
    request = predict_pb2.PredictRequest()
    request.model_spec.name = name
    request.inputs["x"].CopyFrom(tf.make_tensor_proto(values, tf.float32))
    return request


async def failure(call: Any) -> grpc.aio.AioRpcError:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    return caught.value


async def test_a_stub_gets_its_prediction(prediction: Any) -> None:
    response = await prediction.Predict(request_for([1.0, 2.0, 5.0]))
    assert list(response.outputs["y"].float_val) == [2.5, 3.0, 4.5]
    assert response.model_spec.version.value == 123


async def test_messages_of_many_megabytes_pass(prediction: Any) -> None:
    values = np.arange(4 << 20, dtype=np.float32)
    response = await prediction.Predict(request_for(values))
    np.testing.assert_array_equal(tf.make_ndarray(response.outputs["y"]), values / 2 + 2)


async def test_metadata_and_status_are_served(prediction: Any, channel: grpc.aio.Channel) -> None:
    asked = get_model_metadata_pb2.GetModelMetadataRequest(metadata_field=["signature_def"])
    asked.model_spec.name = "half_plus_two"
    metadata = await prediction.GetModelMetadata(asked)
    assert metadata.metadata.keys() == {"signature_def"}
    status_request = get_model_status_pb2.GetModelStatusRequest()
    status_request.model_spec.name = "half_plus_two"
    status = await model_service_pb2_grpc.ModelServiceStub(channel).GetModelStatus(status_request)
    assert [row.version for row in status.model_version_status] == [124, 123, 122]


async def test_errors_have_their_code_and_say_why(prediction: Any) -> None:
    error = await failure(prediction.Predict(request_for([1.0], "no")))
    assert error.code() is grpc.StatusCode.NOT_FOUND
    assert error.details() == "Servable not found for request: Latest(no)"
    metadata = get_model_metadata_pb2.GetModelMetadataRequest()
    metadata.model_spec.name = "half_plus_two"
    error = await failure(prediction.GetModelMetadata(metadata))
    assert error.code() is grpc.StatusCode.INVALID_ARGUMENT


async def test_long_messages_are_cut_and_marked(prediction: Any) -> None:
    error = await failure(prediction.Predict(request_for([1.0], "n" * 5000)))
    assert error.details() is not None
    assert error.details().startswith("Servable not found for request: Latest(nnn")
    assert error.details().endswith("n...TRUNCATED")


async def test_bytes_that_are_no_request_are_an_invalid_argument(
    channel: grpc.aio.Channel,
) -> None:
    call = channel.unary_unary("/tensorflow.serving.PredictionService/Predict")
    error = await failure(call(b"\xff\xff"))
    assert error.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert error.details() == "the request is not a tensorflow.serving.PredictRequest"


async def test_what_is_not_served_is_unimplemented(channel: grpc.aio.Channel) -> None:
    call = channel.unary_unary("/tensorflow.serving.PredictionService/PredictStreamed")
    error = await failure(call(b""))
    assert error.code() is grpc.StatusCode.UNIMPLEMENTED


async def test_a_failure_names_its_request(prediction: Any) -> None:
    call = prediction.Predict(request_for([1.0], "no"), metadata=(("x-request-id", "mine"),))
    error = await failure(call)
    assert ("x-request-id", "mine") in list(error.trailing_metadata())


async def test_only_predictions_are_counted(
    prediction: Any, channel: grpc.aio.Channel, metrics: Metrics
) -> None:
    await prediction.Predict(request_for([1.0]))
    await failure(prediction.Predict(request_for([1.0], "no")))
    status_request = get_model_status_pb2.GetModelStatusRequest()
    status_request.model_spec.name = "half_plus_two"
    await model_service_pb2_grpc.ModelServiceStub(channel).GetModelStatus(status_request)
    page = metrics.page().decode()
    assert 'request_count{model_name="half_plus_two",status="OK"} 1' in page
    assert 'request_count{model_name="no",status="NOT_FOUND"} 1' in page
    assert (
        'request_latency_count{model_name="half_plus_two",API="Predict",entrypoint="GRPC"} 1'
    ) in page


class _Stuck:
    """A servable that shows what it was given, waits until it is cancelled, or breaks."""

    name = "stuck"
    version = 1
    signature_def_map = b""

    def __init__(self, defect: Exception | None = None) -> None:
        inputs = {"x": TensorInfo("x:0", 1, None)}
        self.signatures = {"serving_default": Signature("", inputs, {})}
        self.contexts: list[RequestContext] = []
        self.waiting = asyncio.Event()
        self.cancelled = asyncio.Event()
        self._defect = defect

    async def run(
        self, signature: str, inputs: Any, outputs: Any, context: RequestContext
    ) -> dict[str, Array]:
        self.contexts.append(context)
        self.waiting.set()
        if self._defect is not None:
            raise self._defect
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            self.cancelled.set()
            raise
        return {}


def _handlers_of(servable: _Stuck, threads: StageThreads, metrics: Metrics) -> PredictionHandlers:
    catalog = Catalog({"stuck": Model({1: Version(State.AVAILABLE, servable)})})
    return PredictionHandlers(Handlers(catalog, threads), metrics)


async def _with_door(handlers: PredictionHandlers, ask: Any) -> None:
    door = GrpcDoor(handlers, "127.0.0.1")
    await door.start()
    async with grpc.aio.insecure_channel(f"127.0.0.1:{door.port}") as channel:
        await ask(prediction_service_pb2_grpc.PredictionServiceStub(channel))
    await door.stop(grace=0.0)


async def test_a_client_s_deadline_reaches_the_model_and_cancels_it(
    threads: StageThreads, metrics: Metrics
) -> None:
    stuck = _Stuck()

    async def ask(stub: Any) -> None:
        error = await failure(stub.Predict(request_for([1.0], "stuck"), timeout=0.3))
        assert error.code() is grpc.StatusCode.DEADLINE_EXCEEDED
        await asyncio.wait_for(stuck.cancelled.wait(), 60)

    await _with_door(_handlers_of(stuck, threads, metrics), ask)
    assert stuck.contexts[0].deadline < math.inf


async def test_a_client_that_gives_up_cancels_its_request(
    threads: StageThreads, metrics: Metrics
) -> None:
    stuck = _Stuck()

    async def ask(stub: Any) -> None:
        call = stub.Predict(request_for([1.0], "stuck"))
        await asyncio.wait_for(stuck.waiting.wait(), 60)
        call.cancel()
        await asyncio.wait_for(stuck.cancelled.wait(), 60)

    await _with_door(_handlers_of(stuck, threads, metrics), ask)
    assert stuck.contexts[0].deadline == math.inf
    assert 'request_count{model_name="stuck",status="CANCELLED"} 1' in metrics.page().decode()


async def test_a_defect_of_ours_is_an_internal_error_that_gives_nothing_away(
    threads: StageThreads, metrics: Metrics
) -> None:
    async def ask(stub: Any) -> None:
        error = await failure(stub.Predict(request_for([1.0], "stuck")))
        assert error.code() is grpc.StatusCode.INTERNAL
        assert "secret" not in str(error.details())

    stuck = _Stuck(ZeroDivisionError("a secret"))
    await _with_door(_handlers_of(stuck, threads, metrics), ask)


async def test_handlers_alone_raise_our_errors_for_other_ingresses(
    handlers: Handlers, metrics: Metrics
) -> None:
    alone = PredictionHandlers(handlers, metrics)
    context = RequestContext("id", math.inf)
    with pytest.raises(InvalidArgument, match="Missing ModelSpec"):
        await alone.answer(RPCS["Predict"], b"", context)
    raw = await alone.answer(RPCS["Predict"], request_for([1.0]).SerializeToString(), context)
    assert predict_pb2.PredictResponse.FromString(raw).outputs["y"].float_val[0] == 2.5


async def test_several_doors_share_a_port(handlers: Handlers, metrics: Metrics) -> None:
    first = GrpcDoor(PredictionHandlers(handlers, metrics), "127.0.0.1")
    await first.start()
    second = GrpcDoor(PredictionHandlers(handlers, metrics), "127.0.0.1", first.port)
    await second.start()
    assert second.port == first.port
    await first.stop(grace=0.0)
    async with grpc.aio.insecure_channel(f"127.0.0.1:{second.port}") as channel:
        stub = prediction_service_pb2_grpc.PredictionServiceStub(channel)
        await stub.Predict(request_for([1.0]), wait_for_ready=True)
    await second.stop(grace=0.0)


async def test_an_address_that_cannot_be_had_is_named(handlers: Handlers, metrics: Metrics) -> None:
    door = GrpcDoor(PredictionHandlers(handlers, metrics), "203.0.113.1", 1)
    with pytest.raises(Unavailable, match=r"cannot listen on 203\.0\.113\.1:1"):
        await door.start()


async def test_a_door_that_never_opened_stops(handlers: Handlers, metrics: Metrics) -> None:
    await GrpcDoor(PredictionHandlers(handlers, metrics)).stop()
