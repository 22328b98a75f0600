"""TensorFlow Serving's RPCs over the handlers, for any gRPC server to call."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import TypeVar

from tensorflow_serving.apis import get_model_metadata_pb2, get_model_status_pb2, predict_pb2

from shardserve.batching.errors import Cancelled, Code, Internal, ServingError
from shardserve.router import logs
from shardserve.router.handlers import Handlers
from shardserve.router.metrics import Metrics
from shardserve.router.servable import RequestContext

_Request = TypeVar("_Request")
_Reply = TypeVar("_Reply")


class PredictionHandlers:
    """Answers RPCs, counts predictions, and logs what fails. Raises `ServingError`s only.

    The doors (the direct one, and Ray Serve's ingress) parse requests, make contexts, and turn the
    errors into gRPC statuses.
    """

    def __init__(self, handlers: Handlers, metrics: Metrics) -> None:
        self._handlers = handlers
        self._metrics = metrics
        self._log = logs.logger(entrypoint="GRPC")

    async def predict(self, request: predict_pb2.PredictRequest, context: RequestContext) -> bytes:
        """A serialised PredictResponse."""
        started = time.perf_counter()
        model = request.model_spec.name
        try:
            reply = await self._handlers.predict(request, context)
        except asyncio.CancelledError:
            self._failed("Predict", model, context, Cancelled("the client went away"), started)
            raise
        except Exception as error:
            raise self._failed("Predict", model, context, error, started) from error
        seconds = time.perf_counter() - started
        self._metrics.request(model, "Predict", "GRPC", Code.OK, seconds)
        self._metrics.stages(model, "Predict", context.seconds)
        return reply

    def get_model_metadata(
        self, request: get_model_metadata_pb2.GetModelMetadataRequest, context: RequestContext
    ) -> get_model_metadata_pb2.GetModelMetadataResponse:
        return self._look_up("GetModelMetadata", self._handlers.metadata, request, context)

    def get_model_status(
        self, request: get_model_status_pb2.GetModelStatusRequest, context: RequestContext
    ) -> get_model_status_pb2.GetModelStatusResponse:
        return self._look_up("GetModelStatus", self._handlers.status, request, context)

    def _look_up(
        self,
        api: str,
        answer: Callable[[_Request], _Reply],
        request: _Request,
        context: RequestContext,
    ) -> _Reply:
        started = time.perf_counter()
        try:
            return answer(request)
        except Exception as error:
            model = request.model_spec.name  # type: ignore[attr-defined]
            raise self._logged(api, model, context, error, started) from error

    def _failed(
        self, api: str, model: str, context: RequestContext, error: Exception, started: float
    ) -> ServingError:
        failure = self._logged(api, model, context, error, started)
        self._metrics.request(model, api, "GRPC", failure.code, time.perf_counter() - started)
        return failure

    def _logged(
        self, api: str, model: str, context: RequestContext, error: Exception, started: float
    ) -> ServingError:
        """The error to raise: `error` itself, or INTERNAL for what we did not expect."""
        if not isinstance(error, ServingError):
            self._log.error("defect", request_id=context.request_id, exc_info=error)
            error = Internal("internal error; the server's log has more")
        seconds = time.perf_counter() - started
        logs.request_failed(
            self._log, context.request_id, model, api, error.code, error.message, seconds
        )
        return error
