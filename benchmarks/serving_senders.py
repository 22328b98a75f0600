"""How the load generator sends: bodies that are encoded already, at the least cost to itself."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
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

    A request takes the connection that was free last; if none is, it waits for one.
    """

    def __init__(self, connections: Sequence[HttpConnection]) -> None:
        self._free = list(connections)
        self._waiting: deque[tuple[bytes, OnReply]] = deque()
        for connection in connections:
            connection.on_free = self._on_free

    @classmethod
    async def connect(cls, host: str, port: int, path: str, connections: int) -> HttpSender:
        """Open every connection before the load begins."""
        loop = asyncio.get_running_loop()
        make = partial(HttpConnection, f"{host}:{port}", path)
        opened = [await loop.create_connection(make, host, port) for _ in range(connections)]
        return cls([protocol for _, protocol in opened])

    def send(self, body: bytes, on_reply: OnReply) -> None:
        if self._free:
            self._free.pop().post(body, on_reply)
        else:
            self._waiting.append((body, on_reply))

    def close(self) -> None:
        """Close the connections that are not in use."""
        for connection in self._free:
            connection.close()

    def _on_free(self, connection: HttpConnection) -> None:
        if self._waiting:
            connection.post(*self._waiting.popleft())
        else:
            self._free.append(connection)


class HttpConnection(asyncio.Protocol):
    """One HTTP/1.1 connection. A lost one answers each further request with its error."""

    def __init__(self, authority: str, path: str) -> None:
        self._head = (
            f"POST {path} HTTP/1.1\r\nHost: {authority}\r\n"
            "Content-Type: application/json\r\nContent-Length: "
        ).encode()
        self._on_reply: OnReply | None = None
        self._lost = ""
        self.on_free: Callable[[HttpConnection], None] = lambda _: None

    def post(self, body: bytes, on_reply: OnReply) -> None:
        self._on_reply = on_reply
        if self._lost:
            self._end(self._lost)
            return
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
        self._lost = f"connection lost: {error or 'closed by the server'}"
        if self._on_reply is not None:
            self._end(self._lost)

    def on_body(self, body: bytes) -> None:
        self._body.append(body)

    def on_message_complete(self) -> None:
        body, status = b"".join(self._body), self._parser.get_status_code()
        self._end(body if status == 200 else f"{status}: {body[:300].decode(errors='replace')}")

    def _end(self, reply: Reply) -> None:
        on_reply, self._on_reply = self._on_reply, None
        if on_reply is not None:
            on_reply(reply)
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
