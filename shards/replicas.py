"""All replicas of one server as one channel: who is asked, and what happens when one is lost."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Sequence
from typing import Generic, TypeVar

from shardserve.batching.errors import Unavailable
from shardserve.shards.address import Address
from shardserve.shards.calls import Call, Holder, Sink
from shardserve.shards.exchange import Exchange
from shardserve.shards.fan_out import ask
from shardserve.shards.handshake import Credentials
from shardserve.shards.link import Link, LinkLimits
from shardserve.shards.messages import LookupReply, LookupRequest
from shardserve.shards.stream import Stream
from shardserve.shards.waiting import WaitingRoom
from shardserve.shards.wire import LOOKUPS

Q = TypeVar("Q")
P = TypeVar("P")

__all__ = ["Address", "Replicas", "ReplicatedChannel", "choose"]


def choose(loads: Sequence[int | None], turn: int) -> int | None:
    """Which replica to ask: one of those with the fewest requests in flight.

    `loads` has each replica's requests in flight, None where it cannot be asked. Among equals the
    first from place `turn` on, counted in a circle. None when no replica can be asked.
    """
    best: int | None = None
    least = 0
    count = len(loads)
    for step in range(count):
        place = (turn + step) % count
        load = loads[place]
        if load is not None and (best is None or load < least):
            best, least = place, load
    return best


class Replicas(Generic[Q, P]):
    """Calls of one exchange to whichever replica answers. Belongs to the running event loop.

    A request goes to the least busy replica. When that one turns out Unavailable, the request goes
    on to another within its deadline, each replica being tried at most once: what is asked changes
    nothing, so asking twice is safe. While no replica is connected, requests wait for one at most
    until `patience_seconds` after the outage began, and fail with Unavailable at once after that.
    """

    def __init__(
        self,
        name: str,
        addresses: Iterable[Address],
        credentials: Credentials,
        exchange: Exchange[Q, P],
        limits: LinkLimits | None = None,
        *,
        patience_seconds: float = 0.25,
        pause: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self.name = name
        self._credentials = credentials
        self._exchange = exchange
        self._limits = limits or LinkLimits()
        self._pause = pause
        self._turn = 0
        self._closed = False
        self._changed = asyncio.Event()
        self._waiting = WaitingRoom(name, patience_seconds, self._limits.max_in_flight, self._why)
        self._streams: tuple[Stream[Q, P], ...] = ()
        #: Those of replicas that are gone, but have requests in flight.
        self._leaving: tuple[Stream[Q, P], ...] = ()
        self.update(addresses)

    def __repr__(self) -> str:
        streams = ", ".join(
            f"{stream.address} {'up' if stream.is_up else 'down'} {stream.in_flight}"
            for stream in self._streams
        )
        return f"<{type(self).__name__} {self.name} [{streams}] {len(self._waiting)} waiting>"

    @property
    def addresses(self) -> frozenset[Address]:
        """The replicas there are, as last given to `update`."""
        return frozenset(stream.address for stream in self._streams)

    @property
    def is_up(self) -> bool:
        """Whether some replica is connected."""
        return any(stream.is_up for stream in self._streams)

    @property
    def in_flight(self) -> int:
        """Requests that have neither ended nor been cancelled, those that wait included."""
        on_streams = sum(stream.in_flight for stream in (*self._streams, *self._leaving))
        return on_streams + len(self._waiting)

    def update(self, addresses: Iterable[Address]) -> None:
        """Replace the whole set of replicas. Requests in flight are not disturbed.

        A connection to an address that stays is kept; one to an address that is gone takes no more
        requests, and closes when its last one has ended.
        """
        wanted = dict.fromkeys(addresses)
        kept = {stream.address: stream for stream in self._streams if stream.address in wanted}
        gone = [stream for stream in self._streams if stream.address not in wanted]
        added = [self._new_stream(address) for address in wanted if address not in kept]
        self._streams = (*kept.values(), *added)
        for stream in gone:
            stream.retire()
        self._leaving = tuple(s for s in (*self._leaving, *gone) if s.is_up)
        for stream in added:
            stream.start()
        if added and not self.is_up:
            self._waiting.open_anew()

    async def connected(self) -> None:
        """Return when some replica is connected."""
        while not self.is_up:
            self._changed.clear()
            await self._changed.wait()

    def submit(self, request: Q, deadline: float, sink: Sink[P], tag: int) -> Call[Q, P]:
        """Start a call; it ends in `sink`. See `SubmitsCalls`."""
        call = Call(request, deadline, sink, tag, self._retry)
        self._place(call, self._streams)
        return call

    async def ask(self, request: Q, deadline: float) -> P:
        """The reply to one call; see `ShardChannel.lookup`."""
        return await ask(self, request, deadline)

    async def close(self) -> None:
        """End every connection; what is in flight or waits fails with Unavailable."""
        self._closed = True
        await asyncio.gather(*(stream.close() for stream in (*self._streams, *self._leaving)))
        for call in self._waiting.release():
            call.fail(Unavailable(f"{self.name}: closed by this router"))

    def _new_stream(self, address: Address) -> Stream[Q, P]:
        return Stream(
            self.name,
            address,
            self._credentials,
            self._exchange,
            self._limits,
            on_change=self._stream_changed,
            pause=self._pause,
        )

    def _place(self, call: Call[Q, P], streams: Sequence[Stream[Q, P]]) -> None:
        link = streams[0].link if len(streams) == 1 else self._choose(streams)
        if link is not None:
            link.send(call)
        else:
            self._waiting.admit(call)

    def _choose(self, streams: Sequence[Stream[Q, P]]) -> Link | None:
        self._turn += 1
        place = choose([s.in_flight if s.link else None for s in streams], self._turn)
        return None if place is None else streams[place].link

    def _retry(self, call: Call[Q, P], failed: Holder | None) -> bool:
        """Take a call on whose replica was Unavailable, if there is anywhere to go."""
        call.failures += 1
        if self._closed or call.failures > len(self._streams):
            return False
        links = [stream.link for stream in self._streams if stream.link is not None]
        if links == [failed]:
            return False  # It is there, and said itself that it cannot.
        others = [stream for stream in self._streams if stream.link not in (None, failed)]
        self._place(call, others)
        return True

    def _stream_changed(self) -> None:
        if not self.is_up:
            self._waiting.open()
            return
        self._changed.set()
        for call in self._waiting.release():
            self._place(call, self._streams)

    def _why(self) -> str:
        return "; ".join(map(_state, self._streams)) or "none is known"


class ReplicatedChannel(Replicas[LookupRequest, LookupReply]):
    """A `ShardChannel` over the replicas of one shard."""

    def __init__(
        self,
        name: str,
        addresses: Iterable[Address],
        credentials: Credentials,
        limits: LinkLimits | None = None,
        *,
        patience_seconds: float = 0.25,
        pause: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        super().__init__(
            name,
            addresses,
            credentials,
            LOOKUPS,
            limits,
            patience_seconds=patience_seconds,
            pause=pause,
        )

    async def lookup(self, request: LookupRequest, deadline: float) -> LookupReply:
        """See `ShardChannel.lookup`."""
        return await ask(self, request, deadline)


def _state(stream: Stream[Q, P]) -> str:
    if stream.last_error is None:
        return f"{stream.address}: not connected yet"
    return f"{stream.address}: {stream.last_error.message}"
