"""The router's stream to one server: one connection, made anew whenever it is lost."""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Awaitable, Callable
from typing import Generic, TypeVar

from shardserve.batching.errors import ServingError, Unavailable
from shardserve.shards.address import Address, this_node
from shardserve.shards.calls import Call, Sink
from shardserve.shards.exchange import Exchange
from shardserve.shards.fan_out import ask
from shardserve.shards.handshake import Credentials
from shardserve.shards.link import Link, LinkLimits
from shardserve.shards.messages import LookupReply, LookupRequest
from shardserve.shards.wire import LOOKUPS

Q = TypeVar("Q")
P = TypeVar("P")

logger = logging.getLogger(__name__)

_FIRST_PAUSE_SECONDS = 0.02
_LONGEST_PAUSE_SECONDS = 2.0


def backoff(failures: int, chance: float) -> float:
    """Seconds to pause after `failures` (1 or more) attempts in a row that ended badly.

    Doubles each time up to 2 s; `chance`, in [0, 1), takes off up to half, so that routers that
    lost a shard together do not come back together.
    """
    longest = min(_FIRST_PAUSE_SECONDS * 2.0 ** min(failures - 1, 16), _LONGEST_PAUSE_SECONDS)
    return longest * (1.0 - chance / 2.0)


class Stream(Generic[Q, P]):
    """Calls of one exchange over one connection to `address`. Belongs to the running event loop.

    `start` keeps it connected until `close`; `connect` makes the first connection and says why
    where it cannot be made. While there is no connection, calls fail with Unavailable at once.
    `on_change` is called after the stream has become usable, or has ceased to be.
    """

    def __init__(
        self,
        name: str,
        address: Address,
        credentials: Credentials,
        exchange: Exchange[Q, P],
        limits: LinkLimits | None = None,
        *,
        on_change: Callable[[], None] = lambda: None,
        pause: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self.name = name
        self.address = address
        #: Why the last connection ended or could not be made.
        self.last_error: ServingError | None = None
        self._credentials = credentials
        self._exchange = exchange
        self._limits = limits or LinkLimits()
        self._on_change = on_change
        self._pause = pause
        #: The connection, from when it is open until it ends.
        self.link: Link | None = None
        self._keeper: asyncio.Task[None] | None = None

    @property
    def is_up(self) -> bool:
        """Whether calls can be sent."""
        return self.link is not None

    @property
    def in_flight(self) -> int:
        """Calls that have neither ended nor been cancelled."""
        return len(self.link.calls) if self.link is not None else 0

    def send(self, call: Call[Q, P]) -> None:
        """Take over a call; see `Link.send`."""
        if self.link is None:
            call.fail(self._down())
        else:
            self.link.send(call)

    def submit(self, request: Q, deadline: float, sink: Sink[P], tag: int) -> Call[Q, P]:
        """Start a call; it ends in `sink`."""
        call = Call(request, deadline, sink, tag)
        self.send(call)
        return call

    async def ask(self, request: Q, deadline: float) -> P:
        """The reply to one call; see `ShardChannel.lookup`."""
        return await ask(self, request, deadline)

    async def connect(self) -> None:
        """Make the first connection, then start.

        Raises Unauthenticated or FailedPrecondition when either end refuses the other, Unavailable
        when nobody answers.
        """
        await self._open_link()
        self.start()

    def start(self) -> None:
        """Connect, and connect again whenever the connection is lost, until closed."""
        self._keeper = asyncio.get_running_loop().create_task(self._keep_connected())

    def retire(self) -> None:
        """Take no more calls, and close when those in flight have ended."""
        if self._keeper is not None:
            self._keeper.cancel()
        if self.link is not None:
            self.link.drain()

    async def close(self) -> None:
        """End the connection; calls in flight fail with Unavailable."""
        if self._keeper is not None:
            self._keeper.cancel()
            await asyncio.wait([self._keeper])
        if self.link is not None:
            self.link.close(Unavailable("closed by this router"))

    async def _keep_connected(self) -> None:
        failures = 0
        while True:
            try:
                link = self.link or await self._open_link()
            except ServingError as error:
                failures += 1
                self._note(error, failures)
            else:
                failures = 1
                self._note(await asyncio.shield(link.closed), failures)
            await self._pause(backoff(failures, random.random()))  # noqa: S311 (no secret)

    def _note(self, error: ServingError, failures: int) -> None:
        self.last_error = error
        if failures == 1:
            logger.warning("%s at %s: %s", self.name, self.address, error.message)

    def _down(self) -> Unavailable:
        why = f": {self.last_error.message}" if self.last_error else ""
        return Unavailable(f"{self.name} at {self.address} is not connected{why}")

    async def _open_link(self) -> Link:
        link = Link(self.name, self._credentials, self._limits, self._link_ended, self._exchange)
        seconds = self._limits.connect_seconds
        try:
            async with asyncio.timeout(seconds):
                await self._dial(link)
                error = await link.opened
        except TimeoutError:
            error = Unavailable(f"no connection and handshake in {seconds:g} s")
        except OSError as os_error:
            error = Unavailable(str(os_error))
        except BaseException:
            link.close(Unavailable("given up"))
            raise
        if error is not None:
            link.close(error)
            raise type(error)(f"{self.name} at {self.address}: {error.message}")
        if link.is_open:
            self.link = link
            self._on_change()
        return link

    def _link_ended(self, link: Link, reason: ServingError) -> None:
        if self.link is link:
            self.link = None
            self.last_error = reason
            self._on_change()

    async def _dial(self, link: Link) -> None:
        """Connect over the Unix socket where there is one here, else over TCP."""
        loop = asyncio.get_running_loop()
        address = self.address
        if address.is_local(this_node()):
            await loop.create_unix_connection(lambda: link, address.unix_path)
        elif address.host is not None:
            await loop.create_connection(lambda: link, address.host, address.port)
        else:
            raise Unavailable(f"{self.name}: {address} cannot be reached from this node")


class ShardStream(Stream[LookupRequest, LookupReply]):
    """A `ShardChannel` over one connection to one replica of a shard."""

    def __init__(
        self,
        name: str,
        address: Address,
        credentials: Credentials,
        limits: LinkLimits | None = None,
        *,
        on_change: Callable[[], None] = lambda: None,
        pause: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        super().__init__(
            name, address, credentials, LOOKUPS, limits, on_change=on_change, pause=pause
        )

    async def lookup(self, request: LookupRequest, deadline: float) -> LookupReply:
        """See `ShardChannel.lookup`."""
        return await ask(self, request, deadline)
