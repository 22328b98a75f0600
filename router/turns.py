"""A bound on what is done at the same time."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator

from shardserve.batching.errors import DeadlineExceeded


class Turns:
    """Of those who ask for one, `most` have a turn; others wait, first come, first served."""

    def __init__(self, most: int) -> None:
        self._free = asyncio.Semaphore(most)

    @contextlib.asynccontextmanager
    async def taken(self, deadline: float) -> AsyncIterator[None]:
        """Have a turn. Raises DeadlineExceeded if there is none before `deadline` (monotonic)."""
        try:
            async with asyncio.timeout(deadline - time.monotonic()):
                await self._free.acquire()
        except TimeoutError:
            raise DeadlineExceeded("Timed out waiting for requests that came before") from None
        try:
            yield
        finally:
            self._free.release()
