"""The direct REST door: plain asyncio and httptools' parser, in a loop that runs already.

Chosen by measurement, half-plus-two through all of our code, servers interleaved on two cores,
CPU of the process for a request at 32 connections (least of nine runs), median time at one:
this 56 us and 97 us, granian embedded 75 us and 142 us, uvicorn with httptools 75 us and 130 us,
aiohttp 92 us and 151 us. The ready-made servers pay for ASGI or for handing each request from
thread to thread; granian also hides whether a path's slash was percent-encoded.
"""

from __future__ import annotations

import asyncio
import contextlib

from shardserve.router.http_protocol import Connections, RestProtocol
from shardserve.router.listening import ANY_HOST, listen
from shardserve.router.rest import Rest

MAX_BODY = 64 << 20

GRACE_SECONDS = 5.0


class HttpDoor:
    """Serves `rest` on a port until stopped; several processes may share the port.

    Bodies longer than `max_body` bytes are refused with 413.
    """

    def __init__(
        self, rest: Rest, host: str = ANY_HOST, port: int = 0, max_body: int = MAX_BODY
    ) -> None:
        self.host = host
        #: Where it listens; once started, the real one if it was 0.
        self.port = port
        self._connections = Connections(rest, max_body)
        self._server: asyncio.Server | None = None

    async def start(self) -> None:
        """Accept connections from now on, on the running loop. Raises as `listen` does."""
        listener = listen(self.host, self.port)
        self.port = listener.getsockname()[1]
        loop = asyncio.get_running_loop()
        self._server = await loop.create_server(
            lambda: RestProtocol(self._connections), sock=listener
        )

    async def stop(self, grace: float = GRACE_SECONDS) -> None:
        """Refuse new connections; cut requests that are still in flight after `grace` seconds."""
        if self._server is None:
            return
        self._server.close()
        for connection in list(self._connections.open):
            connection.drain()
        await self._emptied(grace)
        for connection in list(self._connections.open):
            connection.abort()
        await self._emptied(grace)
        self._server = None

    async def _emptied(self, seconds: float) -> None:
        """Wait until every connection is closed, but not longer than that."""
        self._connections.emptied.clear()
        if self._connections.open:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._connections.emptied.wait(), seconds)
