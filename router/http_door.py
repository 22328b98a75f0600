"""The direct REST door: uvicorn with httptools, inside an event loop that already runs.

Chosen by measurement: prototypes with half-plus-two through all of our code, interleaved on two
cores, median requests/s at 32 connections and least CPU of the process for one: granian embedded
10,100 and 75 us, uvicorn with httptools 9,600 and 75 us, aiohttp 7,700 and 92 us; median time at
one connection 144, 132 and 162 us. granian also hides whether a path's slash was percent-encoded.
A protocol of our own on httptools took 56 us: not worth owning an HTTP server for. Only the reply
is written past ASGI: a request takes 90 us of processor so, and 105 us with ASGI's two messages.
"""

from __future__ import annotations

import asyncio
import functools
import math
import socket
from collections.abc import Sequence
from typing import Any, Protocol

import uvicorn
from uvicorn.protocols.http.httptools_impl import (
    STATUS_LINE,
    HttpToolsProtocol,
    RequestResponseCycle,
)

from shardserve.router.listening import ANY_HOST, BACKLOG, listen
from shardserve.router.rest import RequestHeaders, Response
from shardserve.router.tls import Tls
from shardserve.router.tls_context import server_context

MAX_BODY = 64 << 20

GRACE_SECONDS = 5.0

#: Bytes of a request's line and headers together, give or take one read.
MAX_HEAD = 64 << 10

#: Seconds a client may take to send its body.
BODY_SECONDS = 60.0

#: Requests that take longer than this many seconds are watched for their client going away.
WATCH_AFTER = 0.25


class Answers(Protocol):
    """What a door needs of `router.rest.Rest`."""

    async def handle(
        self, method: str, path: str, headers: RequestHeaders, body: bytes
    ) -> Response: ...

    def refusal(self, method: str, path: str, headers: RequestHeaders) -> Response | None: ...

    def refused(self, status: int, message: str) -> Response: ...


class HttpDoor:
    """Serves `rest` on a port until stopped; several processes may share the port.

    With `tls` it takes nothing else. Raises InvalidArgument for certificates that are none.
    """

    def __init__(
        self,
        rest: Answers,
        host: str = ANY_HOST,
        port: int = 0,
        max_body: int = MAX_BODY,
        tls: Tls | None = None,
    ) -> None:
        self.host = host
        #: Where it listens; once started, the real one if it was 0.
        self.port = port
        config = uvicorn.Config(
            _Application(rest, max_body),
            http=_Protocol,
            ws="none",
            lifespan="off",
            interface="asgi3",
            backlog=BACKLOG,
            log_config=None,
            log_level="critical",
            access_log=False,
            proxy_headers=False,
            server_header=False,
            date_header=False,
        )
        self._server = uvicorn.Server(config)
        self._tls = None if tls is None else server_context(tls)
        self._sockets: list[socket.socket] = []
        self._ticking: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Accept connections from now on, on the running loop. Raises as `listen` does."""
        listener = listen(self.host, self.port)
        self.port = listener.getsockname()[1]
        self._sockets = [listener]
        # What `Server.serve` does, without taking the process's signals.
        config = self._server.config
        config.load()
        config.ssl = self._tls
        self._server.lifespan = config.lifespan_class(config)
        await self._server.startup(sockets=self._sockets)
        self._ticking = asyncio.create_task(self._server.main_loop())

    async def stop(self, grace: float = GRACE_SECONDS) -> None:
        """Refuse new connections; cut requests that are still in flight after `grace` seconds."""
        if self._ticking is None:
            return
        self._server.config.timeout_graceful_shutdown = math.ceil(grace)
        self._server.should_exit = True
        await self._ticking
        answering = tuple(self._server.server_state.tasks)
        await self._server.shutdown(sockets=self._sockets)
        await asyncio.gather(*answering, return_exceptions=True)
        self._ticking = None


class _Protocol(HttpToolsProtocol):
    """Hangs up on endless headers, which httptools would collect.

    What `Rest.refusal` refuses by its head is answered at once: a task, a cycle and a body that is
    read and parsed would cost an overloaded server many times what the refusal does. Others tell
    the application which exchange it answers, so that it can write its reply at once.
    """

    _in_head = False
    _head = 0
    #: Of a request that has been refused, the body is passed over.
    _refused = False

    def on_message_begin(self) -> None:
        self._in_head = True
        self._head = 0
        self._refused = False
        super().on_message_begin()

    def on_headers_complete(self) -> None:
        self._in_head = False
        refusal = self._refusal()
        if refusal is None:
            super().on_headers_complete()
        else:
            self._refused = True
            self.transport.write(refusal)

    def on_body(self, body: bytes) -> None:
        if not self._refused:
            super().on_body(body)

    def on_message_complete(self) -> None:
        if not self._refused:
            super().on_message_complete()
        elif not self.parser.should_keep_alive():
            self.transport.close()
        else:
            self.timeout_keep_alive_task = self.loop.call_later(
                self.timeout_keep_alive, self.timeout_keep_alive_handler
            )

    def _refusal(self) -> bytes | None:
        """The reply in full. None where it is to be found, or where others are to come before."""
        if self.expect_100_continue or not (self.cycle is None or self.cycle.response_complete):
            return None
        application: _Application = self.config.app  # type: ignore[assignment]
        method = self.parser.get_method().decode("ascii")
        return application.refusal(method, self.url, _Headers(self.headers))

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: Any) -> None:
        super()._start_asgi_task(cycle, functools.partial(app, cycle))

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if self._in_head:
            self._head += len(data)
            if self._head > MAX_HEAD:
                self.send_400_response(f"The request's headers are longer than {MAX_HEAD} bytes.")


class _Headers:
    """ASGI's list of raw headers, looked through by name."""

    __slots__ = ("_pairs",)

    def __init__(self, pairs: list[tuple[bytes, bytes]]) -> None:
        self._pairs = pairs

    def get(self, name: str, /) -> str | None:
        wanted = name.encode("latin-1")
        for key, value in self._pairs:
            if key == wanted:
                return value.decode("latin-1")
        return None


class _ClientGone(Exception):
    """There is nobody left to answer."""


class _Application:
    """uvicorn onto `Rest`: ASGI, but for the reply, of which there is only ever one piece."""

    def __init__(self, rest: Answers, max_body: int) -> None:
        self._rest = rest
        self._max_body = max_body

    def refusal(self, method: str, url: bytes, headers: _Headers) -> bytes | None:
        """The reply, in full, to a request that is refused by its head; None for all others."""
        response = self._rest.refusal(method, url.decode("latin-1"), headers)
        return None if response is None else _encoded(response)

    async def __call__(
        self, cycle: RequestResponseCycle, scope: Any, receive: Any, send: Any
    ) -> None:
        try:
            response = await self._respond(scope, receive)
        except _ClientGone:
            return
        if cycle.flow.write_paused and not cycle.disconnected:
            await cycle.flow.drain()
        if not cycle.disconnected:
            _complete(cycle, response)

    async def _respond(self, scope: Any, receive: Any) -> Response:
        headers = _Headers(scope["headers"])
        try:
            body = await self._body(headers, receive)
        except TimeoutError:
            text = f"The request body did not come within {BODY_SECONDS:g} seconds."
            return self._rest.refused(408, text)
        if body is None:
            text = f"The request body is longer than {self._max_body} bytes."
            return self._rest.refused(413, text)
        watch = _Watch(receive)
        try:
            return await self._rest.handle(scope["method"], _path(scope), headers, body)
        except asyncio.CancelledError:
            if watch.gone:
                raise _ClientGone from None
            raise
        finally:
            watch.end()

    async def _body(self, headers: _Headers, receive: Any) -> bytes | None:
        """The whole body, or None if it is, or says it is, longer than may be."""
        announced = headers.get("content-length")
        if announced is not None and int(announced) > self._max_body:
            return None
        message = await receive()
        if message["type"] == "http.disconnect":
            raise _ClientGone
        if message.get("more_body"):
            return await self._long_body(message["body"], receive)
        body: bytes = message.get("body", b"")
        return body if len(body) <= self._max_body else None

    async def _long_body(self, first: bytes, receive: Any) -> bytes | None:
        chunks, size, more = [first], len(first), True
        async with asyncio.timeout(BODY_SECONDS):
            while more and size <= self._max_body:
                message = await receive()
                if message["type"] == "http.disconnect":
                    raise _ClientGone
                chunks.append(message["body"])
                size += len(message["body"])
                more = message["more_body"]
        return b"".join(chunks) if size <= self._max_body else None


class _Watch:
    """Cancels the current task if its client goes away, once it has taken `WATCH_AFTER`."""

    __slots__ = ("_receive", "_task", "_timer", "_watcher", "gone")

    def __init__(self, receive: Any) -> None:
        self.gone = False
        self._receive = receive
        self._task = asyncio.current_task()
        self._watcher: asyncio.Task[None] | None = None
        self._timer = asyncio.get_running_loop().call_later(WATCH_AFTER, self._begin)

    def end(self) -> None:
        self._timer.cancel()
        if self._watcher is not None:
            self._watcher.cancel()

    def _begin(self) -> None:
        self._watcher = asyncio.ensure_future(self._wait())

    async def _wait(self) -> None:
        message = await self._receive()
        if message["type"] == "http.disconnect" and self._task is not None:
            self.gone = True
            self._task.cancel()


def _path(scope: Any) -> str:
    """The path as it came, percent-encoded and with its query."""
    path: str = scope["raw_path"].decode("latin-1")
    query = scope["query_string"]
    return f"{path}?{query.decode('latin-1')}" if query else path


def _complete(cycle: RequestResponseCycle, response: Response) -> None:
    """Write all of a response, and end the exchange as the last of ASGI's messages would."""
    ends = () if cycle.keep_alive else (("connection", "close"),)
    has_body = cycle.scope["method"] != "HEAD"
    cycle.transport.write(_encoded(response, ends, has_body=has_body))
    cycle.response_started = cycle.response_complete = True
    cycle.message_event.set()
    if not cycle.keep_alive:
        cycle.transport.close()
    cycle.on_response()


def _encoded(
    response: Response, ends: Sequence[tuple[str, str]] = (), *, has_body: bool = True
) -> bytes:
    """A whole reply, as it goes over the wire, with more headers at its `ends`."""
    lines = [f"{name}: {value}\r\n" for name, value in (*response.headers, *ends)]
    lines.append(f"content-length: {len(response.body)}\r\n\r\n")
    head = STATUS_LINE[response.status] + "".join(lines).encode("latin-1")
    return head + response.body if has_body else head
