"""The direct gRPC door: grpc.aio in the running loop, with TensorFlow Serving's services.

Beside them gRPC's own: health, under the original's short names as well, and reflection.
"""

from __future__ import annotations

import math
import time
from collections.abc import Awaitable, Callable
from typing import Any

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection
from tensorflow_serving.apis import (
    model_service_pb2,
    prediction_service_pb2,
    session_service_pb2,
)

from shardserve.batching.errors import ServingError, Unavailable
from shardserve.router import logs
from shardserve.router.listening import ANY_HOST
from shardserve.router.prediction import RPCS, PredictionHandlers, Rpc
from shardserve.router.profiler import Profiler
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
#: Their descriptions have to be there for reflection.
_SERVICES = tuple(
    service.full_name
    for file in (prediction_service_pb2, model_service_pb2, session_service_pb2)
    for service in file.DESCRIPTOR.services_by_name.values()
)

_GRPC_SERVICES = (health.SERVICE_NAME, reflection.SERVICE_NAME)


class GrpcDoor:
    """Serves RPCs on a port until stopped; several processes may share the port."""

    def __init__(
        self,
        handlers: PredictionHandlers,
        host: str = ANY_HOST,
        port: int = 0,
        profiler: Profiler | None = None,
    ) -> None:
        """With a `profiler` the process can be traced through this door."""
        self.host = host
        #: Where it listens; once started, the real one if it was 0.
        self.port = port
        self._handlers = handlers
        self._profiler = profiler
        self._server: Any = None
        self._health = health.aio.HealthServicer()

    async def start(self) -> None:
        """Accept calls from now on, on the running loop. Raises Unavailable without the port."""
        server = grpc.aio.server(options=_OPTIONS)
        server.add_generic_rpc_handlers(_services(self._handlers))
        if self._profiler is not None:
            server.add_generic_rpc_handlers((self._profiler.handler(_untracked),))
        await self._add_health(server)
        reflection.enable_server_reflection((*_SERVICES, *_GRPC_SERVICES), server)
        address = f"{self.host or '[::]'}:{self.port}"
        try:
            self.port = server.add_insecure_port(address)
        except RuntimeError as error:
            raise Unavailable(f"cannot listen on {address}: {error}") from error
        await server.start()
        self._server = server

    async def _add_health(self, server: Any) -> None:
        health_pb2_grpc.add_HealthServicer_to_server(self._health, server)
        serving = health_pb2.HealthCheckResponse.SERVING
        for service in ("", *_SERVICES, *(name.rpartition(".")[2] for name in _SERVICES)):
            await self._health.set(service, serving)

    async def stop(self, grace: float = GRACE_SECONDS) -> None:
        """Refuse new calls; cancel those that are still in flight after `grace` seconds.

        Whoever watches the health is told first.
        """
        if self._server is not None:
            await self._health.enter_graceful_shutdown()
            await self._server.stop(grace)
            self._server = None


def _services(handlers: PredictionHandlers) -> tuple[Any, ...]:
    """Bytes in, bytes out: requests are parsed, and replies built, behind the door."""
    services: dict[str, dict[str, Any]] = {}
    for rpc in RPCS.values():
        method = grpc.unary_unary_rpc_method_handler(_method(handlers, rpc))
        services.setdefault(rpc.service, {})[rpc.method] = method
    return tuple(
        grpc.method_handlers_generic_handler(service, methods)
        for service, methods in services.items()
    )


def _method(handlers: PredictionHandlers, rpc: Rpc) -> Callable[[bytes, Any], Awaitable[bytes]]:
    async def call(raw: bytes, servicer: Any) -> bytes:
        context = request_context(servicer)
        try:
            return await handlers.answer(rpc, raw, context)
        except ServingError as error:
            failure = error
        servicer.set_trailing_metadata(((logs.REQUEST_ID, context.request_id),))
        await servicer.abort(GRPC_STATUS[failure.code], grpc_message(failure.message))
        raise AssertionError("abort returned")

    return call


def _untracked(
    answer: Callable[[bytes], Awaitable[bytes]],
) -> Callable[[bytes, Any], Awaitable[bytes]]:
    """Of what is no request for a model: neither logged nor counted."""

    async def call(raw: bytes, servicer: Any) -> bytes:
        try:
            return await answer(raw)
        except ServingError as error:
            failure = error
        await servicer.abort(GRPC_STATUS[failure.code], grpc_message(failure.message))
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
