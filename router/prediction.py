"""TensorFlow Serving's RPCs over the handlers, for any gRPC server to call."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any

from google.protobuf.message import DecodeError
from tensorflow_serving.apis import (
    get_model_metadata_pb2,
    get_model_status_pb2,
    model_management_pb2,
    predict_pb2,
    session_service_pb2,
)

from shardserve.batching.errors import Cancelled, Code, Internal, InvalidArgument, ServingError
from shardserve.router import logs, reload
from shardserve.router.handlers import Handlers
from shardserve.router.metrics import Metrics
from shardserve.router.model_specs import metric_name, peek_spec
from shardserve.router.serialized_examples import ExamplesRequest, MultiInferenceRequest
from shardserve.router.servable import RequestContext
from shardserve.router.tracing import Ended, TracedContext, Traces, traced

#: Requests from this size on are looked into for their model before they are parsed.
LARGE_REQUEST = 4 << 10

#: Characters of an error that a trace has.
_MAX_TRACED = 1024

_PACKAGE = "tensorflow.serving"


@dataclass(frozen=True)
class Rpc:
    """One method of a service. `message` parses its requests, `wanted` is their type's name.

    `is_counted`: the original counts requests of it. `runs_model_first`: its first field is the
    ModelSpec of a model that it runs. `asks_servables`: what it asks must not be unloaded
    meanwhile; a reload of the configuration, which may wait for an unload, must not hold that up.
    """

    service: str
    method: str
    message: Any
    wanted: str
    is_counted: bool = False
    runs_model_first: bool = False
    asks_servables: bool = True

    def parsed(self, raw: bytes) -> Any:
        """Raises InvalidArgument for bytes that are no such request."""
        try:
            return self.message.FromString(raw)
        except DecodeError:
            raise InvalidArgument(f"the request is not a {_PACKAGE}.{self.wanted}") from None


def _inference(method: str, message: Any, wanted: str, is_counted: bool = True) -> Rpc:
    service = f"{_PACKAGE}.PredictionService"
    return Rpc(service, method, message, wanted, is_counted, runs_model_first=is_counted)


#: All that is served, by method.
RPCS: Mapping[str, Rpc] = {
    rpc.method: rpc
    for rpc in (
        _inference("Predict", predict_pb2.PredictRequest, "PredictRequest"),
        _inference("Classify", ExamplesRequest, "ClassificationRequest"),
        _inference("Regress", ExamplesRequest, "RegressionRequest"),
        _inference("MultiInference", MultiInferenceRequest, "MultiInferenceRequest", False),
        _inference(
            "GetModelMetadata",
            get_model_metadata_pb2.GetModelMetadataRequest,
            "GetModelMetadataRequest",
            False,
        ),
        Rpc(
            f"{_PACKAGE}.ModelService",
            "GetModelStatus",
            get_model_status_pb2.GetModelStatusRequest,
            "GetModelStatusRequest",
            asks_servables=False,
        ),
        Rpc(
            f"{_PACKAGE}.ModelService",
            "HandleReloadConfigRequest",
            model_management_pb2.ReloadConfigRequest,
            "ReloadConfigRequest",
            asks_servables=False,
        ),
        Rpc(
            f"{_PACKAGE}.SessionService",
            "SessionRun",
            session_service_pb2.SessionRunRequest,
            "SessionRunRequest",
            runs_model_first=True,
        ),
    )
}


class PredictionHandlers:
    """Answers RPCs, counts predictions, and logs what fails. Raises `ServingError`s only.

    The doors (the direct one, and Ray Serve's ingress) make contexts, and turn the errors into gRPC
    statuses.
    """

    def __init__(
        self,
        handlers: Handlers,
        metrics: Metrics,
        reload_models: reload.Reload = reload.refuse_reload,
        traces: Traces | None = None,
    ) -> None:
        """`traces` are told of requests."""
        self._handlers = handlers
        self._metrics = metrics
        self._reload_models = reload_models
        self._traces = traces
        self._log = logs.logger(entrypoint="GRPC")
        self._answers: Mapping[str, Callable[[Any, RequestContext], Awaitable[bytes]]] = {
            "Predict": handlers.predict,
            "Classify": handlers.examples.classify,
            "Regress": handlers.examples.regress,
            "MultiInference": self._multi_inference,
            "GetModelMetadata": self._metadata,
            "GetModelStatus": self._status,
            "HandleReloadConfigRequest": self._reload,
            "SessionRun": handlers.session_run,
        }

    async def answer(self, rpc: Rpc, raw: bytes, context: RequestContext) -> bytes:
        """The serialised reply to a serialised request."""
        call = _Call(rpc, context if self._traces is None else traced(context))
        snapshot = self._handlers.catalog.enter() if rpc.asks_servables else None
        try:
            reply = await self._answer(call, raw)
        except asyncio.CancelledError:
            self._failed(call, Cancelled("the client went away"))
            raise
        except ServingError as error:
            self._failed(call, error)
            raise
        except Exception as error:
            raise self._defect(call, error) from error
        finally:
            if snapshot is not None:
                self._handlers.catalog.leave(snapshot)
        if rpc.is_counted:
            self._metrics.request(call.model, rpc.method, "GRPC", Code.OK, call.seconds())
            self._metrics.stages(call.model, rpc.method, call.context.seconds)
        self._trace(call, Code.OK)
        return reply

    async def _answer(self, call: _Call, raw: bytes) -> bytes:
        if call.rpc.runs_model_first and len(raw) >= LARGE_REQUEST:
            spec = peek_spec(raw)
            if spec is not None:
                call.model = metric_name(spec.name)
                self._handlers.steps.resolve(spec, call.context)
        request = call.rpc.parsed(raw)
        call.model = _model_of(request)
        return await self._answers[call.rpc.method](request, call.context)

    async def _multi_inference(self, request: Any, context: RequestContext) -> bytes:
        def count(examples: int) -> None:
            self._metrics.examples(_model_of(request), examples)

        return await self._handlers.examples.multi_inference(request, context, count)

    async def _metadata(self, request: Any, context: RequestContext) -> bytes:
        return _serialized(self._handlers.metadata(request))

    async def _status(self, request: Any, context: RequestContext) -> bytes:
        return _serialized(self._handlers.status(request))

    async def _reload(self, request: Any, context: RequestContext) -> bytes:
        total = self._metrics.total
        return _serialized(await reload.reload_config(request, self._reload_models, total))

    def _defect(self, call: _Call, error: Exception) -> ServingError:
        """The error to raise for what we did not expect."""
        self._log.error("defect", request_id=call.context.request_id, exc_info=error)
        raised = Internal("internal error; the server's log has more")
        self._failed(call, raised)
        return raised

    def _failed(self, call: _Call, error: ServingError) -> None:
        request_id, method = call.context.request_id, call.rpc.method
        seconds = call.seconds()
        logs.request_failed(
            self._log, request_id, call.model, method, error.code, error.message, seconds
        )
        if call.rpc.is_counted:
            self._metrics.request(call.model, method, "GRPC", error.code, seconds)
        self._trace(call, error.code, error.message)

    def _trace(self, call: _Call, code: Code, message: str = "") -> None:
        if self._traces is not None and isinstance(call.context, TracedContext):
            self._traces.ended(call.context, call.ended(code, message))


class _Call:
    """One call on its way."""

    __slots__ = ("context", "model", "rpc", "started")

    def __init__(self, rpc: Rpc, context: RequestContext) -> None:
        self.rpc = rpc
        self.context = context
        self.started = time.perf_counter()
        #: "" until it is known.
        self.model = ""

    def seconds(self) -> float:
        return time.perf_counter() - self.started

    def ended(self, code: Code, message: str) -> Ended:
        """Its end, for its trace."""
        attributes: dict[str, str | int] = {
            "rpc.system": "grpc",
            "rpc.service": self.rpc.service,
            "rpc.method": self.rpc.method,
            "rpc.grpc.status_code": code.value,
            "shardserve.model": self.model,
        }
        name = f"{self.rpc.service}/{self.rpc.method}"
        return Ended(name, attributes, code, message[:_MAX_TRACED])


def _model_of(request: Any) -> str:
    """The name of the model that a request is about; of several tasks, the first one's."""
    tasks = getattr(request, "tasks", None)
    if tasks is not None:
        return metric_name(tasks[0].model_spec.name) if tasks else ""
    spec = getattr(request, "model_spec", None)
    return "" if spec is None else metric_name(spec.name)


def _serialized(message: Any) -> bytes:
    raw: bytes = message.SerializeToString()
    return raw
