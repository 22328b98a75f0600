"""HTTP/1.1 between httptools' parser and `Rest`: one object for each connection."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import cast

import httptools

from shardserve.router.http_request import Request, encode_response
from shardserve.router.rest import Rest

#: Bytes of a request's line and headers together, give or take one read.
MAX_HEAD = 64 << 10

#: Seconds that a client may take to send a request, to take a response, or to do nothing.
PATIENCE = 75.0

#: Bodies from this size on are written beside their head rather than copied behind it.
_LARGE = 64 << 10

_CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"


@dataclass
class Connections:
    """What the connections of one door share, and all of those that are open."""

    rest: Rest
    max_body: int
    open: set[RestProtocol] = field(default_factory=set)
    #: Set whenever one closes and none is left.
    emptied: asyncio.Event = field(default_factory=asyncio.Event)


class RestProtocol(asyncio.Protocol):
    """Answers the requests of one connection in order, one at a time.

    While others wait for theirs, or an answer is not taken, no more is read. A lost connection
    cancels the request in flight. Heads and bodies are bounded while they arrive.
    """

    def __init__(self, shared: Connections) -> None:
        self._shared = shared
        self._loop = asyncio.get_running_loop()
        self._parser = httptools.HttpRequestParser(self)
        self._transport: asyncio.Transport
        self._timer: asyncio.TimerHandle
        #: Since when the client has owed us something.
        self._since = time.monotonic()
        #: The request that is being read, and the bytes of its head so far.
        self._incoming: Request | None = None
        self._head = 0
        #: Requests read but not begun: more than one only if they came in one piece.
        self._waiting: deque[Request] = deque()
        self._task: asyncio.Task[None] | None = None
        self._can_write = True
        self._reading = True
        #: What still arrives is thrown away; what waits is answered.
        self._deaf = False

    def drain(self) -> None:
        """Close as soon as what has been read is answered."""
        self._deaf = True
        self._proceed()

    def abort(self) -> None:
        """Close now."""
        self._transport.abort()

    # The transport calls these.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)
        self._shared.open.add(self)
        self._timer = self._loop.call_later(PATIENCE, self._check_patience)

    def connection_lost(self, exc: Exception | None) -> None:
        self._shared.open.discard(self)
        if not self._shared.open:
            self._shared.emptied.set()
        self._timer.cancel()
        self._deaf = True
        self._waiting.clear()
        if self._task is not None:
            self._task.cancel()

    def data_received(self, data: bytes) -> None:
        if self._deaf:
            return
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserUpgrade:
            self._deaf = True
        except httptools.HttpParserError as error:
            self._refuse(HTTPStatus.BAD_REQUEST, f"Malformed HTTP request: {error}")
        self._bound_head(len(data))
        self._proceed()

    def pause_writing(self) -> None:
        self._can_write = False

    def resume_writing(self) -> None:
        self._can_write = True
        self._proceed()

    # The parser calls these, out of `data_received`.

    def on_message_begin(self) -> None:
        self._incoming = Request()
        self._head = 0
        self._since = time.monotonic()

    def on_url(self, url: bytes) -> None:
        self._current().url += url

    def on_header(self, name: bytes, value: bytes) -> None:
        self._current().headers[name.lower()] = value

    def on_headers_complete(self) -> None:
        request = self._current()
        request.method = self._parser.get_method().decode("ascii")
        request.http_10 = self._parser.get_http_version() == "1.0"
        if request.announced_size > self._shared.max_body:
            self._refuse_body()
        elif request.wants_continue and self._task is None and not self._waiting:
            self._transport.write(_CONTINUE)

    def on_body(self, chunk: bytes) -> None:
        if not self._deaf and self._current().add_body(chunk) > self._shared.max_body:
            self._refuse_body()

    def on_message_complete(self) -> None:
        if self._deaf:
            return
        request = self._current()
        request.keep_alive = self._parser.should_keep_alive() and not self._parser.should_upgrade()
        self._deaf = not request.keep_alive
        self._incoming = None
        self._waiting.append(request)

    # The rest is ours.

    def _current(self) -> Request:
        assert self._incoming is not None
        return self._incoming

    def _bound_head(self, size: int) -> None:
        if self._incoming is None or self._incoming.method:
            return
        self._head += size
        if self._head > MAX_HEAD:
            text = f"The request's headers are longer than {MAX_HEAD} bytes."
            self._refuse(HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE, text)

    def _refuse_body(self) -> None:
        text = f"The request body is longer than {self._shared.max_body} bytes."
        self._refuse(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, text)

    def _refuse(self, status: HTTPStatus, message: str) -> None:
        """Answer so, after what is waiting, and read no more requests."""
        if self._deaf:
            return
        self._deaf = True
        request = self._incoming or Request()
        request.refuse(self._shared.rest.refused(status, message))
        self._waiting.append(request)

    def _proceed(self) -> None:
        """Begin the next request if there is one; read on if there is none."""
        if self._task is None and self._can_write and not self._transport.is_closing():
            if self._waiting:
                self._task = self._loop.create_task(self._serve(self._waiting.popleft()))
            elif self._deaf:
                self._transport.close()
        self._read(not self._waiting)

    def _read(self, wanted: bool) -> None:
        if wanted is not self._reading and not self._transport.is_closing():
            self._reading = wanted
            if wanted:
                self._transport.resume_reading()
            else:
                self._transport.pause_reading()

    async def _serve(self, request: Request) -> None:
        try:
            response = request.refusal or await self._shared.rest.handle(
                request.method, request.path, request, request.body
            )
        finally:
            self._task = None
        if self._transport.is_closing():
            return
        self._write(*encode_response(response, request))
        self._since = time.monotonic()
        if request.refusal is None:
            self._proceed()
        elif self._transport.can_write_eof():
            # A client that is still sending must be let finish, or it never sees the response.
            self._transport.write_eof()

    def _write(self, head: bytes, body: bytes) -> None:
        if len(body) < _LARGE:
            self._transport.write(head + body)
        else:
            self._transport.writelines((head, body))

    def _check_patience(self) -> None:
        left = self._since + PATIENCE - time.monotonic()
        if self._task is None and left <= 0:
            self._transport.abort()
        else:
            self._timer = self._loop.call_later(max(left, 1.0), self._check_patience)
