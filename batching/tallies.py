"""How often values of each magnitude came: counted by bounds, added up, and nothing else kept."""

from __future__ import annotations

import bisect
from dataclasses import dataclass


def exponential(scale: float, growth: float, count: int) -> tuple[float, ...]:
    """So many upper bounds, each `growth` times the one before it, the first `scale`."""
    return tuple(scale * growth**power for power in range(count))


@dataclass(frozen=True, slots=True)
class Distribution:
    """`counts` has the values up to each of some bounds, above the one before, and those above all.

    `total` is their sum.
    """

    counts: tuple[int, ...]
    total: float

    @property
    def count(self) -> int:
        """How many values there were."""
        return sum(self.counts)

    def __add__(self, other: Distribution) -> Distribution:
        """Of both's values. The bounds must be the same."""
        counts = tuple(a + b for a, b in zip(self.counts, other.counts, strict=True))
        return Distribution(counts, self.total + other.total)


class Tally:
    """Values by `bounds`, in ascending order; `total` is their sum. Belongs to one thread."""

    __slots__ = ("_bounds", "_counts", "total")

    def __init__(self, bounds: tuple[float, ...]) -> None:
        self._bounds = bounds
        self._counts = [0] * (len(bounds) + 1)
        self.total = 0.0

    def add(self, value: float, times: int = 1) -> None:
        """One value, so many times."""
        self._counts[bisect.bisect_left(self._bounds, value)] += times
        self.total += value * times

    def extend(self, values: list[float]) -> None:
        """Many at once, which it sorts; little for each of those that come sorted, or reversed."""
        values.sort()
        bounds, counts = self._bounds, self._counts
        start, end = 0, len(values)
        while start < end:
            place = bisect.bisect_left(bounds, values[start])
            above = place == len(bounds)
            after = end if above else bisect.bisect_right(values, bounds[place], start)
            counts[place] += after - start
            start = after
        self.total += sum(values)

    def distribution(self) -> Distribution:
        """All values so far."""
        return Distribution(tuple(self._counts), self.total)
