"""How fast a stage runs its batches, and how many a device should have in flight."""

from __future__ import annotations

import bisect
import math
from dataclasses import dataclass, field

#: Seconds after which a measurement says nothing any more.
MAX_AGE = 10.0

#: A measurement counts for this much of the mean, once there are enough; one that is less than half
#: of the mean, as after a slow start, for more.
_WEIGHT, _WEIGHT_OF_FASTER = 1 / 8, 1 / 2
#: One that is more than so many times the mean counts as so many.
_OUTLIER = 4
#: What the least of the measurements grows by with each, so that it is forgotten some day.
_FORGETTING = 1.0005


@dataclass(slots=True)
class _Point:
    """The mean of measurements at about as many rows, and about the least of them."""

    rows: float
    seconds: float
    measured: float
    least: float
    count: int = 1

    def add(self, rows: int, seconds: float, now: float) -> None:
        self.count += 1
        faster = seconds < self.seconds / 2
        weight = max(1 / self.count, _WEIGHT_OF_FASTER if faster else _WEIGHT)
        self.rows += weight * (rows - self.rows)
        self.seconds += weight * (min(seconds, _OUTLIER * self.seconds) - self.seconds)
        self.least = min(seconds, self.least * _FORGETTING)
        self.measured = now


class Pace:
    """The seconds that a batch of so many rows takes: means by powers of two, that follow changes.

    Between two means it is linear; below the smallest it is that one's, above the largest it grows
    as the rows do. So it holds for steps (padding) and for costs that do not follow a line.
    """

    def __init__(self) -> None:
        self._points: dict[int, _Point] = {}
        self._known: list[_Point] = []
        self._latest = -math.inf

    def observe(self, rows: int, seconds: float, now: float) -> float:
        """A batch of `rows` took `seconds`. Returns the least that about as many took lately."""
        bucket = max(rows - 1, 0).bit_length()
        self._latest = now
        point = self._points.get(bucket)
        if point is None:
            point = self._points[bucket] = _Point(rows, seconds, now, seconds)
        else:
            point.add(rows, seconds, now)
        if len(self._known) != len(self._points) or now - self._oldest() > MAX_AGE:
            self._forget(now - MAX_AGE)
        return point.least

    @property
    def most_rows(self) -> float:
        """About the most rows of which something is known; 0 if nothing is."""
        return self._known[-1].rows if self._known else 0.0

    def seconds(self, rows: float, now: float) -> float:
        """What a batch of `rows` is expected to take, 0 if that is not known."""
        if now - self._latest > MAX_AGE:
            return 0.0
        known = self._known
        place = bisect.bisect_left(known, float(rows), key=_rows)
        if place == len(known):
            return known[-1].seconds * rows / max(known[-1].rows, 1.0)
        if place == 0:
            return known[0].seconds
        low, high = known[place - 1], known[place]
        share = (rows - low.rows) / (high.rows - low.rows)
        return low.seconds + share * (high.seconds - low.seconds)

    def _oldest(self) -> float:
        return min([point.measured for point in self._known])

    def _forget(self, before: float) -> None:
        self._points = {b: p for b, p in self._points.items() if p.measured >= before}
        self._known = [self._points[bucket] for bucket in sorted(self._points)]


def _rows(point: _Point) -> float:
    return point.rows


#: Another batch in flight has to add this much to what the device does in a second.
_WORTH = 1.05
#: Batches from which the work at one limit is judged.
_JUDGED = 16
#: Judgements after which what is known of the limits beside is too old.
_STALE = 64


@dataclass(slots=True)
class InFlight:
    """How many batches a device should have in flight: as few as keep it busy.

    It is `least` to begin with. While all places are taken, one more is tried; if the device does
    no more work in a second than before, that is taken back, and tried again after a wait that
    doubles each time. Work counts as the least that such batches took lately, whatever their
    stages and sizes. Now and then one less is tried, for the device may have changed.
    """

    least: int
    most: int
    limit: int = field(init=False)
    _rates: dict[int, float] = field(default_factory=dict, init=False)
    _work: float = field(default=0.0, init=False)
    _seconds: float = field(default=0.0, init=False)
    _batches: int = field(default=0, init=False)
    _wait: int = field(default=0, init=False)
    _patience: int = field(default=1, init=False)
    _stayed: int = field(default=0, init=False)

    def __post_init__(self) -> None:
        self.limit = self.least

    def observe(self, work: float, seconds: float, in_flight: int) -> None:
        """A batch that can take `work` seconds took `seconds` beside others, `in_flight` in all."""
        if self.least == self.most or in_flight < self.limit:
            return
        self._work += work
        self._seconds += seconds
        self._batches += 1
        if self._batches == _JUDGED:
            rate = self.limit * self._work / max(self._seconds, 1e-9)
            self._work = self._seconds = 0.0
            self._batches = 0
            self._judge(rate)

    def _judge(self, rate: float) -> None:
        self._rates[self.limit] = rate
        self._stayed += 1
        fewer = self._rates.get(self.limit - 1)
        if fewer is not None and rate < fewer * _WORTH:
            self._wait, self._patience = self._patience, min(2 * self._patience, _STALE)
            self._move(-1)
        elif self._wait:
            self._wait -= 1
        elif self.limit < self.most:
            self._move(+1)
        elif self._stayed >= _STALE:
            self._move(-1)

    def _move(self, step: int) -> None:
        if self.least <= self.limit + step:
            self.limit += step
        self._stayed = 0
