"""How the load generator sends: bodies that are encoded already, at the least cost to itself."""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Protocol, cast

import grpc
import httptools

Reply = bytes | str
OnReply = Callable[[Reply], None]


class Sender(Protocol):
    """Sends a body at once, and calls `on_reply` once, with the reply or the error's text."""

    def send(self, body: bytes, on_reply: OnReply) -> None: ...


class HttpSender:
    """POSTs over keep-alive connections, one request at a time on each.

    A request takes the connection that was free last; if none is, it waits for one. A connection
    that a server closes while nothing is asked on it is opened anew, as clients do.
    """

    def __init__(self, open_connection: Callable[[], Awaitable[HttpConnection]]) -> None:
        self._open_connection = open_connection
        self._free: list[HttpConnection] = []
        self._waiting: deque[tuple[bytes, OnReply]] = deque()
        self._opening: set[asyncio.Task[None]] = set()

    @classmethod
    async def connect(cls, host: str, port: int, path: str, connections: int) -> HttpSender:
        """Open every connection before the load begins."""
        loop = asyncio.get_running_loop()
        make = partial(HttpConnection, f"{host}:{port}", path)

        async def open_connection() -> HttpConnection:
            return (await loop.create_connection(make, host, port))[1]

        sender = cls(open_connection)
        for _ in range(connections):
            await sender._open()
        return sender

    async def _open(self) -> None:
        connection = await self._open_connection()
        connection.on_free, connection.on_lost = self._on_free, self._on_lost
        self._on_free(connection)

    def send(self, body: bytes, on_reply: OnReply) -> None:
        if self._free:
            self._free.pop().post(body, on_reply)
        else:
            self._waiting.append((body, on_reply))

    def close(self) -> None:
        """Close the connections that are not in use."""
        for connection in self._free:
            connection.on_lost = lambda _: None
            connection.close()

    async def _reopen(self) -> None:
        # What waits for a server that is gone stays without a reply, and counts so.
        with contextlib.suppress(OSError):
            await self._open()

    def _on_free(self, connection: HttpConnection) -> None:
        if self._waiting:
            connection.post(*self._waiting.popleft())
        else:
            self._free.append(connection)

    def _on_lost(self, connection: HttpConnection) -> None:
        if connection in self._free:
            self._free.remove(connection)
        task = asyncio.ensure_future(self._reopen())
        self._opening.add(task)
        task.add_done_callback(self._opening.discard)


class HttpConnection(asyncio.Protocol):
    """One HTTP/1.1 connection. Calls `on_free` after each reply, and `on_lost` once, at the end."""

    def __init__(self, authority: str, path: str) -> None:
        self._head = (
            f"POST {path} HTTP/1.1\r\nHost: {authority}\r\n"
            "Content-Type: application/json\r\nContent-Length: "
        ).encode()
        self._on_reply: OnReply | None = None
        self.on_free: Callable[[HttpConnection], None] = lambda _: None
        self.on_lost: Callable[[HttpConnection], None] = lambda _: None

    def post(self, body: bytes, on_reply: OnReply) -> None:
        self._on_reply = on_reply
        self._body: list[bytes] = []
        self._transport.writelines((self._head, b"%d\r\n\r\n" % len(body), body))

    def close(self) -> None:
        self._transport.close()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.WriteTransport, transport)
        self._parser = httptools.HttpResponseParser(self)

    def data_received(self, data: bytes) -> None:
        self._parser.feed_data(data)

    def connection_lost(self, error: Exception | None) -> None:
        if self._on_reply is not None:
            self._on_reply(f"connection lost: {error or 'closed by the server'}")
        self.on_lost(self)

    def on_body(self, body: bytes) -> None:
        self._body.append(body)

    def on_message_complete(self) -> None:
        body, status = b"".join(self._body), self._parser.get_status_code()
        on_reply, self._on_reply = self._on_reply, None
        if on_reply is not None:
            on_reply(body if status == 200 else f"{status}: {body[:300].decode(errors='replace')}")
            self.on_free(self)


class GrpcSender:
    """Calls one unary method with bytes that are serialised already."""

    def __init__(self, address: str, method: str) -> None:
        self._channel = grpc.aio.insecure_channel(
            address, options=[("grpc.max_receive_message_length", -1)]
        )
        self._call = self._channel.unary_unary(method)
        self._running: set[asyncio.Task[None]] = set()

    def send(self, body: bytes, on_reply: OnReply) -> None:
        task = asyncio.create_task(self._ask(body, on_reply))
        self._running.add(task)
        task.add_done_callback(self._running.discard)

    async def _ask(self, body: bytes, on_reply: OnReply) -> None:
        try:
            on_reply(await self._call(body))
        except grpc.aio.AioRpcError as error:
            on_reply(f"{error.code().name}: {error.details()}")
