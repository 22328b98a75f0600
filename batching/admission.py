"""Whether a request that comes now would be answered in time, by how others fared. Pure.

A request walks through several queues, and what is spent on one that ends too late is taken from
those that could have ended in time: past its capacity a server that refuses nobody answers nobody.
So requests are refused before anything is done for them. What to expect is measured: how long
requests took that found as many before them as there are now. That is one number for all queues
and all devices on the way, whatever holds requests up.
"""

from __future__ import annotations

from collections.abc import Hashable

from shardserve.batching.errors import Unavailable
from shardserve.batching.pace import Pace

#: Of the time left, what a request may be expected to take: one in two takes longer.
MARGIN = 0.7


class Admission:
    """The requests under way to one model, and how long those of each kind take."""

    def __init__(self, margin: float = MARGIN) -> None:
        self._margin = margin
        self._paces: dict[Hashable, Pace] = {}
        self._in_flight = 0
        self.refused = 0

    @property
    def in_flight(self) -> int:
        """Requests that have begun and not ended."""
        return self._in_flight

    def check(self, deadline: float, now: float, kind: Hashable = None) -> None:
        """Raises Unavailable for a request that is not expected to end by its deadline.

        Without a `kind` only if none of any kind is. While nothing is under way everything may
        begin, so that what is known stays true.
        """
        if not self._in_flight or not self._paces:
            return
        expected = self._expected(kind, now)
        if expected > self._margin * (deadline - now):
            self.refused += 1
            raise Unavailable(
                f"The server is overloaded: the request is expected to take {expected:.3f} s, and "
                f"its deadline is in {deadline - now:.3f} s"
            )

    def begin(self) -> int:
        """A request begins; how many are under way with it."""
        self._in_flight += 1
        return self._in_flight

    def end(self) -> None:
        """A request has ended, one way or another."""
        self._in_flight -= 1

    def observe(self, in_flight: int, seconds: float, now: float, kind: Hashable = None) -> None:
        """A request of this kind, that began as one of so many, has taken so long."""
        pace = self._paces.get(kind)
        if pace is None:
            pace = self._paces[kind] = Pace()
        pace.observe(in_flight, seconds, now)

    def _expected(self, kind: Hashable, now: float) -> float:
        """Seconds; 0 if that is not known.

        More under way than ever were count as so many: whether that is too many is to be found out.
        """
        known = [self._paces[kind]] if kind in self._paces else self._paces.values()
        more = self._in_flight + 1
        return min([pace.seconds(min(more, pace.most_rows), now) for pace in known])
