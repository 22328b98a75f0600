"""Two stock TensorFlow Serving clients, that know nothing of shardserve: gRPC and REST.

python -m examples.client --request .cache/dlrm/1/assets.extra/predict_request.json
"""

from __future__ import annotations

import argparse
import json
import urllib.request
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import grpc

from examples.dlrm import quiet_tensorflow, shortest

tf = quiet_tensorflow()
from tensorflow_serving.apis import predict_pb2, prediction_service_pb2_grpc  # noqa: E402

TIMEOUT_SECONDS = 30.0


def predict_over_grpc(
    address: str, model: str, instances: Sequence[Mapping[str, Any]]
) -> list[list[float]]:
    """The predictions, one row for each instance, from PredictionService/Predict."""
    request = predict_pb2.PredictRequest()
    request.model_spec.name = model
    for name in instances[0]:
        values = [instance[name] for instance in instances]
        dtype = tf.float32 if name == "dense" else tf.int64
        request.inputs[name].CopyFrom(tf.make_tensor_proto(values, dtype))
    with grpc.insecure_channel(address) as channel:
        stub = prediction_service_pb2_grpc.PredictionServiceStub(channel)
        reply = stub.Predict(request, timeout=TIMEOUT_SECONDS)
    return [shortest(row) for row in tf.make_ndarray(reply.outputs["prediction"])]


def predict_over_rest(
    address: str, model: str, instances: Sequence[Mapping[str, Any]]
) -> list[list[float]]:
    """The same from POST /v1/models/MODEL:predict."""
    request = urllib.request.Request(
        f"http://{address}/v1/models/{model}:predict",
        data=json.dumps({"instances": instances}).encode(),
        headers={"Content-Type": "application/json"},
    )
    with urllib.request.urlopen(request, timeout=TIMEOUT_SECONDS) as reply:
        predictions: list[list[float]] = json.load(reply)["predictions"]
    return predictions


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description="Ask a server for predictions, in both ways.")
    parser.add_argument("--request", type=Path, required=True, help='JSON: {"instances": [...]}')
    parser.add_argument("--host", default="localhost")
    parser.add_argument("--port", type=int, default=8500, help="the gRPC port")
    parser.add_argument("--rest_api_port", type=int, default=8501)
    parser.add_argument("--model_name", default="dlrm")
    flags = parser.parse_args()
    instances = json.loads(flags.request.read_text())["instances"]
    grpc_address, rest_address = (
        f"{flags.host}:{port}" for port in (flags.port, flags.rest_api_port)
    )
    print("gRPC", predict_over_grpc(grpc_address, flags.model_name, instances))
    print("REST", predict_over_rest(rest_address, flags.model_name, instances))


if __name__ == "__main__":
    main()
