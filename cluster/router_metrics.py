"""What all routers have counted together, those that have gone included."""

from __future__ import annotations

import asyncio
from collections.abc import Collection

from shardserve.cluster.broadcast import Broadcast
from shardserve.router.metric_snapshot import Snapshot, summed, unpacked

#: So many routers that have gone may still come back.
_REMEMBERED = 64


class RouterMetrics:
    """The latest snapshot of each router, and what those left behind that are no more.

    Routers report when they are asked by a new number. One that was thought to have gone may report
    again, and is counted once. Belongs to one event loop.
    """

    def __init__(self) -> None:
        self._latest: dict[str, Snapshot] = {}
        self._answered: dict[str, int] = {}
        self._past = Snapshot()
        #: Of the last that have gone, the oldest first: not in `_past` yet.
        self._gone: dict[str, Snapshot] = {}
        self._changed = Broadcast()

    def reported(self, router: str, number: int, snapshot: bytes) -> None:
        """A router's answer to the question of that number. Raises DataLoss for what is none."""
        self._latest[router] = unpacked(snapshot)
        self._gone.pop(router, None)
        self._answered[router] = number
        self._changed.send()

    def gone(self, router: str) -> None:
        """It will not answer any more; what it had counted stays."""
        latest = self._latest.pop(router, Snapshot())
        self._answered.pop(router, None)
        before = self._gone.pop(router, Snapshot())
        self._gone[router] = summed([before, latest.past()])
        while len(self._gone) > _REMEMBERED:
            oldest = self._gone.pop(next(iter(self._gone)))
            self._past = summed([self._past, oldest])
        self._changed.send()

    async def collected(self, number: int, routers: Collection[str], seconds: float) -> bytes:
        """The sum, packed, when all of `routers` have answered a question, or as far as it is."""
        try:
            async with asyncio.timeout(seconds):
                while any(self._answered.get(router, -1) < number for router in routers):
                    await self._changed.wait()
        except TimeoutError:
            pass  # Of those that did not answer the last that they said counts.
        return summed([self._past, *self._gone.values(), *self._latest.values()]).packed()
