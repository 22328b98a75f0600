"""Whether a request that comes now would be answered in time, by how others fared. Pure.

A request walks through several queues, and what is spent on one that ends too late is taken from
those that could have ended in time: past its capacity a server that refuses nobody answers nobody.
So requests are refused before anything is done for them, by how many are under way: a number that
is found by additive increase and multiplicative decrease, as TCP finds its window (V. Jacobson,
"Congestion avoidance and control", SIGCOMM 1988). That is one number for all queues and all devices
on the way, whatever holds requests up, and it finds back by itself from whatever it learnt.
"""

from __future__ import annotations

import math
from collections.abc import Hashable
from dataclasses import dataclass

from shardserve.batching.errors import Unavailable

#: A request that takes more of its time than this is nearly late: some like it will be.
MARGIN = 0.7
#: How many more may be under way for each that was answered well, and what is left of that number
#: when one was not: once for all that began before it became known. Small steps: the number goes up
#: and down around what is right by less than a tenth, so few of those admitted are late.
_MORE, _FEWER = 0.03, 0.9
#: What began while less than this part of what may be was under way says nothing of that bound.
_BINDING = 0.5


@dataclass(slots=True)
class _Bound:
    """Of requests under way, for each second of the time that a request has left.

    It was lowered last at `lowered`. Infinite until something was nearly late.
    """

    per_second: float = math.inf
    lowered: float = -math.inf

    def observe(self, in_flight: int, started: float, deadline: float, now: float) -> None:
        allowed = max(deadline - started, 1e-9)
        in_time = now - started <= MARGIN * allowed
        if self.per_second == math.inf:
            if not in_time:
                self._lower_to(_FEWER * in_flight / allowed, now)
        elif in_flight >= _BINDING * self.per_second * allowed:
            if in_time:
                self.per_second += _MORE / allowed
            elif started >= self.lowered:
                self._lower_to(_FEWER * self.per_second, now)

    def _lower_to(self, per_second: float, now: float) -> None:
        self.per_second = per_second
        self.lowered = now


class Admission:
    """The requests under way to one model, and how many may be, by their kinds."""

    def __init__(self) -> None:
        self._bounds: dict[Hashable, _Bound] = {}
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
        if not self._in_flight or not self._bounds:
            return
        left = max(deadline - now, 1e-9)
        may_be = self._bound(kind) * left
        if self._in_flight + 1 > may_be:
            self.refused += 1
            raise Unavailable(
                f"The server is overloaded: {self._in_flight} requests are under way, and for one "
                f"whose deadline is in {left:.3f} s to be answered only {may_be:.0f} may be"
            )

    def begin(self) -> int:
        """A request begins; how many are under way with it."""
        self._in_flight += 1
        return self._in_flight

    def end(self) -> None:
        """A request has ended, one way or another."""
        self._in_flight -= 1

    def observe(
        self, in_flight: int, started: float, deadline: float, now: float, kind: Hashable = None
    ) -> None:
        """A request of this kind that began as one of so many has ended, in time or not.

        `deadline` is finite.
        """
        bound = self._bounds.get(kind)
        if bound is None:
            bound = self._bounds[kind] = _Bound()
        bound.observe(in_flight, started, deadline, now)

    def _bound(self, kind: Hashable) -> float:
        found = self._bounds.get(kind)
        if found is not None:
            return found.per_second
        return max([bound.per_second for bound in self._bounds.values()])
