"""What a server does with its connections' requests, whatever they ask."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

from shardserve.shards.exchange import Exchange, Performed

_Asked = TypeVar("_Asked", contravariant=True)


@dataclass(frozen=True)
class ServerLimits:
    """Bounds of a server, in bytes and seconds; each but the first for each connection."""

    max_connections: int = 1024
    max_frame: int = 1 << 30
    #: Requests that are queued or at work, and what they cost together.
    max_jobs: int = 1024
    max_job_cost: int = 4 << 30
    #: Requests up to this cost are done on the event loop: handing over would cost more.
    inline_cost: int = 1 << 20
    #: No more requests are read while more than this waits to be sent.
    high_water: int = 1 << 22
    handshake_seconds: float = 5.0
    #: A router that stays silent for three times as long is taken for dead.
    keepalive_seconds: float = 15.0


class Ended(Protocol):
    """A request that has ended; a finished future of either kind."""

    def result(self) -> Performed:
        """What came of it. Raises the `ServingError` for which nothing did."""
        ...

    def exception(self) -> BaseException | None:
        """What it failed with, None if it did not."""
        ...


#: Told, on the event loop, the number of a request that has ended later than `begin`.
Done = Callable[[int, Ended], None]


class Work(Protocol[_Asked]):
    """One connection's requests that are under way, by their numbers."""

    def __len__(self) -> int: ...

    def __contains__(self, number: int) -> bool: ...

    def begin(
        self, number: int, request: _Asked, arrived: float, deadline: float
    ) -> Performed | None:
        """Carry a request out at once; or None, and `Done` is told when it has ended.

        Times are on `time.monotonic`. Raises a `ServingError` for a request that is refused.
        """
        ...

    def forget(self, number: int) -> None:
        """Do not start a request, or drop its result. Nothing for one that is not there."""
        ...

    def forget_all(self) -> None:
        """Forget every request."""
        ...


class Service(Protocol):
    """What a server offers: what it is asked, and who does it."""

    exchange: Exchange[Any, Any]

    def new_work(self, limits: ServerLimits, done: Done) -> Work[Any]:
        """For a connection that was made."""
        ...

    async def drain(self) -> None:
        """Nothing new comes any more. Return when what was begun has ended, or will by itself."""
        ...

    def close(self) -> None:
        """No connection is left."""
        ...
