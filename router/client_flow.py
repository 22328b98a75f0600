"""What one client sends and is sent, kept in bounds."""

from __future__ import annotations

import asyncio
from collections.abc import Sized

from uvicorn.protocols.http.flow_control import FlowControl


class Flow(FlowControl):
    """Reads on when no request waits behind another.

    Each reply would let in as many more as come in one read, and who sends without end would have
    all of them kept.
    """

    def __init__(self, transport: asyncio.Transport, waiting: Sized) -> None:
        super().__init__(transport)
        self._waiting = waiting

    def resume_reading(self) -> None:
        if not self._waiting:
            super().resume_reading()


class Unread:
    """Once it watches, aborts a connection whose client takes nothing for `seconds`."""

    def __init__(self, transport: asyncio.Transport, seconds: float) -> None:
        self._transport = transport
        self._seconds = seconds
        self._timer: asyncio.TimerHandle | None = None
        self._bytes = 0

    def watch(self) -> None:
        """Something waits to be sent."""
        if self._timer is None:
            self._begin()

    def end(self) -> None:
        """All is sent, or nobody is there."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _begin(self) -> None:
        self._bytes = self._transport.get_write_buffer_size()
        self._timer = asyncio.get_running_loop().call_later(self._seconds, self._look)

    def _look(self) -> None:
        if self._transport.get_write_buffer_size() < self._bytes:
            self._begin()
        else:
            self._timer = None
            self._transport.abort()
