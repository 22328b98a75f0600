"""A bare echo behind Ray Serve's HAProxy ingress, HTTP and gRPC. Prints "ready" when it serves.

python -m benchmarks.ingress_peers.serve_echo HTTP_PORT GRPC_PORT
"""

# mypy: disable-error-code="attr-defined"

from __future__ import annotations

import os
import signal
import sys
import threading
from typing import Any

# Read when ray.serve is imported, here and in every process that Ray starts.
os.environ["RAY_SERVE_ENABLE_HA_PROXY"] = "1"
os.environ["RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S"] = "0"
os.environ["RAY_ENABLE_UV_RUN_RUNTIME_ENV"] = "0"

import ray
from ray import serve
from ray.serve.config import HTTPOptions, gRPCOptions
from ray.serve.schema import LoggingConfig
from starlette.requests import Request
from starlette.responses import Response

LOGGING = LoggingConfig(enable_access_log=False, log_level="WARNING")
ADDER = (
    "tensorflow_serving.apis.prediction_service_pb2_grpc.add_PredictionServiceServicer_to_server"
)


@serve.deployment(max_ongoing_requests=1000, logging_config=LOGGING)
class Echo:
    """Answers with what it got; a gRPC request is one tensor that comes back as a reply."""

    async def __call__(self, request: Request) -> Response:
        return Response(await request.body(), media_type="application/json")

    async def Predict(self, request: Any) -> Any:  # noqa: N802 (the method's name on the wire)
        from tensorflow_serving.apis import predict_pb2

        reply = predict_pb2.PredictResponse()
        reply.outputs["y"].CopyFrom(request.inputs["x"])
        return reply


def main(http_port: int, grpc_port: int) -> None:
    ray.init("local", num_cpus=2, include_dashboard=False, logging_level="WARNING")
    serve.start(
        http_options=HTTPOptions(host="127.0.0.1", port=http_port),
        grpc_options=gRPCOptions(port=grpc_port, grpc_servicer_functions=[ADDER]),
        logging_config=LOGGING,
    )
    serve.run(Echo.bind(), name="echo")
    print("ready", flush=True)
    stop = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stop.set())
    stop.wait()
    serve.shutdown()
    ray.shutdown()


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
