"""Ray Serve with HAProxy, `@serve.batch` and `tf.saved_model.load`, as its user would write it.

    python -m benchmarks.serving_peers.ray_serve --model=DIR/1 --http_port=P --grpc_port=Q

HTTP takes TensorFlow Serving's row form, `POST /` with `{"instances": [...]}`; each example goes
into a batch. gRPC takes a `PredictRequest`, which is a batch already. Prints "ready" when it
serves. `POST /tune` with `{"max_batch_size": n, "batch_wait_timeout_s": s}` changes how examples
are batched, so that one start is enough to find the best.
"""

# mypy: disable-error-code="untyped-decorator"

from __future__ import annotations

import argparse
import asyncio
import os
import signal
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

# Read when ray.serve is imported, here and in every process that Ray starts.
os.environ["RAY_SERVE_ENABLE_HA_PROXY"] = "1"
os.environ["RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S"] = "0"
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import numpy as np
import orjson
import ray
from ray import serve
from ray.serve.config import HTTPOptions, gRPCOptions
from ray.serve.schema import LoggingConfig
from starlette.requests import Request
from starlette.responses import Response

Inputs = dict[str, Any]
#: Batches at once, one for each core of a small machine.
GRPC_THREADS = 2
LOGGING = LoggingConfig(enable_access_log=False, log_level="WARNING")
ADDER = (
    "tensorflow_serving.apis.prediction_service_pb2_grpc.add_PredictionServiceServicer_to_server"
)


class Model:
    """The deployment: one SavedModel, called with batches of examples."""

    def __init__(self, directory: str) -> None:
        import tensorflow as tf
        from tensorflow_serving.apis import predict_pb2

        self._tf, self._replies = tf, predict_pb2
        self._executor = ThreadPoolExecutor(GRPC_THREADS)
        self._loaded = tf.saved_model.load(directory)
        self._signature = self._loaded.signatures["serving_default"]
        specs = self._signature.structured_input_signature[1]
        self._dtypes = {name: spec.dtype.as_numpy_dtype for name, spec in specs.items()}
        for batch in (1, 32, 270):
            self._run(
                {
                    name: np.zeros((batch, *spec.shape[1:]), self._dtypes[name])
                    for name, spec in specs.items()
                }
            )

    async def __call__(self, request: Request) -> Response:
        body = orjson.loads(await request.body())
        if request.url.path == "/tune":
            self._predict_example.set_max_batch_size(body["max_batch_size"])
            self._predict_example.set_batch_wait_timeout_s(body["batch_wait_timeout_s"])
            return Response(b"{}")
        predictions = await asyncio.gather(*map(self._predict_example, body["instances"]))
        return Response(orjson.dumps({"predictions": predictions}), media_type="application/json")

    @serve.batch(max_batch_size=64, batch_wait_timeout_s=0.002, max_concurrent_batches=1)
    async def _predict_example(self, examples: list[dict[str, Any]]) -> list[list[float]]:
        # Blocks this loop, so that what comes in meanwhile fills the next batch. Awaiting a thread
        # here leaves Serve free to make many small batches, which then wait for each other.
        predictions: list[list[float]] = self._run(
            {
                name: np.array([example[name] for example in examples], dtype)
                for name, dtype in self._dtypes.items()
            }
        ).tolist()
        return predictions

    async def Predict(self, request: Any) -> Any:  # noqa: N802 (the method's name in the proto)
        """gRPC: a batch as the client made it."""
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._executor, self._predict_proto, request)

    def _predict_proto(self, request: Any) -> Any:
        prediction = self._run(
            {name: self._tf.make_ndarray(proto) for name, proto in request.inputs.items()}
        )
        reply = self._replies.PredictResponse(model_spec=request.model_spec)
        reply.outputs["prediction"].CopyFrom(self._tf.make_tensor_proto(prediction))
        return reply

    def _run(self, inputs: Inputs) -> Any:
        tensors = {name: self._tf.constant(value) for name, value in inputs.items()}
        return self._signature(**tensors)["prediction"].numpy()


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description="Serve a DLRM by Ray Serve.")
    parser.add_argument("--model", required=True, help="the SavedModel's directory")
    parser.add_argument("--http_port", type=int, required=True)
    parser.add_argument("--grpc_port", type=int, required=True)
    parser.add_argument("--replicas", type=int, default=1)
    flags = parser.parse_args()
    ended = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: ended.set())
    ray.init(address="local", include_dashboard=False, log_to_driver=False)
    serve.start(
        http_options=HTTPOptions(host="127.0.0.1", port=flags.http_port),
        grpc_options=gRPCOptions(port=flags.grpc_port, grpc_servicer_functions=[ADDER]),
        logging_config=LOGGING,
    )
    deployment = serve.deployment(Model).options(
        num_replicas=flags.replicas,
        max_ongoing_requests=1000,
        ray_actor_options={"num_cpus": 0.5},
        logging_config=LOGGING,
    )
    serve.run(deployment.bind(flags.model), route_prefix="/")
    print("\nready", flush=True)
    ended.wait()
    serve.shutdown()
    ray.shutdown()


if __name__ == "__main__":
    main()
