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
import math
import socket

import uvicorn

from shardserve.router.http_application import Answers, Application, ClientBounds
from shardserve.router.http_protocol import HttpProtocol
from shardserve.router.listening import ANY_HOST, BACKLOG, listen
from shardserve.router.tls import Tls
from shardserve.router.tls_context import RenewableContext

GRACE_SECONDS = 5.0


class HttpDoor:
    """Serves `rest` on a port until stopped; several processes may share the port.

    With `tls` it takes nothing else. Raises InvalidArgument for certificates that are none.
    """

    def __init__(
        self,
        rest: Answers,
        host: str = ANY_HOST,
        port: int = 0,
        bounds: ClientBounds = ClientBounds(),  # noqa: B008 (frozen)
        tls: Tls | None = None,
    ) -> None:
        self.host = host
        #: Where it listens; once started, the real one if it was 0.
        self.port = port
        self._application = Application(rest, bounds)
        config = uvicorn.Config(
            self._application,
            http=HttpProtocol,
            ws="none",
            lifespan="off",
            interface="asgi3",
            backlog=BACKLOG,
            timeout_keep_alive=bounds.idle_seconds,
            log_config=None,
            log_level="critical",
            access_log=False,
            proxy_headers=False,
            server_header=False,
            date_header=False,
        )
        self._server = uvicorn.Server(config)
        self._tls = None if tls is None else RenewableContext(tls)
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

    def renew(self, tls: Tls) -> None:
        """Show these certificates to who connects from now on. Raises as this class does."""
        assert self._tls is not None, "a door in the clear stays so"
        self._tls.renew(tls)

    async def drain(self) -> None:
        """Answer as before, and close each connection after its next reply, which says so."""
        self._application.is_draining = True

    async def stop(self, grace: float = GRACE_SECONDS) -> None:
        """Refuse new connections; cut requests that are still in flight after `grace` seconds."""
        if self._ticking is None:
            return
        self._server.config.timeout_graceful_shutdown = math.ceil(grace)
        self._server.should_exit = True
        await self._ticking
        await self._server.shutdown(sockets=self._sockets)
        self._abort_those_that_do_not_read()
        await asyncio.gather(*self._server.server_state.tasks, return_exceptions=True)
        self._ticking = None

    def _abort_those_that_do_not_read(self) -> None:
        """A request that has been cancelled answers, too, and would wait for its client."""
        for connection in tuple(self._server.server_state.connections):
            if isinstance(connection, HttpProtocol) and connection.flow.write_paused:
                connection.transport.abort()
