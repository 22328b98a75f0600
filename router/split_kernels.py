"""Compiled loops that send ids to parts and put partial results together. GIL-free.

Arrays are C-contiguous, ids and segments int64; inputs may be read-only. The signatures are spelled
out so that everything is compiled (or loaded, see `compiled`) at import, never in a request.
"""

from __future__ import annotations

import numba
import numpy as np
from numba import types

from shardserve.router.compiled import compiled

RANGE, MOD, HASH = 0, 1, 2

_i4, _i8 = types.int32, types.int64


def _read(element, ndim=1):
    return types.Array(element, ndim, "C", readonly=True)


def _write(element, ndim=1):
    return types.Array(element, ndim, "C")


@numba.njit(inline="always")
def _owner(row, kind, parts, bounds, multiplier, total):
    """(part, local row) of a table's row, as `shardserve.shards.rows` numbers them."""
    if kind == MOD:
        return row % parts, row // parts
    if kind == HASH:
        place = (row * multiplier) % total
        return place % parts, place // parts
    low, high = 0, parts - 1
    while low < high:
        middle = (low + high) >> 1
        if row < bounds[middle + 1]:
            high = middle
        else:
            low = middle + 1
    return low, row - bounds[low]


@numba.njit(inline="always")
def _place_of(row, rising):
    """The place of a row in an array that rises, or -1."""
    low, high = 0, rising.shape[0]
    while low < high:
        middle = (low + high) >> 1
        if rising[middle] < row:
            low = middle + 1
        else:
            high = middle
    return low if low < rising.shape[0] and rising[low] == row else -1


@numba.njit(inline="always")
def _least(counts, asked):
    """The part with the least rows of those that are asked anyway."""
    best = -1
    for part in range(counts.shape[0]):
        if asked[part] and (best < 0 or counts[part] < counts[best]):
            best = part
    return best


@compiled(_i8(_read(_i8), _i8))
def first_outside(ids, total):
    """The position of the first id not in [0, total), or -1."""
    for i in range(ids.shape[0]):
        if ids[i] < 0 or ids[i] >= total:
            return i
    return -1


@compiled(_i8(_read(_i8)))
def first_descent(segments):
    """The position of the first segment that is negative or below the one before it, or -1."""
    before = 0
    for i in range(segments.shape[0]):
        if segments[i] < before:
            return i
        before = segments[i]
    return -1


_SPLIT = [
    types.void(
        _read(_i8), _read(_i4), _i8, _i8, _read(_i8), _i8, _i8, _read(_i8), _read(_i8), _i8,
        _write(row), _write(_i4), _write(_i8), _write(_i4), _write(_i8), _write(_i4),
    )
    for row in (_i4, _i8)
]  # fmt: skip


@compiled(*_SPLIT)
def split(
    ids, bags, kind, parts, bounds, multiplier, total, hot, hot_at, idle,
    rows, order, starts, bag_out, bag_starts, offsets,
):  # fmt: skip
    """Group ids by part, keeping their order within each, and their runs of equal bags.

    A row of `hot` goes to the part with the least rows so far among those that are asked anyway
    (part `idle` if none is), all of a bag's hot rows to one; hot[j] is row hot_at[part] + j there.

    Reads ids [n], and bags [n] (never falling; empty for a gather). Fills, part after part:
    rows [n] local rows; order [n] each row's position in ids; starts [parts + 1] into both;
    bag_out [<= n] the bag of each run; bag_starts [parts + 1] into it; offsets [<= n + parts] each
    part's runs as offsets into its rows, its own end included.
    """
    n = ids.shape[0]
    pooled = bags.shape[0] == n and n > 0
    owners = np.empty(n, np.int32)
    locals_ = np.empty(n, np.int64)
    counts = np.zeros(parts, np.int64)
    runs = np.zeros(parts, np.int64)
    last = np.full(parts, -1, np.int64)
    copied = 0
    for i in range(n):
        place = _place_of(ids[i], hot)
        if place >= 0:
            owners[i] = -1
            locals_[i] = place
            copied += 1
            continue
        part, local = _owner(np.int64(ids[i]), kind, parts, bounds, multiplier, total)
        owners[i] = part
        locals_[i] = local
        counts[part] += 1
    if copied:
        asked = counts > 0
        if copied == n:
            asked[idle] = True
        chosen = -1
        bag = -1
        for i in range(n):
            if owners[i] >= 0:
                continue
            if chosen < 0 or not pooled or bag != bags[i]:
                chosen = _least(counts, asked)
            if pooled:
                bag = bags[i]
            owners[i] = chosen
            locals_[i] += hot_at[chosen]
            counts[chosen] += 1
    if pooled:
        for i in range(n):
            part = owners[i]
            if last[part] != bags[i]:
                runs[part] += 1
                last[part] = bags[i]
    starts[0] = 0
    bag_starts[0] = 0
    for part in range(parts):
        starts[part + 1] = starts[part] + counts[part]
        bag_starts[part + 1] = bag_starts[part] + runs[part]
        counts[part] = 0
        runs[part] = 0
        last[part] = -1
    for i in range(n):
        part = owners[i]
        at = starts[part] + counts[part]
        rows[at] = locals_[i]
        order[at] = i
        if pooled and last[part] != bags[i]:
            bag_out[bag_starts[part] + runs[part]] = bags[i]
            offsets[bag_starts[part] + part + runs[part]] = counts[part]
            runs[part] += 1
            last[part] = bags[i]
        counts[part] += 1
    if pooled:
        for part in range(parts):
            offsets[bag_starts[part] + part + runs[part]] = counts[part]


_SCATTER_ADD = [
    types.void(_write(real, 2), _read(_i4), _i8, _read(real, 2))
    for real in (types.float32, types.float64)
]


@compiled(*_SCATTER_ADD)
def scatter_add(out, places, column, partial):
    """out[places[i], column:column + width] += partial[i]. `places` are within `out`."""
    for i in range(places.shape[0]):
        place = places[i]
        for c in range(partial.shape[1]):
            out[place, column + c] += partial[i, c]
