"""Clients that users have: curl, gRPC's health and reflection, Prometheus; and two flags."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path

import grpc
import numpy as np
import pytest
import tensorflow as tf
from google.protobuf.descriptor_pool import DescriptorPool
from google.protobuf.message_factory import GetMessageClass
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import (
    ProtoReflectionDescriptorDatabase,
)
from prometheus_client.parser import text_string_to_metric_families
from tensorflow_serving.apis import get_model_metadata_pb2

from shardserve.router.handlers import HandlerOptions
from shardserve.router.servable import numpy_dtype
from tests.contract.clients import GrpcClient, RestClient
from tests.contract.endpoint import Endpoint
from tests.contract.requests import (
    classify,
    half,
    metadata,
    multi,
    predict,
    regress,
    session_run,
    spec,
    task,
    tensor,
)
from tests.contract.servers import local_server

SECONDS = 30
STRING = tf.string.as_datatype_enum

curl = pytest.mark.skipif(shutil.which("curl") is None, reason="there is no curl")


@curl
def test_curl_predicts(endpoint: Endpoint) -> None:
    url = endpoint.url("/v1/models/half_plus_two:predict")
    said = subprocess.run(
        ["curl", "-s", "-d", '{"instances": [1.0, 2.0, 5.0]}', url],
        capture_output=True, check=True, timeout=SECONDS,
    )  # fmt: skip
    assert json.loads(said.stdout) == {"predictions": [2.5, 3.0, 4.5]}


@curl
def test_curl_is_told_to_go_on_with_a_long_body_and_inflates_the_reply(endpoint: Endpoint) -> None:
    body = json.dumps({"inputs": [0.5] * 300_000}).encode()
    url = endpoint.url("/v1/models/half_plus_two:predict")
    said = subprocess.run(
        ["curl", "-s", "--compressed", "-H", "Expect: 100-continue", "--data-binary", "@-", url],
        input=body, capture_output=True, check=True, timeout=SECONDS,
    )  # fmt: skip
    assert json.loads(said.stdout) == {"outputs": [2.25] * 300_000}


def test_health_is_told_under_every_name(rpc: GrpcClient) -> None:
    stub = health_pb2_grpc.HealthStub(rpc.channel)
    for name in ("", "ModelService", "PredictionService", "tensorflow.serving.PredictionService"):
        asked = health_pb2.HealthCheckRequest(service=name)
        assert stub.Check(asked).status == health_pb2.HealthCheckResponse.SERVING
    with pytest.raises(grpc.RpcError) as caught:
        stub.Check(health_pb2.HealthCheckRequest(service="Nothing"))
    assert caught.value.code() is grpc.StatusCode.NOT_FOUND


def test_reflection_is_enough_to_predict(rpc: GrpcClient) -> None:
    database = ProtoReflectionDescriptorDatabase(rpc.channel)
    assert {f"tensorflow.serving.{s}Service" for s in ("Prediction", "Model", "Session")} <= set(
        database.get_services()
    )
    pool = DescriptorPool(database)
    service = pool.FindServiceByName("tensorflow.serving.PredictionService")
    method = service.FindMethodByName("Predict")
    asked, answered = map(GetMessageClass, (method.input_type, method.output_type))
    call = rpc.channel.unary_unary(
        f"/{service.full_name}/{method.name}", asked.SerializeToString, answered.FromString
    )
    reply = call(asked.FromString(half().SerializeToString()))
    assert list(reply.outputs["y"].float_val) == [2.5]


def test_what_metadata_say_is_what_can_be_asked(rpc: GrpcClient) -> None:
    """As `saved_model_cli` does: inputs and outputs from the signatures alone."""
    reply = rpc.call("GetModelMetadata", metadata(spec("types"), "signature_def"))
    signatures = get_model_metadata_pb2.SignatureDefMap()
    reply.metadata["signature_def"].Unpack(signatures)
    signature = signatures.signature_def["several"]
    shape = {alias: [abs(d.size) for d in info.tensor_shape.dim]
             for alias, info in signature.inputs.items()}  # fmt: skip
    inputs = {
        alias: np.full(shape[alias], b"" if info.dtype == STRING else 0, numpy_dtype(info.dtype))
        for alias, info in signature.inputs.items()
    }
    outputs = rpc.call("Predict", predict(spec("types", signature="several"), **inputs)).outputs
    assert {alias: proto.dtype for alias, proto in outputs.items()} == {
        alias: info.dtype for alias, info in signature.outputs.items()
    }


def test_prometheus_reads_the_metrics(rest: RestClient, rpc: GrpcClient) -> None:
    rpc.call("Predict", half())
    rest.predict("half_plus_two", {"instances": [1.0]})
    rest.send("GET", "/v1/models/%FF")
    rpc.call("MultiInference", multi(task("regress", "regress")))
    page = rest.send("GET", "/monitoring/prometheus/metrics")
    assert page.headers["content-type"].startswith("text/plain")
    families = {f.name: f for f in text_string_to_metric_families(page.body.decode())}
    counted = families[":tensorflow:serving:request_count"].samples
    assert {"model_name": "half_plus_two", "status": "OK"} in [s.labels for s in counted]
    latencies = families[":tensorflow:serving:request_latency"].samples
    labels = [(s.labels["API"], s.labels["entrypoint"]) for s in latencies]
    assert {("Predict", "GRPC"), ("predict", "REST")} <= set(labels)
    sizes = families[":tensorflow:serving:request_example_counts"].samples
    assert next(s.value for s in sizes if s.name.endswith("_count")) >= 1


def test_a_query_on_the_metrics_path_is_refused(rest: RestClient) -> None:
    reply = rest.send("GET", "/monitoring/prometheus/metrics?x")
    assert reply.status == 400
    assert reply.body.startswith(b"Unexpected path: /monitoring/prometheus/metrics?x. Should be")


# Flags


def test_outputs_come_as_content_where_that_is_set(model_root: Path) -> None:
    options = HandlerOptions(tensor_content=True)
    with (
        local_server(model_root, options) as endpoint,
        grpc.insecure_channel(endpoint.grpc) as channel,
    ):
        rpc = GrpcClient(channel)
        for kind, value in (
            ("float", np.array([[1.5, -2.0]], np.float32)),
            ("string", np.array([b"a", b"bc" * 200, b""], object)),
            ("bfloat16", np.ones(3, tf.bfloat16.as_numpy_dtype)),
            ("complex64", np.array([1 + 2j], np.complex64)),
            ("bool", np.array([True, False])),
        ):
            asked = predict(spec("types", signature=kind), x=tensor(value))
            reply = rpc.call("Predict", asked).outputs["y"]
            assert reply.tensor_content
            assert not (reply.float_val)
            assert not (reply.string_val)
            assert not (reply.half_val)
            assert not (reply.bool_val)
            again = predict(spec("types", signature=kind), x=reply)
            assert rpc.call("Predict", again).outputs["y"] == reply
            if kind != "string":
                np.testing.assert_array_equal(tf.make_ndarray(reply), value)
        run = session_run(spec("half_plus_two"), {"x": np.float32([1.0])}, ("y:0",))
        assert rpc.call("SessionRun", run).tensor[0].tensor.tensor_content


def test_signatures_answer_only_their_own_calls_where_that_is_set(model_root: Path) -> None:
    options = HandlerOptions(check_method_names=True)
    with (
        local_server(model_root, options) as endpoint,
        grpc.insecure_channel(endpoint.grpc) as channel,
    ):
        rpc = GrpcClient(channel)
        assert rpc.call("Predict", half())
        assert rpc.refusal("Predict", half(signature="odd")) == (
            grpc.StatusCode.INTERNAL,
            (
                "Expected prediction signature method_name to be one of "
                "{tensorflow/serving/predict, tensorflow/serving/classify, "
                "tensorflow/serving/regress}. Was: any/method"
            ),
        )
        assert rpc.refusal("Classify", classify("regress")) == (
            grpc.StatusCode.INVALID_ARGUMENT,
            (
                "Expected classification signature method_name to be tensorflow/serving/classify. "
                "Was: tensorflow/serving/regress"
            ),
        )
        _, text = rpc.refusal("Regress", regress("classify"))
        assert text.startswith("Expected regression signature method_name to be tensorflow/serving")
