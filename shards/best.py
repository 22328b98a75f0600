"""The k best of many scores: picked chunk by chunk, carried over the wire, merged. Pure.

The order is TensorFlow's: the higher score first, of equal ones the lower index. NaN counts as
minus infinity. Values are float32 or float64, indices int64.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]

#: Candidates that are kept, for all queries together, before they are sorted in.
PENDING = 1 << 13
#: Scores that are compared in one run.
TILE = 1 << 10


@dataclass(frozen=True)
class Totals:
    """What a softmax over all scores of a query needs: `peaks` [n], the highest score, and `sums`
    [n], float64, of exp(score - peak)."""

    peaks: Array
    sums: Array

    @classmethod
    def of(cls, scores: Array) -> Totals:
        """Of scores [classes, n], at least one class."""
        peaks = scores.max(axis=0)
        with np.errstate(invalid="ignore"):
            sums = np.exp(scores - peaks).sum(axis=0, dtype=np.float64)
        return cls(peaks, sums)

    @classmethod
    def merged(cls, parts: Sequence[Totals]) -> Totals:
        """Over the classes of all parts."""
        if len(parts) == 1:
            return parts[0]
        tops = np.stack([part.peaks for part in parts])
        peaks = tops.max(axis=0)
        with np.errstate(invalid="ignore"):
            scales = np.exp((tops - peaks).astype(np.float64))
        return cls(peaks, sum(part.sums * s for part, s in zip(parts, scales, strict=True)))


@dataclass(frozen=True)
class Best:
    """The best scores of n queries: `values` and `indices` [n, k], best first; totals if asked."""

    values: Array
    indices: Array
    totals: Totals | None = None

    def pack(self) -> Array:
        """One array [n, columns] of the values' dtype, for the wire.

        The values, the indices as integers of the same width, then peak and sum.
        """
        integers = _integers(self.values.dtype)
        columns = [self.values, self.indices.astype(integers).view(self.values.dtype)]
        if self.totals is not None:
            columns += [self.totals.peaks[:, None], self.totals.sums[:, None]]
        return np.concatenate(columns, axis=1, dtype=self.values.dtype)


def unpack(packed: Array, count: int, k: int, *, totals: bool) -> Best:
    """The k best of a slice with `count` classes, as `Best.pack` has packed them.

    Raises ValueError for what is no such array.
    """
    extra = 2 if totals else 0
    if packed.ndim != 2 or packed.shape[1] != 2 * k + extra or packed.dtype.kind != "f":
        raise ValueError(f"not the {k} best scores: {packed.dtype} {list(packed.shape)}")
    values = packed[:, :k]
    integers = np.ascontiguousarray(packed[:, k : 2 * k]).view(_integers(packed.dtype))
    if integers.size and not 0 <= integers.min() <= integers.max() < count:
        raise ValueError(f"a class that is not in [0, {count})")
    found = Totals(packed[:, -2], packed[:, -1].astype(np.float64)) if totals else None
    return Best(values, integers.astype(np.int64), found)


def merged(parts: Sequence[Best], k: int) -> Best:
    """The k best of all parts, whose indices count over all parts and are all different."""
    values = np.concatenate([part.values for part in parts], axis=1)
    indices = np.concatenate([part.indices for part in parts], axis=1)
    totals = [part.totals for part in parts if part.totals is not None]
    values, indices = in_order(values, indices, k)
    return Best(values, indices, Totals.merged(totals) if totals else None)


def in_order(values: Array, indices: Array, k: int) -> tuple[Array, Array]:
    """Values and indices [n, any], best first, the first k of them."""
    order = np.lexsort((indices, -_ranked(values)), axis=-1)[:, :k]
    return np.take_along_axis(values, order, axis=1), np.take_along_axis(indices, order, axis=1)


class Picker:
    """Picks the k best of each query from scores that come in chunks, by rising index.

    Scores are [classes, n], contiguous: the product of that form is the faster one.
    """

    def __init__(self, k: int) -> None:
        self._k = k
        self._values: Array | None = None
        self._indices: Array
        self._floors: Array
        self._wanted: Array
        # Places among all scores, [classes, n] flat, and the scores there.
        self._pending: list[tuple[Array, Array]] = []
        self._count = 0

    def add(self, scores: Array, start: int) -> None:
        """Scores of the classes from `start` on. The first chunk is the longest, of at least k."""
        n = scores.shape[1]
        if self._values is None:
            self._wanted = (scores >= self._kth(scores)) | np.isnan(scores)
            found = _places(self._wanted)
            self._pending.append((found + start * n, scores.reshape(-1)[found]))
            self._sort_in(n)
            return
        wanted = self._above(scores)
        found = _places(wanted)
        if len(scores) > self._k and len(found) > 4 * n * self._k:
            found = _places(wanted & (scores >= self._kth(scores)))
        if len(found):
            self._pending.append((found + start * n, scores.reshape(-1)[found]))
            self._count += len(found)
        if self._count > max(PENDING, n * self._k):
            self._sort_in(n)

    def best(self) -> tuple[Array, Array]:
        """Values and indices [n, k] of all that was added, which is at least one chunk."""
        assert self._values is not None
        if self._count:
            self._sort_in(len(self._values))
        return self._values, self._indices

    def _kth(self, scores: Array) -> Array:
        """The k-th best of each query, counting equal ones."""
        at = len(scores) - self._k
        kth: Array = np.partition(_ranked(scores), at, axis=0)[at]
        return kth

    def _above(self, scores: Array) -> Array:
        """Which scores are above the k-th best. Equal ones are not: they have a higher index."""
        wanted = self._wanted[: len(scores)]
        rows = len(self._floors) // scores.shape[1]
        whole = len(scores) // rows * rows
        wide = (-1, len(self._floors))
        np.greater(scores[:whole].reshape(wide), self._floors, out=wanted[:whole].reshape(wide))
        rest = self._floors[: scores.shape[1]]
        np.greater(scores[whole:], rest, out=wanted[whole:])
        return wanted

    def _sort_in(self, n: int) -> None:
        """Sort what is pending, all of it of higher indices, in behind what stands."""
        pending = self._pending
        if self._values is not None:
            standing = self._indices * n + np.arange(n)[:, None]
            pending = [(standing.reshape(-1), self._values.reshape(-1)), *pending]
        places, values = (np.concatenate(column) for column in zip(*pending, strict=True))
        ranked = _ranked(values)
        # Equal scores of one query are in the order of their indices already, and stay so.
        order = np.argsort(-ranked, kind="stable")
        # Integers of 16 bits are sorted in linear time.
        queries = (places % n).astype(np.uint16 if n <= 1 << 16 else np.int64)[order]
        by_query = np.argsort(queries, kind="stable")
        firsts = np.searchsorted(queries[by_query], np.arange(n, dtype=queries.dtype))
        chosen = order[by_query[firsts[:, None] + np.arange(self._k)]]
        self._values, self._indices = values[chosen], places[chosen] // n
        # Compared a row at a time, a few queries would cost more than their scores.
        self._floors = np.tile(ranked[chosen[:, -1]], max(1, TILE // n))
        self._pending, self._count = [], 0


def _places(wanted: Array) -> Array:
    """As `numpy.flatnonzero`, of contiguous bools; a fifth of its time where few are true."""
    flat = wanted.reshape(-1)
    if flat.size % 8:
        return np.flatnonzero(flat)
    eights = np.flatnonzero(flat.view(np.uint64) != 0)
    at, which = np.nonzero(flat.reshape(-1, 8)[eights])
    places: Array = eights[at] * 8 + which
    return places


def _ranked(values: Array) -> Array:
    """The values as they are compared."""
    absent = np.isnan(values)
    return np.where(absent, values.dtype.type(-np.inf), values) if absent.any() else values


def _integers(dtype: np.dtype[Any]) -> np.dtype[Any]:
    return np.dtype(np.int32 if dtype.itemsize == 4 else np.int64)
