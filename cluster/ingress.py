"""Which gRPC methods Ray Serve's ingress takes.

Serve imports `add_*` in its proxies, too. The generated adders would load TensorFlow there, so
these pass requests on as bytes; only the router parses them.
"""

from __future__ import annotations

from typing import Any

import grpc


def add_prediction_service(servicer: Any, server: Any) -> None:
    """Register `tensorflow.serving.PredictionService`, as far as `Router` has it."""
    methods = ("Predict", "Classify", "Regress", "MultiInference", "GetModelMetadata")
    _add("tensorflow.serving.PredictionService", methods, servicer, server)


def add_model_service(servicer: Any, server: Any) -> None:
    """Register `tensorflow.serving.ModelService`, as far as `Router` has it."""
    methods = ("GetModelStatus", "HandleReloadConfigRequest")
    _add("tensorflow.serving.ModelService", methods, servicer, server)


def add_session_service(servicer: Any, server: Any) -> None:
    """Register `tensorflow.serving.SessionService`."""
    _add("tensorflow.serving.SessionService", ("SessionRun",), servicer, server)


#: Their import paths, as `gRPCOptions` takes them.
ADDERS = [
    f"{__name__}.{adder.__name__}"
    for adder in (add_prediction_service, add_model_service, add_session_service)
]


def _add(service: str, methods: tuple[str, ...], servicer: Any, server: Any) -> None:
    handlers = {
        name: grpc.unary_unary_rpc_method_handler(getattr(servicer, name)) for name in methods
    }
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(service, handlers),))
