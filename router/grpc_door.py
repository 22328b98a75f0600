"""The direct gRPC door: grpc.aio in the running loop, with TensorFlow Serving's services.

Beside them gRPC's own: health, under the original's short names as well, and reflection.
"""

from __future__ import annotations

import math
import time
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass
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
from shardserve.router.listening import ANY_HOST, claim_socket
from shardserve.router.prediction import RPCS, PredictionHandlers, Rpc
from shardserve.router.profiler import Profiler
from shardserve.router.servable import RequestContext
from shardserve.router.status_codes import GRPC_STATUS, grpc_message
from shardserve.router.tls import Tls
from shardserve.router.tls_context import server_context

#: The most that gRPC itself can frame.
MAX_MESSAGE = 2**31 - 1

GRACE_SECONDS = 5.0

_ARGUMENTS = {
    "grpc.so_reuseport": 1,
    "grpc.max_receive_message_length": MAX_MESSAGE,
    "grpc.max_send_message_length": MAX_MESSAGE,
}
#: Their descriptions have to be there for reflection.
_SERVICES = tuple(
    service.full_name
    for file in (prediction_service_pb2, model_service_pb2, session_service_pb2)
    for service in file.DESCRIPTOR.services_by_name.values()
)

_GRPC_SERVICES = (health.SERVICE_NAME, reflection.SERVICE_NAME)


@dataclass(frozen=True)
class GrpcOptions:
    """`socket` is the path of a Unix socket, "" for none; `has_port` whether there is a port too.

    With `tls` nothing else is taken. `channel_arguments` are gRPC's own, by their names.
    `max_rpcs` are answered at a time, and what is more is refused with RESOURCE_EXHAUSTED.
    """

    socket: str = ""
    tls: Tls | None = None
    channel_arguments: tuple[tuple[str, int | str], ...] = ()
    max_rpcs: int | None = None
    has_port: bool = True


class GrpcDoor:
    """Serves RPCs on a port until stopped; several processes may share the port.

    Raises InvalidArgument for certificates that are none.
    """

    def __init__(
        self,
        handlers: PredictionHandlers,
        host: str = ANY_HOST,
        port: int = 0,
        options: GrpcOptions = GrpcOptions(),
        profiler: Profiler | None = None,
    ) -> None:
        """With a `profiler` the process can be traced through this door."""
        self.host = host
        #: Where it listens; once started, the real one if it was 0.
        self.port = port
        self._handlers = handlers
        self._options = options
        self._certificates = None if options.tls is None else _Certificates(options.tls)
        self._profiler = profiler
        self._server: Any = None
        self._health = health.aio.HealthServicer()

    async def start(self) -> None:
        """Accept calls from now on, on the running loop.

        Raises Unavailable, naming the address, if it cannot be had.
        """
        arguments = {**_ARGUMENTS, **dict(self._options.channel_arguments)}
        server = grpc.aio.server(
            options=tuple(arguments.items()), maximum_concurrent_rpcs=self._options.max_rpcs
        )
        server.add_generic_rpc_handlers(_services(self._handlers))
        if self._profiler is not None:
            server.add_generic_rpc_handlers((self._profiler.handler(_untracked),))
        await self._add_health(server)
        reflection.enable_server_reflection((*_SERVICES, *_GRPC_SERVICES), server)
        if self._options.has_port:
            self.port = self._listen(server, f"{_in_address(self.host)}:{self.port}")
        if self._options.socket:
            claim_socket(self._options.socket)
            self._listen(server, f"unix:{self._options.socket}")
        await server.start()
        self._server = server

    def _listen(self, server: Any, address: str) -> int:
        try:
            if self._certificates is None:
                return int(server.add_insecure_port(address))
            return int(server.add_secure_port(address, self._certificates.credentials()))
        except RuntimeError as error:
            raise Unavailable(f"cannot listen on {address}: {error}") from error

    async def _add_health(self, server: Any) -> None:
        health_pb2_grpc.add_HealthServicer_to_server(self._health, server)
        serving = health_pb2.HealthCheckResponse.SERVING
        for service in ("", *_SERVICES, *(name.rpartition(".")[2] for name in _SERVICES)):
            await self._health.set(service, serving)

    def renew(self, tls: Tls) -> None:
        """Show these certificates to who connects from now on. Raises as this class does.

        Whether clients have to show one stays as it is.
        """
        assert self._certificates is not None, "a door in the clear stays so"
        self._certificates.renew(tls)

    async def drain(self) -> None:
        """Answer NOT_SERVING to whoever asks for the health, or watches it; calls as before."""
        await self._health.enter_graceful_shutdown()

    async def stop(self, grace: float = GRACE_SECONDS) -> None:
        """Refuse new calls; cancel those that are still in flight after `grace` seconds.

        Whoever watches the health is told first.
        """
        if self._server is not None:
            await self.drain()
            await self._server.stop(grace)
            self._server = None


def _in_address(host: str) -> str:
    if host == ANY_HOST:
        return "[::]"
    return f"[{host}]" if ":" in host else host


class _Certificates:
    """The certificates of a door's ports, for gRPC's threads to fetch at each handshake."""

    def __init__(self, tls: Tls) -> None:
        self._latest = _configuration(tls)
        self._client_verify = tls.client_verify

    def renew(self, tls: Tls) -> None:
        self._latest = _configuration(tls)

    def credentials(self) -> Any:
        """Those of one port: each has to fetch for itself what is new."""
        fetched = first = self._latest

        def fetch() -> Any:
            nonlocal fetched
            if fetched is self._latest:
                return None
            fetched = self._latest
            return fetched

        return grpc.dynamic_ssl_server_credentials(first, fetch, self._client_verify)


def _configuration(tls: Tls) -> Any:
    # gRPC says neither what is wrong, nor before the port is bound.
    server_context(tls)
    return grpc.ssl_server_certificate_configuration(
        [(tls.server_key, tls.server_cert)], root_certificates=tls.custom_ca or None
    )


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
            # Not the error itself, whose traceback has this frame: the two would be a cycle.
            code, message = GRPC_STATUS[error.code], grpc_message(error.message)
        servicer.set_trailing_metadata(((logs.REQUEST_ID, context.request_id),))
        try:
            await servicer.abort(code, message)
        finally:
            # It keeps what it raises, whose traceback has this frame.
            del servicer
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
            code, message = GRPC_STATUS[error.code], grpc_message(error.message)
        await servicer.abort(code, message)
        raise AssertionError("abort returned")

    return call


class Metadata:
    """A call's metadata, looked through by name. Of several values the last one counts."""

    __slots__ = ("_pairs",)

    def __init__(self, pairs: Iterable[tuple[str, str | bytes]]) -> None:
        self._pairs = pairs

    def get(self, name: str, /) -> str | bytes | None:
        found = None
        for key, value in self._pairs:
            if key == name:
                found = value
        return found


def request_context(rpc: Any) -> RequestContext:
    """The id and the deadline of a call, from its metadata and its timeout."""
    headers = Metadata(rpc.invocation_metadata() or ())
    left = rpc.time_remaining()
    deadline = math.inf if left is None else time.monotonic() + left
    given: Any = headers.get(logs.REQUEST_ID)
    return RequestContext(logs.request_id(given), deadline, headers=headers)
