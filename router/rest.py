"""TensorFlow Serving's REST API over the handlers, for any HTTP server to call."""

from __future__ import annotations

import asyncio
import gzip
import re
import time
import zlib
from dataclasses import dataclass
from typing import Protocol

from shardserve.batching.errors import Cancelled, Code, Internal, ServingError, Unavailable
from shardserve.router import logs
from shardserve.router.handlers import Handlers
from shardserve.router.json_encode import encode_error
from shardserve.router.metric_page import CONTENT_TYPE, page
from shardserve.router.metric_snapshot import unpacked
from shardserve.router.metrics import Collected, Measured, Metrics, nothing_measured
from shardserve.router.model_specs import metric_name
from shardserve.router.openapi import OPENAPI_PATH, openapi
from shardserve.router.readiness import READY_PATH, readiness
from shardserve.router.routes import PREFIX, Route, route
from shardserve.router.servable import RequestContext
from shardserve.router.status_codes import HTTP_STATUS
from shardserve.router.tracing import Ended, TracedContext, Traces, traced

MONITORING_PATH = "/monitoring/prometheus/metrics"

#: Paths whose meaning is remembered.
MAX_ROUTES = 256

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
        collected: Collected | None = None,
        *,
        cors: bool = False,
        compress_from: int | None = None,
        traces: Traces | None = None,
    ) -> None:
        """`timeout` is in seconds. The metrics page is of what is `collected`, of all routers, or
        of this process alone, and of what is `measured` on shards. `cors` lets pages of any origin
        read replies.

        Replies of at least `compress_from` bytes are compressed for clients that take gzip; None
        compresses nothing. `traces` are told of requests.
        """
        self._handlers = handlers
        self._metrics = metrics
        self._timeout = timeout
        self._monitoring_path = monitoring_path
        self._measured = measured
        self._collected = collected or metrics.snapshot
        self._traces = traces
        self._always = (*_JSON, *(_CORS if cors else ()))
        self._compress_from = compress_from
        self._openapi = openapi()
        self._is_draining = False
        #: Of POST requests, by path, as they came.
        self._routes: dict[str, Route] = {}
        self._log = logs.logger(entrypoint="REST")

    async def handle(
        self, method: str, path: str, headers: RequestHeaders, body: bytes
    ) -> Response:
        """The response to one request; it never raises but for cancellation.

        `path` is as it came: percent-encoded and with its query.
        """
        if method == "OPTIONS" and path[: len(PREFIX)].lower() == PREFIX:
            return self._preflight(headers)
        if path.startswith(self._monitoring_path):
            return await self._monitoring(path)
        if path == OPENAPI_PATH and method == "GET":
            return Response(200, self._always, self._openapi)
        if path == READY_PATH and method in ("GET", "HEAD"):
            return self._ready()
        exchange = _Exchange(headers, self._timeout)
        if self._traces is not None:
            exchange.trace(method, path)
        snapshot = self._handlers.catalog.enter()
        try:
            exchange.route = self._route(method, path)
            reply = await self._answer(exchange, headers, body)
        except ServingError as error:
            return self._failed(exchange, error)
        except asyncio.CancelledError:
            self._failed(exchange, Cancelled("the client went away"))
            raise
        except Exception:  # noqa: BLE001 (a defect of ours must not cost the client its answer)
            self._log.exception("defect", request_id=exchange.context.request_id)
            return self._failed(exchange, Internal("internal error; the server's log has more"))
        finally:
            self._handlers.catalog.leave(snapshot)
        self._count(exchange, Code.OK)
        return await self._compressed(headers, Response(200, self._headers(exchange), reply))

    def drain(self) -> None:
        """Be ready no more: whoever sends requests is to send them elsewhere. They are answered."""
        self._is_draining = True

    def refusal(self, method: str, path: str, headers: RequestHeaders) -> Response | None:
        """The response to a request that would not be answered in time, known by its head alone.

        None where that is not known: `handle` then answers, whatever the answer is. Cheap.
        """
        if method != "POST":
            return None
        asked = self._routes.get(path)
        if asked is None:
            return None
        deadline = time.monotonic() + self._timeout
        try:
            self._handlers.steps.admit(asked.spec, deadline)
        except Unavailable as error:
            exchange = _Exchange(headers, 0.0)
            exchange.route = asked
            if self._traces is not None:
                exchange.trace(method, path)
            return self._failed(exchange, error)
        except ServingError:
            return None
        return None

    def refused(self, status: int, message: str) -> Response:
        """The response to a request that the door does not even read to its end."""
        self._metrics.request("", "", "REST", Code.INVALID_ARGUMENT, 0.0)
        return Response(status, self._always, encode_error(message))

    def _route(self, method: str, path: str) -> Route:
        found = route(method, path)
        if method == "POST":
            # Clients choose the paths.
            if len(self._routes) >= MAX_ROUTES:
                self._routes.clear()
            self._routes[path] = found
        return found

    async def _answer(self, exchange: _Exchange, headers: RequestHeaders, body: bytes) -> bytes:
        asked = exchange.route
        assert asked is not None
        if asked.action == "status":
            return self._handlers.status_json(asked.spec)
        if asked.action == "metadata":
            return self._handlers.metadata_json(asked.spec)
        if "gzip" in (headers.get("content-encoding") or "").lower():
            body = await asyncio.to_thread(_inflated, body)
        answer = {
            "predict": self._handlers.predict_json,
            "classify": self._handlers.examples.classify_json,
            "regress": self._handlers.examples.regress_json,
        }[asked.action]
        return await answer(asked.spec, body, exchange.context)

    async def _compressed(self, headers: RequestHeaders, response: Response) -> Response:
        if self._compress_from is None or len(response.body) < self._compress_from:
            return response
        if not _takes_gzip(headers.get("accept-encoding")):
            return response
        body = await asyncio.to_thread(gzip.compress, response.body, _QUICK, mtime=0)
        added = (("content-encoding", "gzip"), ("vary", "accept-encoding"))
        return Response(response.status, (*response.headers, *added), body)

    def _preflight(self, headers: RequestHeaders) -> Response:
        """To a browser that asks whether a page of some origin may send requests."""
        is_page = _ORIGIN.match(headers.get("origin") or "") is not None
        return Response(200 if is_page else 400, self._always, b"")

    def _ready(self) -> Response:
        found = readiness(self._handlers.catalog, draining=self._is_draining)
        return Response(200 if found.is_ready else 503, self._always, found.as_json())

    async def _monitoring(self, path: str) -> Response:
        if path != self._monitoring_path:
            text = f"Unexpected path: {path}. Should be {self._monitoring_path}"
            return Response(400, (("content-type", "text/plain"),), text.encode())
        try:
            collected, measures = await asyncio.gather(self._collected(), self._measured())
            body = page(unpacked(collected), measures)
        except ServingError as error:
            # A page of some routers only would look as if all counters had fallen.
            return Response(503, (("content-type", "text/plain"),), error.message.encode())
        return Response(200, (("content-type", CONTENT_TYPE),), body)

    def _failed(self, exchange: _Exchange, error: ServingError) -> Response:
        seconds = self._count(exchange, error.code, error.message)
        request_id = exchange.context.request_id
        logs.request_failed(
            self._log, request_id, exchange.model, exchange.api, error.code, error.message, seconds
        )
        return Response(
            HTTP_STATUS[error.code], self._headers(exchange), encode_error(error.message)
        )

    def _headers(self, exchange: _Exchange) -> Headers:
        return (*self._always, (logs.REQUEST_ID, exchange.context.request_id))

    def _count(self, exchange: _Exchange, code: Code, message: str = "") -> float:
        seconds = time.perf_counter() - exchange.started
        self._metrics.request(exchange.model, exchange.api, "REST", code, seconds)
        if code is Code.OK and exchange.context.seconds:
            self._metrics.stages(exchange.model, exchange.api, exchange.context.seconds)
        if self._traces is not None and isinstance(exchange.context, TracedContext):
            self._traces.ended(exchange.context, exchange.ended(code, message))
        return seconds


class _Exchange:
    """One request on its way."""

    __slots__ = ("asked", "context", "route", "started")

    def __init__(self, headers: RequestHeaders, timeout: float) -> None:
        self.started = time.perf_counter()
        request_id = logs.request_id(headers.get(logs.REQUEST_ID))
        deadline = time.monotonic() + timeout
        self.context = RequestContext(request_id, deadline, headers=headers)
        #: None while, or because, the path means nothing.
        self.route: Route | None = None
        #: Method and path, of one that is traced.
        self.asked = ("", "")

    def trace(self, method: str, path: str) -> None:
        """Keep what its trace needs."""
        self.asked = (method, path)
        self.context = traced(self.context)

    def ended(self, code: Code, message: str) -> Ended:
        """Its end, for its trace."""
        method, path = self.asked
        attributes: dict[str, str | int] = {
            "http.request.method": method,
            "url.path": path.partition("?")[0][:_MAX_TRACED],
            "http.response.status_code": 200 if code is Code.OK else HTTP_STATUS[code],
            "shardserve.model": self.model,
        }
        name = f"{method} {self.route.action}" if self.route else method
        return Ended(name, attributes, code, message[:_MAX_TRACED])

    @property
    def model(self) -> str:
        return metric_name(self.route.spec.name) if self.route else ""

    @property
    def api(self) -> str:
        """What the metrics call it: a GET has no name there."""
        action = self.route.action if self.route else ""
        return action if action not in ("status", "metadata") else ""


#: Characters of what clients sent that a trace has.
_MAX_TRACED = 1024

_JSON: Headers = (("content-type", "application/json"),)


_CORS: Headers = (
    ("access-control-allow-origin", "*"),
    ("access-control-allow-methods", "POST, GET"),
    ("access-control-allow-headers", "Content-Type"),
)

_ORIGIN = re.compile(r"https?://", re.IGNORECASE)

#: A level of compression that costs less than sending what it saves.
_QUICK = 1


def _takes_gzip(accepted: str | None) -> bool:
    """Whether gzip is among a client's codings, and not with a quality of zero."""
    for coding in (accepted or "").lower().split(","):
        name, _, quality = coding.partition(";")
        if name.strip() in ("gzip", "x-gzip", "*"):
            return quality.replace(" ", "").rstrip("0").rstrip(".") != "q="
    return False


def _inflated(body: bytes) -> bytes:
    """The body decompressed; empty, as in the original, if that cannot be done."""
    inflater = zlib.decompressobj(wbits=zlib.MAX_WBITS | 32)
    try:
        inflated = inflater.decompress(body, MAX_INFLATED)
    except zlib.error:
        return b""
    return inflated if inflater.eof else b""
