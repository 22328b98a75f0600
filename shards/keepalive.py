"""Whether the other end is still there, decided from one look at each beat of a clock. Pure."""

from __future__ import annotations

import enum


class Beat(enum.Enum):
    """What to do at a beat."""

    REST = enum.auto()
    PING = enum.auto()
    GIVE_UP = enum.auto()


class Keepalive:
    """After one silent interval, ping; after a second, give up.

    Silence is nothing received, and nothing taken off our hands either: a peer that is busy
    receiving a long frame is alive. An interval whose end we noticed late says nothing: what the
    peer sent meanwhile may lie there unread.
    """

    def __init__(self) -> None:
        #: Set it when anything is received.
        self.heard = False
        self._pinged = False
        self._unsent = 0

    def beat(self, unsent: int, *, late: bool) -> Beat:
        """The decision for the interval that ends now; `unsent` is the bytes waiting to be sent."""
        alive = self.heard or unsent < self._unsent
        self.heard, self._unsent = False, unsent
        if late and not alive:
            return Beat.REST
        if alive:
            self._pinged = False
            return Beat.REST
        if self._pinged:
            return Beat.GIVE_UP
        self._pinged = True
        return Beat.PING
