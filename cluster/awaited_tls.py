"""The doors' certificates as a controller has them: its driver has read them, and says them."""

from __future__ import annotations

import asyncio

from shardserve.cluster.options import Application
from shardserve.router.tls import Tls


class AwaitedTls:
    """Known from the start where doors are in the clear. Belongs to the running event loop."""

    def __init__(self, application: Application | None) -> None:
        self._tls: Tls | None = None
        self._is_known = asyncio.Event()
        if application is None or application.doors.tls_file is None:
            self._is_known.set()

    def say(self, tls: Tls) -> None:
        """It is this from now on."""
        self._tls = tls
        self._is_known.set()

    async def latest(self) -> Tls | None:
        """What it is, once it is known; None for doors in the clear."""
        await self._is_known.wait()
        return self._tls
