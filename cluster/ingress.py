"""Behind Ray Serve's ingress: which gRPC methods it takes, and answers as Serve wants them.

Serve imports `add_*` in its proxies, too. The generated adders would load TensorFlow there, so
these pass requests on as bytes; only the router parses them.
"""

from __future__ import annotations

from typing import Any

import grpc

PREDICTION_METHODS = ("Predict", "GetModelMetadata")
MODEL_METHODS = ("GetModelStatus",)


def add_prediction_service(servicer: Any, server: Any) -> None:
    """Register `tensorflow.serving.PredictionService` of the methods that `Router` has."""
    _add("tensorflow.serving.PredictionService", PREDICTION_METHODS, servicer, server)


def add_model_service(servicer: Any, server: Any) -> None:
    """Register `tensorflow.serving.ModelService` of the methods that `Router` has."""
    _add("tensorflow.serving.ModelService", MODEL_METHODS, servicer, server)


#: Their import paths, as `gRPCOptions` takes them.
ADDERS = [
    f"{adder.__module__}.{adder.__qualname__}"
    for adder in (add_prediction_service, add_model_service)
]


def _add(service: str, methods: tuple[str, ...], servicer: Any, server: Any) -> None:
    handlers = {
        name: grpc.unary_unary_rpc_method_handler(getattr(servicer, name)) for name in methods
    }
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(service, handlers),))


class Encoded:
    """A reply that is serialised already: Serve calls `SerializeToString` on what it is given."""

    def __init__(self, payload: bytes) -> None:
        self._payload = payload

    def SerializeToString(self) -> bytes:  # noqa: N802 (protobuf's name)
        return self._payload
