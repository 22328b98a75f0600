"""How often values of each magnitude came: counted by bounds, added up, and nothing else kept."""

from __future__ import annotations

import bisect
from array import array
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

#: Values that are kept as they came before they are sorted by the bounds, all at once.
_KEPT = 1024


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
    """Values by `bounds`, in ascending order. Belongs to one thread."""

    __slots__ = ("_bounds", "_counts", "_kept", "_total")

    def __init__(self, bounds: tuple[float, ...]) -> None:
        self._bounds = bounds
        self._counts = [0] * (len(bounds) + 1)
        self._total = 0.0
        self._kept = array("d")

    def add(self, value: float) -> None:
        """One value more."""
        self._counts[bisect.bisect_left(self._bounds, value)] += 1
        self._total += value

    def add_times(self, value: float, times: int) -> None:
        """One value, so many times."""
        self._counts[bisect.bisect_left(self._bounds, value)] += times
        self._total += value * times

    def extend(self, values: Iterable[float]) -> None:
        """Many at once: a quarter of the time for each that `add` takes."""
        self._kept.extend(values)
        if len(self._kept) >= _KEPT:
            self._sort()

    def distribution(self) -> Distribution:
        """All values so far."""
        self._sort()
        return Distribution(tuple(self._counts), self._total)

    def _sort(self) -> None:
        kept = np.frombuffer(self._kept)
        self._kept = array("d")
        places = np.searchsorted(self._bounds, kept, side="left")
        found = np.bincount(places, minlength=len(self._counts))
        self._counts = [a + b for a, b in zip(self._counts, found.tolist(), strict=True)]
        self._total += float(kept.sum())
