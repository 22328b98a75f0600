"""What a controller waits for its routers to have done. The rules are `leases`', the clock is ours.

Belongs to one event loop.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable

from shardserve.cluster.broadcast import Broadcast
from shardserve.cluster.leases import (
    Leases,
    RouterReport,
    all_follow,
    all_have_dropped,
    all_have_loaded,
    refusal_of,
)
from shardserve.cluster.versions import VersionId

logger = logging.getLogger(__name__)

_LOOK_SECONDS = 1.0
#: Who looks so much later than it meant to has stood still.
_LATE_SECONDS = 2.0


class RouterWatch:
    """The routers there are, and what they have.

    Until it is told that the start is over, it waits for at least `expected` routers. Times are in
    seconds.
    """

    def __init__(self, expected: int) -> None:
        self._leases = Leases()
        self._expected = expected
        self._is_over = False
        self._changed = Broadcast()

    @property
    def ids(self) -> frozenset[str]:
        """Who there is."""
        return frozenset(self._leases.reports)

    def heard(self, router: str, report: RouterReport) -> None:
        """A router has said this."""
        if router not in self._leases.reports:
            logger.info("router %s is there", router)
        self._leases.heard(router, report, time.monotonic())
        self._changed.send()

    def left(self, router: str) -> None:
        """A router goes."""
        self._leases.left(router)
        self._changed.send()

    def started(self) -> None:
        """From now on nobody is waited for who is not there."""
        self._expected = 0
        self._changed.send()

    def end(self) -> None:
        """From now on nobody is waited for."""
        self._is_over = True
        self._changed.send()

    async def expire(
        self,
        gone: Callable[[str], None],
        pause: Callable[[float], Awaitable[None]] = asyncio.sleep,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        """Forget, for ever, those who are gone, and say so of each.

        While this process did not run it could hear nobody: then all leases begin anew.
        """
        while True:
            before = now()
            await pause(_LOOK_SECONDS)
            if now() - before > _LOOK_SECONDS + _LATE_SECONDS:
                self._leases.renew(now())
            for router in self._leases.expire(now()):
                logger.warning("router %s is gone", router)
                gone(router)
                self._changed.send()

    async def loaded(self, version: VersionId, deployment: str) -> None:
        """Return when every router can answer for it. Raises what one cannot load it for."""

        def done() -> bool:
            refusal = refusal_of(self._reports(), deployment)
            if refusal is not None:
                raise refusal.error()
            return all_have_loaded(self._reports(), version, deployment, self._expected)

        await self._until(done)

    async def follow(self, number: int) -> None:
        """Return when every router has applied the table of that number."""
        await self._until(lambda: all_follow(self._reports(), number))

    async def dropped(self, version: VersionId, number: int) -> None:
        """Return when no router has anything of a version that the table of that number drops."""
        await self._until(lambda: all_have_dropped(self._reports(), version, number))

    def _reports(self) -> list[RouterReport]:
        return list(self._leases.reports.values())

    async def _until(self, done: Callable[[], bool]) -> None:
        while not (self._is_over or done()):
            await self._changed.wait()
