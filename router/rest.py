"""TensorFlow Serving's REST API over the handlers, for any HTTP server to call."""

from __future__ import annotations

import asyncio
import time
import zlib
from dataclasses import dataclass
from typing import Protocol

import orjson

from shardserve.batching.errors import (
    Cancelled,
    Code,
    Internal,
    ServingError,
    Unimplemented,
)
from shardserve.router import logs
from shardserve.router.handlers import Handlers
from shardserve.router.metrics import CONTENT_TYPE, Measured, Metrics, nothing_measured
from shardserve.router.routes import Route, route
from shardserve.router.servable import RequestContext
from shardserve.router.status_codes import HTTP_STATUS

MONITORING_PATH = "/monitoring/prometheus/metrics"

#: Bytes that a compressed body may become.
MAX_INFLATED = 100_000_000

TIMEOUT_SECONDS = 30.0

Headers = tuple[tuple[str, str], ...]


class RequestHeaders(Protocol):
    """A request's headers; names in lower case find them however they were sent."""

    def get(self, name: str, /) -> str | None: ...


@dataclass(frozen=True, slots=True)
class Response:
    status: int
    headers: Headers
    body: bytes


class Rest:
    """Answers REST requests, counts them, and logs those that fail."""

    def __init__(
        self,
        handlers: Handlers,
        metrics: Metrics,
        timeout: float = TIMEOUT_SECONDS,
        monitoring_path: str = MONITORING_PATH,
        measured: Measured = nothing_measured,
    ) -> None:
        self._handlers = handlers
        self._metrics = metrics
        self._timeout = timeout
        self._monitoring_path = monitoring_path
        self._measured = measured
        self._log = logs.logger(entrypoint="REST")

    async def handle(
        self, method: str, path: str, headers: RequestHeaders, body: bytes
    ) -> Response:
        """The response to one request; it never raises but for cancellation.

        `path` is as it came: percent-encoded and with its query.
        """
        if path.startswith(self._monitoring_path):
            return await self._monitoring(path)
        exchange = _Exchange(logs.request_id(headers.get(logs.REQUEST_ID)), self._timeout)
        try:
            exchange.route = route(method, path)
            reply = await self._answer(exchange, headers, body)
        except ServingError as error:
            return self._failed(exchange, error)
        except asyncio.CancelledError:
            self._failed(exchange, Cancelled("the client went away"))
            raise
        except Exception:  # noqa: BLE001 (a defect of ours must not cost the client its answer)
            self._log.exception("defect", request_id=exchange.context.request_id)
            return self._failed(exchange, Internal("internal error; the server's log has more"))
        self._count(exchange, Code.OK)
        return Response(200, exchange.headers(), reply)

    def refused(self, status: int, message: str) -> Response:
        """The response to a request that the door does not even read to its end."""
        self._metrics.request("", "", "REST", Code.INVALID_ARGUMENT, 0.0)
        return Response(status, _JSON, _error(message))

    async def _answer(self, exchange: _Exchange, headers: RequestHeaders, body: bytes) -> bytes:
        asked = exchange.route
        assert asked is not None
        match asked.action:
            case "predict":
                if "gzip" in (headers.get("content-encoding") or "").lower():
                    body = await asyncio.to_thread(_inflated, body)
                return await self._handlers.predict_json(asked.spec, body, exchange.context)
            case "status":
                return self._handlers.status_json(asked.spec)
            case "metadata":
                return self._handlers.metadata_json(asked.spec)
        raise Unimplemented(f"{asked.action} is not served")

    async def _monitoring(self, path: str) -> Response:
        if path != self._monitoring_path:
            text = f"Unexpected path: {path}. Should be {self._monitoring_path}"
            return Response(400, (("content-type", "text/plain"),), text.encode())
        page = self._metrics.page(await self._measured())
        return Response(200, (("content-type", CONTENT_TYPE),), page)

    def _failed(self, exchange: _Exchange, error: ServingError) -> Response:
        seconds = self._count(exchange, error.code)
        request_id = exchange.context.request_id
        logs.request_failed(
            self._log, request_id, exchange.model, exchange.api, error.code, error.message, seconds
        )
        return Response(HTTP_STATUS[error.code], exchange.headers(), _error(error.message))

    def _count(self, exchange: _Exchange, code: Code) -> float:
        seconds = time.perf_counter() - exchange.started
        self._metrics.request(exchange.model, exchange.api, "REST", code, seconds)
        if code is Code.OK and exchange.context.seconds:
            self._metrics.stages(exchange.model, exchange.api, exchange.context.seconds)
        return seconds


class _Exchange:
    """One request on its way."""

    __slots__ = ("context", "route", "started")

    def __init__(self, request_id: str, timeout: float) -> None:
        self.started = time.perf_counter()
        self.context = RequestContext(request_id, time.monotonic() + timeout)
        #: None while, or because, the path means nothing.
        self.route: Route | None = None

    @property
    def model(self) -> str:
        return self.route.spec.name if self.route else ""

    @property
    def api(self) -> str:
        """What the metrics call it: a GET has no name there."""
        action = self.route.action if self.route else ""
        return action if action not in ("status", "metadata") else ""

    def headers(self) -> Headers:
        return (*_JSON, (logs.REQUEST_ID, self.context.request_id))


_JSON: Headers = (("content-type", "application/json"),)


def _error(message: str) -> bytes:
    return orjson.dumps({"error": message.encode("utf-8", "replace").decode("utf-8")})


def _inflated(body: bytes) -> bytes:
    """The body decompressed; empty, as in the original, if that cannot be done."""
    inflater = zlib.decompressobj(wbits=zlib.MAX_WBITS | 32)
    try:
        inflated = inflater.decompress(body, MAX_INFLATED)
    except zlib.error:
        return b""
    return inflated if inflater.eof else b""
