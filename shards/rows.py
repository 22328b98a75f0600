"""Sets of a table's rows that one slice holds, and the local numbers they have there.

Every set numbers its rows 0..count-1 without holes, can name the table's row behind each local
number, and costs a few integers however many rows it has. The way back, from ids to (part, local),
is the router's: `shardserve.router.partition`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

IntArray = npt.NDArray[np.int64]

MAX_HASHED_ROWS = 1 << 32


@dataclass(frozen=True)
class RowRange:
    """Rows start, start + 1, ..., stop - 1."""

    start: int
    stop: int

    @property
    def count(self) -> int:
        return self.stop - self.start

    def rows(self, first: int, last: int) -> IntArray:
        """The table's rows behind local numbers [first, last)."""
        return np.arange(self.start + first, self.start + last, dtype=np.int64)

    def at(self, local: IntArray) -> IntArray:
        """The table's rows behind some local numbers."""
        return local + self.start


@dataclass(frozen=True)
class RowMod:
    """Rows r of `total` with r % parts == part. Row r has local number r // parts."""

    part: int
    parts: int
    total: int

    @property
    def count(self) -> int:
        return max(0, -(-(self.total - self.part) // self.parts))

    def rows(self, first: int, last: int) -> IntArray:
        """The table's rows behind local numbers [first, last)."""
        return self.at(np.arange(first, last, dtype=np.int64))

    def at(self, local: IntArray) -> IntArray:
        """The table's rows behind some local numbers."""
        return local * self.parts + self.part


@dataclass(frozen=True)
class RowHash:
    """As `RowMod`, over rows that a multiplicative hash has scattered first.

    Row r is moved to place r * multiplier % total, a bijection since the multiplier and the total
    have no common factor; the place then falls to a part as in `RowMod`. Runs of hot neighbours
    are spread over all parts, and no map of rows has to be kept.
    """

    part: int
    parts: int
    total: int

    @property
    def count(self) -> int:
        return RowMod(self.part, self.parts, self.total).count

    def rows(self, first: int, last: int) -> IntArray:
        """The table's rows behind local numbers [first, last)."""
        return self.at(np.arange(first, last, dtype=np.int64))

    def at(self, local: IntArray) -> IntArray:
        """The table's rows behind some local numbers."""
        places = RowMod(self.part, self.parts, self.total).at(local)
        inverse = pow(hash_multiplier(self.total), -1, self.total) if self.total > 1 else 0
        if self.total <= 1 << 31:
            return places * inverse % self.total
        # The product can pass 63 bits: the inverse may be as large as the total itself.
        high, low = divmod(inverse, 1 << 16)
        return ((places * high % self.total) * (1 << 16) + places * low) % self.total


BaseRows = RowRange | RowMod | RowHash


@dataclass(frozen=True)
class HotRows:
    """The rows of `base`, and after them copies of the rows `hot`, which rise.

    Every slice of a table has the same copies, its own rows among them, so that any of them can
    answer for a hot row.
    """

    base: BaseRows
    hot: tuple[int, ...]

    @property
    def count(self) -> int:
        return self.base.count + len(self.hot)

    def rows(self, first: int, last: int) -> IntArray:
        """The table's rows behind local numbers [first, last)."""
        return self.at(np.arange(first, last, dtype=np.int64))

    def at(self, local: IntArray) -> IntArray:
        """The table's rows behind some local numbers."""
        found = self.base.at(local)
        copies = local >= self.base.count
        found[copies] = np.array(self.hot, np.int64)[local[copies] - self.base.count]
        return found


RowSet = BaseRows | HotRows


def base_of(rows: RowSet) -> BaseRows:
    """The rows without copies of hot ones."""
    return rows.base if isinstance(rows, HotRows) else rows


def owners_of(sets: Sequence[BaseRows], rows: IntArray) -> IntArray:
    """For each of some rows, the place in `sets` of the one that holds it.

    The sets are the parts of one division, in order of their numbers; ranges in any order.
    """
    match sets[0]:
        case RowMod(_, parts, _):
            return rows % parts
        case RowHash(_, parts, total):
            return rows * hash_multiplier(total) % total % parts
        case RowRange():
            starts = np.array([one.start for one in sets if isinstance(one, RowRange)], np.int64)
            order = np.argsort(starts)
            return order[np.searchsorted(starts[order], rows, side="right") - 1]


def hash_multiplier(total: int) -> int:
    """The multiplier that `RowHash` uses for a table of `total` rows: a function of `total` alone.

    Near total / golden ratio (Knuth, TAOCP 3, 6.4), the nearest below that has no factor in common
    with `total`, and under 2**31, so that an id of up to 2**32 times it fits 63 bits.
    """
    candidate = min(int(total * 0.6180339887498949), (1 << 31) - 1)
    while candidate > 1 and math.gcd(candidate, total) != 1:
        candidate -= 1
    return max(candidate, 1)
