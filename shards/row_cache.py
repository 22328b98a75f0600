"""Hot rows of one slice, kept in memory within a budget."""

from __future__ import annotations

import threading
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from shardserve.shards import memory

Array = npt.NDArray[Any]

#: A place's tag and its heat, beside its row.
_PLACE_BYTES = 9
_MAX_HEAT = 255


@dataclass(frozen=True)
class CacheCounts:
    """Rows that were asked for and found in a cache, and those that were not."""

    hits: int = 0
    misses: int = 0

    def __add__(self, other: CacheCounts) -> CacheCounts:
        return CacheCounts(self.hits + other.hits, self.misses + other.misses)


class RowCache:
    """At most `nbytes` of rows of `row_bytes`, by row number. Safe for many threads at once.

    Row r has one place, r modulo their number. A place warms up when its row is asked for and
    cools down when another one is; it changes hands when it is cold. So rows that are asked for
    once do not drive out those that are asked for often, and all of it goes by whole arrays.
    """

    def __init__(self, nbytes: int, row_bytes: int) -> None:
        self._places = max(0, nbytes) // (row_bytes + _PLACE_BYTES)
        self._held = memory.empty((self._places, row_bytes), np.uint8)
        self._tags = np.full(self._places, -1, np.int64)
        self._heat = np.zeros(self._places, np.uint8)
        self._lock = threading.Lock()
        self._counts = CacheCounts()
        self._taken = 0

    @property
    def counts(self) -> CacheCounts:
        """What came of all rows that were ever asked for."""
        return self._counts

    @property
    def held_bytes(self) -> int:
        """Bytes of the rows that are here now."""
        return self._taken * int(self._held.shape[1])

    def take(self, rows: Array, out: Array) -> Array:
        """Copy the rows that are here to their places in `out`, uint8 [n, row_bytes].

        `rows` is int64 [n]. Returns the places of those that are not here, rising.
        """
        if not self._places:
            return self._counted(np.arange(len(rows)), len(rows))
        places = rows % self._places
        with self._lock:
            is_here = self._tags[places] == rows
            found, missing = np.flatnonzero(is_here), np.flatnonzero(~is_here)
            out[found] = self._held[places[found]]
            warm, cool = places[found], places[missing]
            self._heat[warm] += self._heat[warm] < _MAX_HEAT
            self._heat[cool] -= self._heat[cool] > 0
            return self._counted(missing, len(rows))

    def put(self, rows: Array, values: Array) -> None:
        """Keep those of the rows, uint8 [n, row_bytes], whose places are cold."""
        if not self._places:
            return
        places = rows % self._places
        with self._lock:
            cold = np.flatnonzero(self._heat[places] == 0)
            chosen, first = np.unique(places[cold], return_index=True)
            self._taken += int((self._tags[chosen] < 0).sum())
            self._tags[chosen] = rows[cold[first]]
            self._held[chosen] = values[cold[first]]
            self._heat[chosen] = 1

    def _counted(self, missing: Array, asked: int) -> Array:
        self._counts += CacheCounts(asked - len(missing), len(missing))
        return missing
