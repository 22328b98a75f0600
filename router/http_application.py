"""uvicorn onto `Rest`: ASGI, but for the reply, of which there is only ever one piece."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, Generator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from uvicorn.protocols.http.httptools_impl import STATUS_LINE, RequestResponseCycle

from shardserve.router.rest import RequestHeaders, Response

#: Bytes of a request's body.
MAX_BODY = 64 << 20

#: Requests that take longer than this many seconds are watched for their client going away.
WATCH_AFTER = 0.25

CLOSE = (("connection", "close"),)


class Answers(Protocol):
    """What a door needs of `router.rest.Rest`."""

    async def handle(
        self, method: str, path: str, headers: RequestHeaders, body: bytes
    ) -> Response: ...

    def refusal(self, method: str, path: str, headers: RequestHeaders) -> Response | None: ...

    def refused(self, status: int, message: str) -> Response: ...


@dataclass(frozen=True, slots=True)
class ClientBounds:
    """What one client may take of the server."""

    #: Bytes of a body.
    body: int = MAX_BODY
    #: Bytes of a request's line and headers together, or of its trailers, give or take one read.
    head: int = 64 << 10
    #: Seconds from a connection's begin, or that of a later head, to the end of that head.
    head_seconds: float = 30.0
    #: Seconds from a request's head to the end of its body.
    body_seconds: float = 60.0
    #: Seconds that a connection may be idle between two requests.
    #: Longer than what keeps connections for its clients, such as a load balancer, lets them idle.
    idle_seconds: int = 75
    #: Seconds that a client that was answered early may go on sending, so that it sees the reply.
    linger_seconds: float = 5.0
    #: Seconds that a client may take nothing of what is sent to it.
    unread_seconds: float = 60.0


class Headers:
    """ASGI's raw headers by name. Of several values the first one counts."""

    __slots__ = ("_pairs", "_values")

    def __init__(self, pairs: list[tuple[bytes, bytes]]) -> None:
        self._pairs = pairs
        self._values: dict[bytes, bytes] | None = None

    def get(self, name: str, /) -> str | None:
        if self._values is None:
            self._values = dict(reversed(self._pairs))
        value = self._values.get(name.encode("latin-1"))
        return None if value is None else value.decode("latin-1")


class _ClientGone(Exception):
    """There is nobody left to answer."""


#: Whether another request may follow on the connection of a cycle.
MayGoOn = Callable[[RequestResponseCycle], bool]


class Application:
    """What `http_protocol.HttpProtocol` calls for each request.

    While it `is_draining`, clients are told to send their next request over another connection.
    """

    def __init__(self, rest: Answers, bounds: ClientBounds) -> None:
        self.bounds = bounds
        self.is_draining = False
        self._rest = rest

    def refusal(self, method: str, url: bytes, headers: Headers) -> Response | None:
        """The reply to a request that is refused by its head; None for all others."""
        return self._rest.refusal(method, url.decode("latin-1"), headers)

    def late_head(self) -> Response:
        """The reply to a head that goes on for too long."""
        text = f"The request's headers did not come within {self.bounds.head_seconds:g} seconds."
        return self._rest.refused(408, text)

    async def __call__(
        self, cycle: RequestResponseCycle, may_go_on: MayGoOn, scope: Any, receive: Any, send: Any
    ) -> None:
        try:
            response = await self._respond(cycle)
        except _ClientGone:
            return
        if cycle.flow.write_paused and not cycle.disconnected:
            await cycle.flow.drain()
        if not cycle.disconnected:
            _complete(cycle, response, may_go_on(cycle))

    async def _respond(self, cycle: RequestResponseCycle) -> Response:
        headers = Headers(cycle.scope["headers"])  # type: ignore[arg-type]
        try:
            body = await self._body(headers, cycle)
        except TimeoutError:
            text = f"The request body did not come within {self.bounds.body_seconds:g} seconds."
            return self._rest.refused(408, text)
        if body is None:
            text = f"The request body is longer than {self.bounds.body} bytes."
            return self._rest.refused(413, text)
        scope = cycle.scope
        handling = self._rest.handle(scope["method"], _path(scope), headers, body)
        try:
            waited_for = handling.send(None)
        except StopIteration as done:
            answer: Response = done.value
            return answer
        return await _watched(_Begun(handling, waited_for), cycle)

    async def _body(self, headers: Headers, cycle: RequestResponseCycle) -> bytes | None:
        """The whole body, or None if it is, or says it is, longer than may be."""
        announced = headers.get("content-length")
        if announced is not None and int(announced) > self.bounds.body:
            return None
        if not cycle.more_body:
            body = _whole(cycle)
            return body if len(body) <= self.bounds.body else None
        async with asyncio.timeout(self.bounds.body_seconds):
            return await self._long_body(cycle)

    async def _long_body(self, cycle: RequestResponseCycle) -> bytes | None:
        pieces, size, more = [], 0, True
        while more and size <= self.bounds.body:
            piece, more = await _piece(cycle)
            pieces.append(piece)
            size += len(piece)
        return b"".join(pieces) if size <= self.bounds.body else None


def _whole(cycle: RequestResponseCycle) -> bytes:
    """A body that has come to its end: what `receive` would return, without waiting."""
    if cycle.disconnected:
        raise _ClientGone
    cycle.flow.resume_reading()
    cycle.message_event.clear()
    body, cycle.body = bytes(cycle.body), bytearray()
    return body


async def _piece(cycle: RequestResponseCycle) -> tuple[bytes, bool]:
    """What has come of a body, and whether more is to come."""
    message: Any = await cycle.receive()
    if message["type"] == "http.disconnect":
        raise _ClientGone
    return message["body"], message["more_body"]


class _Begun:
    """The rest of a coroutine that has run in this task until it first waited."""

    __slots__ = ("_coroutine", "_waited_for")

    def __init__(self, coroutine: Coroutine[Any, Any, Response], waited_for: Any) -> None:
        self._coroutine = coroutine
        self._waited_for = waited_for

    def __await__(self) -> Generator[Any, Any, Response]:
        try:
            while True:
                try:
                    sent = yield self._take()
                except BaseException as error:  # noqa: BLE001 (it is raised where it is awaited)
                    self._waited_for = self._coroutine.throw(error)
                else:
                    self._waited_for = self._coroutine.send(sent)
        except StopIteration as done:
            answer: Response = done.value
            return answer

    def _take(self) -> Any:
        """Not kept: a future with an error would be in a cycle with frames of the traceback."""
        waited_for, self._waited_for = self._waited_for, None
        return waited_for


async def _watched(answering: Awaitable[Response], cycle: RequestResponseCycle) -> Response:
    watch = _Watch(cycle)
    try:
        return await answering
    except asyncio.CancelledError:
        if watch.gone:
            raise _ClientGone from None
        raise
    finally:
        watch.end()


class _Watch:
    """Cancels the current task if its client goes away, once it has taken `WATCH_AFTER`."""

    __slots__ = ("_cycle", "_task", "_timer", "_watcher", "gone")

    def __init__(self, cycle: RequestResponseCycle) -> None:
        self.gone = False
        self._cycle = cycle
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
        message = await self._cycle.receive()
        if message["type"] == "http.disconnect" and self._task is not None:
            self.gone = True
            self._task.cancel()


def _path(scope: Any) -> str:
    """The path as it came, percent-encoded and with its query."""
    path: str = scope["raw_path"].decode("latin-1")
    query = scope["query_string"]
    return f"{path}?{query.decode('latin-1')}" if query else path


def _complete(cycle: RequestResponseCycle, response: Response, may_go_on: bool) -> None:
    """Write all of a response, and end the exchange as the last of ASGI's messages would."""
    ends = () if cycle.keep_alive and may_go_on else CLOSE
    has_body = cycle.scope["method"] != "HEAD"
    cycle.transport.write(encoded(response, ends, has_body=has_body))
    cycle.response_started = cycle.response_complete = True
    cycle.message_event.set()
    if not cycle.keep_alive and not cycle.more_body:
        cycle.transport.close()
    cycle.on_response()


def encoded(
    response: Response, ends: Sequence[tuple[str, str]] = (), *, has_body: bool = True
) -> bytes:
    """A whole reply, as it goes over the wire, with more headers at its `ends`."""
    lines = [f"{name}: {value}\r\n" for name, value in (*response.headers, *ends)]
    lines.append(f"content-length: {len(response.body)}\r\n\r\n")
    head = STATUS_LINE[response.status] + "".join(lines).encode("latin-1")
    return head + response.body if has_body else head
