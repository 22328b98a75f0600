"""The direct gRPC door: grpc.aio in the running loop, PredictionService and ModelService."""

from __future__ import annotations

import math
import time
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

import grpc
from google.protobuf.message import DecodeError, Message
from tensorflow_serving.apis import get_model_metadata_pb2, get_model_status_pb2, predict_pb2

from shardserve.batching.errors import InvalidArgument, ServingError, Unavailable
from shardserve.router import logs
from shardserve.router.listening import ANY_HOST
from shardserve.router.prediction import PredictionHandlers
from shardserve.router.servable import RequestContext
from shardserve.router.status_codes import GRPC_STATUS, grpc_message

#: The most that gRPC itself can frame.
MAX_MESSAGE = 2**31 - 1

GRACE_SECONDS = 5.0

_OPTIONS = (
    ("grpc.so_reuseport", 1),
    ("grpc.max_receive_message_length", MAX_MESSAGE),
    ("grpc.max_send_message_length", MAX_MESSAGE),
)

_M = TypeVar("_M", bound=Message)

#: Takes a serialised request, gives a serialised reply.
_Answer = Callable[[bytes, RequestContext], Awaitable[bytes]]


class GrpcDoor:
    """Serves RPCs on a port until stopped; several processes may share the port."""

    def __init__(self, handlers: PredictionHandlers, host: str = ANY_HOST, port: int = 0) -> None:
        self.host = host
        #: Where it listens; once started, the real one if it was 0.
        self.port = port
        self._handlers = handlers
        self._server: Any = None

    async def start(self) -> None:
        """Accept calls from now on, on the running loop. Raises Unavailable without the port."""
        server = grpc.aio.server(options=_OPTIONS)
        server.add_generic_rpc_handlers(_services(self._handlers))
        address = f"{self.host or '[::]'}:{self.port}"
        try:
            self.port = server.add_insecure_port(address)
        except RuntimeError as error:
            raise Unavailable(f"cannot listen on {address}: {error}") from error
        await server.start()
        self._server = server

    async def stop(self, grace: float = GRACE_SECONDS) -> None:
        """Refuse new calls; cancel those that are still in flight after `grace` seconds."""
        if self._server is not None:
            await self._server.stop(grace)
            self._server = None


def _services(handlers: PredictionHandlers) -> tuple[Any, ...]:
    async def predict(raw: bytes, context: RequestContext) -> bytes:
        return await handlers.predict(_parsed(predict_pb2.PredictRequest, raw), context)

    async def metadata(raw: bytes, context: RequestContext) -> bytes:
        request = _parsed(get_model_metadata_pb2.GetModelMetadataRequest, raw)
        return _serialized(handlers.get_model_metadata(request, context))

    async def status(raw: bytes, context: RequestContext) -> bytes:
        request = _parsed(get_model_status_pb2.GetModelStatusRequest, raw)
        return _serialized(handlers.get_model_status(request, context))

    return (
        _service("PredictionService", {"Predict": predict, "GetModelMetadata": metadata}),
        _service("ModelService", {"GetModelStatus": status}),
    )


def _service(name: str, answers: dict[str, _Answer]) -> Any:
    """Bytes in, bytes out: replies are built by the codec, not through a message."""
    methods = {
        method: grpc.unary_unary_rpc_method_handler(_method(answer))
        for method, answer in answers.items()
    }
    return grpc.method_handlers_generic_handler(f"tensorflow.serving.{name}", methods)


def _method(answer: _Answer) -> Callable[[bytes, Any], Awaitable[bytes]]:
    async def call(raw: bytes, rpc: Any) -> bytes:
        context = request_context(rpc)
        try:
            return await answer(raw, context)
        except ServingError as error:
            failure = error
        rpc.set_trailing_metadata(((logs.REQUEST_ID, context.request_id),))
        await rpc.abort(GRPC_STATUS[failure.code], grpc_message(failure.message))
        raise AssertionError("abort returned")

    return call


def request_context(rpc: Any) -> RequestContext:
    """The id and the deadline of a call, from its metadata and its timeout."""
    given = None
    for key, value in rpc.invocation_metadata() or ():
        if key == logs.REQUEST_ID:
            given = value
    left = rpc.time_remaining()
    deadline = math.inf if left is None else time.monotonic() + left
    return RequestContext(logs.request_id(given), deadline)


def _serialized(message: Message) -> bytes:
    raw: bytes = message.SerializeToString()
    return raw


def _parsed(kind: type[_M], raw: bytes) -> _M:
    try:
        return kind.FromString(raw)
    except DecodeError:
        raise InvalidArgument(f"the request is not a {kind.DESCRIPTOR.full_name}") from None
