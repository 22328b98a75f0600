"""The two timers of a connection: one for all its deadlines, one that finds a dead peer."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Callable
from typing import Final

from shardserve.shards.keepalive import Beat, Keepalive
from shardserve.shards.outbox import Outbox
from shardserve.shards.wire import PING

#: Timers may fire early by as much; a shorter one would fire again and again until it is time.
_TICK_SECONDS: Final = 1e-3


class Alarm:
    """One timer for many deadlines, which costs nothing for most: it rings at the earliest.

    After it has rung, it has to be told of the next deadline.
    """

    def __init__(self, ring: Callable[[], None]) -> None:
        #: When it will ring, on `time.monotonic`; infinity when it will not.
        self.when = math.inf
        self._ring = ring
        self._timer: asyncio.TimerHandle | None = None

    def no_later_than(self, when: float) -> None:
        """Ring at `when`, unless it will ring before."""
        if when < self.when:
            self.cancel()
            self.when = when
            delay = max(when - time.monotonic(), _TICK_SECONDS)
            self._timer = asyncio.get_running_loop().call_later(delay, self._fire)

    def cancel(self) -> None:
        """Do not ring."""
        if self._timer is not None:
            self._timer.cancel()
        self._timer, self.when = None, math.inf

    def _fire(self) -> None:
        self._timer, self.when = None, math.inf
        self._ring()


class Pulse:
    """Pings a silent peer every `seconds`, and calls `give_up` when that does not help."""

    def __init__(self, seconds: float, give_up: Callable[[], None]) -> None:
        self.keepalive = Keepalive()
        self._seconds = seconds
        self._give_up = give_up
        self._timer: asyncio.TimerHandle | None = None

    def start(self, transport: asyncio.Transport, outbox: Outbox) -> None:
        """Watch over the connection from now on."""
        self._transport = transport
        self._outbox = outbox
        self._rest()

    def stop(self) -> None:
        """The connection is no more."""
        if self._timer is not None:
            self._timer.cancel()

    def _rest(self) -> None:
        self._due = time.monotonic() + self._seconds
        self._timer = asyncio.get_running_loop().call_later(self._seconds, self._beat)

    def _beat(self) -> None:
        late = time.monotonic() > self._due + self._seconds / 2
        beat = self.keepalive.beat(self._transport.get_write_buffer_size(), late=late)
        if beat is Beat.GIVE_UP:
            self._give_up()
            return
        if beat is Beat.PING:
            self._outbox.put(PING)
            self._outbox.flush()
        self._rest()
