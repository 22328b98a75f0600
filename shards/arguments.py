"""What lookups are asked with: row numbers, offsets and weights, checked."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from shardserve.batching.errors import InvalidArgument

Array = npt.NDArray[Any]

_WIDE = {np.dtype(np.int32): False, np.dtype(np.int64): True}


def integers(array: Array, what: str) -> tuple[Array, bool]:
    """The array, contiguous, and whether it is int64 rather than int32.

    Raises InvalidArgument, naming `what` it is, where it is neither or not of one dimension.
    """
    wide = _WIDE.get(array.dtype)
    if wide is None or array.ndim != 1:
        raise InvalidArgument(
            f"{what} must be int32 or int64 [n], not {array.dtype.name} {list(array.shape)}"
        )
    return plain(array), wide


def plain(array: Array) -> Array:
    """The array, or a contiguous copy of it."""
    return array if array.flags.c_contiguous else np.ascontiguousarray(array)


def checked_rows(rows: Array, count: int) -> Array:
    """Row numbers as int64. Raises InvalidArgument naming the first outside [0, count)."""
    rows, wide = integers(rows, "row numbers")
    inside = (rows >= 0) & (rows < count)
    if not inside.all():
        raise outside(rows, int(np.argmin(inside)), count)
    return rows if wide else rows.astype(np.int64)


def checked_offsets(offsets: Array, n: int) -> Array:
    """Offsets as int64 [bags + 1]. Raises InvalidArgument unless they rise from 0 to n."""
    offsets = wide_offsets(offsets, n)
    if offsets[0] != 0 or offsets[-1] != n or (np.diff(offsets) < 0).any():
        raise bad_offsets(n)
    return offsets


def wide_offsets(offsets: Array, n: int) -> Array:
    """Offsets as int64 [bags + 1], what is in them unchecked."""
    offsets, wide = integers(offsets, "offsets")
    if not len(offsets):
        raise bad_offsets(n)
    return offsets if wide else offsets.astype(np.int64)


def checked_weights(weights: Array | None, n: int, dtype: npt.DTypeLike) -> Array | None:
    """Weights, contiguous. Raises InvalidArgument unless they are of the dtype, [n]."""
    if weights is None:
        return None
    dtype = np.dtype(dtype)
    if weights.shape != (n,) or weights.dtype != dtype:
        raise InvalidArgument(
            f"weights must be {dtype.name} [{n}], not {weights.dtype.name} {list(weights.shape)}"
        )
    return plain(weights)


def outside(rows: Array, place: int, count: int) -> InvalidArgument:
    """The error for a row number that is not in [0, count)."""
    return InvalidArgument(f"rows[{place}] = {rows[place]} is not in [0, {count})")


def bad_offsets(n: int) -> InvalidArgument:
    """The error for offsets that do not rise from 0 to n."""
    return InvalidArgument(f"offsets must rise from 0 to the number of rows, {n}")
