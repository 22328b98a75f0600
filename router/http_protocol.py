"""uvicorn's HTTP/1.1 on httptools, hardened against clients that are slow, greedy or hostile."""

from __future__ import annotations

import asyncio
import functools
from typing import Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

from shardserve.router.client_flow import Flow, Unread
from shardserve.router.http_application import CLOSE, Application, ClientBounds, Headers, encoded
from shardserve.router.rest import Response

if not hasattr(HttpToolsProtocol, "_start_asgi_task"):
    # Every request would end in a 500.
    raise ImportError(
        "this uvicorn has no _start_asgi_task: none of the versions that are asked for"
    )


class HttpProtocol(HttpToolsProtocol):
    """One connection, kept within `ClientBounds`.

    What `Rest.refusal` refuses by its head is answered at once: a task, a cycle and a body that is
    read and parsed would cost an overloaded server many times what the refusal does. Others tell
    the application which exchange it answers, so that it can write its reply at once.
    """

    #: What httptools calls a header after that is a trailer.
    _in_head = False
    #: Whether a head or a body began, went on or ended in the read that is looked at.
    _advanced = False
    #: Bytes of reads that brought none of these: of a head, or of trailers, that goes on and on.
    _pending = 0
    #: Of a request that has been refused, the body is passed over.
    _skips = False
    _skipping: asyncio.TimerHandle | None = None
    #: Whether all that comes is passed over.
    _is_over = False
    #: Set while a head is waited for: the connection's first, or one that has begun.
    _heading: asyncio.TimerHandle | None = None
    #: What is being answered, or was last; `cycle` may wait behind it.
    _answered: RequestResponseCycle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self.flow = Flow(transport, self.pipeline)
        self._unread = Unread(transport, self._bounds.unread_seconds)
        self._await_head()

    def on_message_begin(self) -> None:
        self._advanced = self._in_head = True
        self._skips = self._is_over
        if not self._is_over:
            # Armed by a refusal in the same read.
            self._unset_keepalive_if_required()
        super().on_message_begin()

    def on_header(self, name: bytes, value: bytes) -> None:
        if self._in_head:
            super().on_header(name, value)

    def on_headers_complete(self) -> None:
        self._advanced = True
        self._in_head = False
        self._end_heading()
        if self._is_over:
            return
        refusal = self._refusal()
        if refusal is None:
            super().on_headers_complete()
        else:
            self._refuse(refusal)

    def on_body(self, body: bytes) -> None:
        self._advanced = True
        if not self._skips:
            super().on_body(body)

    def on_message_complete(self) -> None:
        self._advanced = True
        if not self._skips:
            super().on_message_complete()
        elif not self.parser.should_keep_alive():
            self._close()
        elif not self._is_over:
            self._skips = False
            self._end_skipping()
            self.timeout_keep_alive_task = self._close_after(self.timeout_keep_alive)

    def on_response_complete(self) -> None:
        is_last = self.cycle.response_complete and not self._may_go_on(self.cycle)
        if is_last and not self.transport.is_closing():
            self._hang_up()
        else:
            super().on_response_complete()
            if self.transport.is_closing():
                self._unread.watch()
            else:
                self.flow.resume_reading()

    def data_received(self, data: bytes) -> None:
        if self._is_over or self.transport.is_closing():
            return
        self._advanced = False
        super().data_received(data)
        if self._is_over:
            return
        self._pending = 0 if self._advanced else self._pending + len(data)
        if self._pending > self._bounds.head and not self.transport.is_closing():
            text = f"The request's headers are longer than {self._bounds.head} bytes."
            self.send_400_response(text)
        elif self._heading is None and (self._in_head or self._is_unwatched()):
            self._await_head()

    def send_400_response(self, msg: str) -> None:
        if not self._is_over:
            super().send_400_response(msg)

    def pause_writing(self) -> None:
        super().pause_writing()
        self._unread.watch()

    def resume_writing(self) -> None:
        super().resume_writing()
        if not self.transport.is_closing():
            self._unread.end()

    def timeout_keep_alive_handler(self) -> None:
        self._close()

    def connection_lost(self, exc: Exception | None) -> None:
        self._unread.end()
        self._end_heading()
        self._end_skipping()
        super().connection_lost(exc)
        if self._answered is not None and not self._answered.response_complete:
            self._answered.disconnected = True
            self._answered.message_event.set()

    @property
    def _application(self) -> Application:
        return self.config.app  # type: ignore[return-value]

    @property
    def _bounds(self) -> ClientBounds:
        return self._application.bounds

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: Any) -> None:
        self._answered = cycle
        super()._start_asgi_task(cycle, functools.partial(app, cycle, self._may_go_on))

    def _may_go_on(self, cycle: RequestResponseCycle) -> bool:
        """Whether another request may follow, as far as this side has a say.

        A body that is not read to its end leaves nowhere for one to begin. Of a server that is to
        stop, requests that came behind this one are answered before their client is sent away.
        """
        return not cycle.more_body and (bool(self.pipeline) or not self._application.is_draining)

    def _refusal(self) -> Response | None:
        """None where it is to be found, where others are to come before, or nobody reads it."""
        if self.expect_100_continue or self.flow.write_paused or not self._is_free():
            return None
        method = self.parser.get_method().decode("ascii")
        return self._application.refusal(method, self.url, Headers(self.headers))

    def _refuse(self, response: Response) -> None:
        self._skips = True
        if self._goes_on():
            self.transport.write(encoded(response))
            self._skipping = self._close_after(self._bounds.body_seconds)
        else:
            self.transport.write(encoded(response, CLOSE))
            self._hang_up()

    def _goes_on(self) -> bool:
        """Whether another request may come after the one that is refused, and its body."""
        headers = Headers(self.headers)
        is_short = int(headers.get("content-length") or 0) <= self._bounds.body
        is_chunked = headers.get("transfer-encoding") is not None
        is_kept = self.parser.get_http_version() != "1.0" and self.parser.should_keep_alive()
        return is_kept and is_short and not is_chunked and not self._application.is_draining

    def _hang_up(self) -> None:
        """Close, once the client has had the time to see its reply.

        Closing at once what is still being sent would reset the connection, and the reply be lost.
        """
        self._is_over = True
        self.flow.resume_reading()
        if self.transport.can_write_eof():
            self.transport.write_eof()
        self._unset_keepalive_if_required()
        self.timeout_keep_alive_task = self._close_after(self._bounds.linger_seconds)

    def _is_unwatched(self) -> bool:
        """Whether line ends, say, came for a head: they have ended the time to be idle."""
        return self._is_free() and self.timeout_keep_alive_task is None and not self._skips

    def _is_free(self) -> bool:
        """Whether all requests that came have been answered."""
        return self.cycle is None or self.cycle.response_complete

    def _await_head(self) -> None:
        self._heading = self.loop.call_later(self._bounds.head_seconds, self._end_late_head)

    def _end_heading(self) -> None:
        if self._heading is not None:
            self._heading.cancel()
            self._heading = None

    def _end_late_head(self) -> None:
        if self.cycle is not None and not self.cycle.response_complete:
            # The client has an answer to wait for first.
            self._await_head()
        elif self._in_head:
            self.transport.write(encoded(self._application.late_head(), CLOSE))
            self._hang_up()
        else:
            self._close()

    def _close(self) -> None:
        """Close, once the client has taken what is on its way."""
        self.transport.close()
        self._unread.watch()

    def _close_after(self, seconds: float) -> asyncio.TimerHandle:
        return self.loop.call_later(seconds, self.timeout_keep_alive_handler)

    def _end_skipping(self) -> None:
        if self._skipping is not None:
            self._skipping.cancel()
            self._skipping = None
