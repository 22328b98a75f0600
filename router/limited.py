"""REST with a bound on what is answered at the same time."""

from __future__ import annotations

import asyncio
from typing import Protocol

from shardserve.router.rest import RequestHeaders, Response


class Answers(Protocol):
    """What an HTTP server needs of `router.rest.Rest`."""

    async def handle(
        self, method: str, path: str, headers: RequestHeaders, body: bytes
    ) -> Response: ...

    def refusal(self, method: str, path: str, headers: RequestHeaders) -> Response | None: ...

    def refused(self, status: int, message: str) -> Response: ...


class LimitedRest:
    """Answers `most` requests at a time; others wait, first come, first served.

    What a request waits here is not part of the time that it may take.
    """

    def __init__(self, rest: Answers, most: int) -> None:
        self._rest = rest
        self._turns = asyncio.Semaphore(most)

    async def handle(
        self, method: str, path: str, headers: RequestHeaders, body: bytes
    ) -> Response:
        async with self._turns:
            return await self._rest.handle(method, path, headers, body)

    def refusal(self, method: str, path: str, headers: RequestHeaders) -> Response | None:
        """As `Rest.refusal`: what is refused takes no turn."""
        return self._rest.refusal(method, path, headers)

    def refused(self, status: int, message: str) -> Response:
        return self._rest.refused(status, message)
