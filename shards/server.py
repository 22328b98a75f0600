"""A server of the data plane: it listens, and answers every router that proves itself."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import secrets
import threading
from collections.abc import Callable, Coroutine
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import uvloop

from shardserve.batching.errors import InvalidArgument
from shardserve.shards.address import Address, this_node
from shardserve.shards.handshake import Credentials
from shardserve.shards.jobs import LookupExecutor
from shardserve.shards.lookup_work import LookupService
from shardserve.shards.session import Session
from shardserve.shards.work import ServerLimits, Service

__all__ = [
    "LookupExecutor",
    "RunningServer",
    "ServerLimits",
    "ShardServer",
    "StreamServer",
    "serve_in_thread",
    "start_in_thread",
]

logger = logging.getLogger(__name__)

GRACE_SECONDS = 5.0


class StreamServer:
    """Offers `service` over a Unix socket, TCP, or both. Belongs to one event loop."""

    def __init__(
        self, service: Service, credentials: Credentials, limits: ServerLimits | None = None
    ) -> None:
        self.service = service
        self.credentials = credentials
        self.limits = limits or ServerLimits()
        self._listeners: list[asyncio.Server] = []
        self._unix_path: Path | None = None
        self._sessions: set[Session] = set()
        self._empty = asyncio.Event()
        self._empty.set()
        self._is_closed = False

    @property
    def connections(self) -> int:
        """Connections that are open, those that have not proved themselves included."""
        return len(self._sessions)

    @property
    def in_flight(self) -> int:
        """Requests that are queued or at work."""
        return sum(session.in_flight for session in self._sessions)

    async def listen(
        self, *, unix_path: str | None = None, host: str | None = None, port: int = 0
    ) -> Address:
        """Start to listen where it is said, and say where that is: a port of 0 gives any free one.

        Raises InvalidArgument, naming the place, where one cannot listen.
        """
        if unix_path is None and host is None:
            raise InvalidArgument("a server needs a Unix socket's path or a host to listen on")
        loop = asyncio.get_running_loop()
        try:
            if unix_path is not None:
                await self._listen_unix(loop, Path(unix_path))
            if host is not None:
                server = await loop.create_server(self._new_session, host, port)
                self._listeners.append(server)
                port = server.sockets[0].getsockname()[1]
        except OSError as error:
            await self.close(grace_seconds=0.0)
            place = f"{unix_path or ''} {host or ''}:{port}".strip()
            raise InvalidArgument(f"cannot listen on {place}: {error}") from error
        return Address(unix_path, host, port, this_node(), secrets.token_hex(8))

    async def close(self, grace_seconds: float = GRACE_SECONDS) -> None:
        """Stop listening, answer what has come in, for at most `grace_seconds`, and close."""
        self._is_closed = True
        for listener in self._listeners:
            listener.close()
        if self._unix_path is not None:
            self._unix_path.unlink(missing_ok=True)
        for session in list(self._sessions):
            session.drain()
        await _within(grace_seconds, self._drained())
        for session in list(self._sessions):
            session.abort()
        await _within(GRACE_SECONDS, self._empty.wait())
        self.service.close()

    def joined(self, session: Session) -> bool:
        """For `Session`: a connection was made, be it one accepted as the server closed."""
        self._sessions.add(session)
        self._empty.clear()
        return not self._is_closed and len(self._sessions) <= self.limits.max_connections

    def left(self, session: Session) -> None:
        """For `Session`: a connection is no more."""
        self._sessions.discard(session)
        if not self._sessions:
            self._empty.set()

    def _new_session(self) -> Session:
        return Session(self)

    async def _listen_unix(self, loop: asyncio.AbstractEventLoop, path: Path) -> None:
        self._listeners.append(await loop.create_unix_server(self._new_session, str(path)))
        self._unix_path = path
        path.chmod(0o600)  # noqa: ASYNC240 (does not block)

    async def _drained(self) -> None:
        await self.service.drain()
        await self._empty.wait()


class ShardServer(StreamServer):
    """Answers lookups with `executor`; `threads` is how many large ones are worked on at once."""

    def __init__(
        self,
        executor: LookupExecutor,
        credentials: Credentials,
        limits: ServerLimits | None = None,
        *,
        threads: int = 2,
    ) -> None:
        super().__init__(LookupService(executor, threads), credentials, limits)


@dataclass(frozen=True)
class RunningServer:
    """A server on a thread of its own. `address` is where it listens."""

    address: Address
    _stop: Callable[[float], None]
    _thread: threading.Thread

    def close(self, grace_seconds: float = GRACE_SECONDS) -> None:
        """Close the server as `StreamServer.close` does, and end its thread. May be repeated."""
        self._stop(grace_seconds)
        self._thread.join()

    def join(self, timeout: float | None = None) -> bool:
        """Wait, for at most `timeout` seconds, for the server to end; whether it has."""
        self._thread.join(timeout)
        return not self._thread.is_alive()


def serve_in_thread(
    executor: LookupExecutor,
    credentials: Credentials,
    limits: ServerLimits | None = None,
    *,
    threads: int = 2,
    unix_path: str | None = None,
    host: str | None = None,
    port: int = 0,
) -> RunningServer:
    """Run a `ShardServer` as `start_in_thread` does."""
    return start_in_thread(
        lambda: ShardServer(executor, credentials, limits, threads=threads),
        unix_path=unix_path,
        host=host,
        port=port,
    )


def start_in_thread(
    make: Callable[[], StreamServer],
    *,
    unix_path: str | None = None,
    host: str | None = None,
    port: int = 0,
) -> RunningServer:
    """Run the server that `make` makes on a thread with an event loop (uvloop) of its own.

    `make` is called there. Returns once it listens. Raises InvalidArgument where it cannot listen,
    and what `make` raises.
    """
    started: Future[tuple[Address, Callable[[float], None]]] = Future()

    async def serve() -> None:
        loop = asyncio.get_running_loop()
        stopped: asyncio.Future[float] = loop.create_future()

        def stop(grace_seconds: float) -> None:
            if thread.is_alive():
                loop.call_soon_threadsafe(_set_once, stopped, grace_seconds)

        server = make()
        address = await server.listen(unix_path=unix_path, host=host, port=port)
        started.set_result((address, stop))
        await server.close(await stopped)

    def run() -> None:
        try:
            uvloop.run(serve())
        except BaseException as error:
            if started.done():
                raise
            started.set_exception(error)

    thread = threading.Thread(target=run, name="stream-server", daemon=True)
    thread.start()
    address, stop = started.result()
    return RunningServer(address, stop, thread)


async def _within(seconds: float, end: Coroutine[Any, Any, object]) -> None:
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(seconds):
            await end


def _set_once(future: asyncio.Future[float], value: float) -> None:
    if not future.done():
        future.set_result(value)
