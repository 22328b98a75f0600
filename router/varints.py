"""Packed varints, as protobuf writes a repeated integer field, in a compiled loop."""

from __future__ import annotations

import numpy as np
from numba import types

from shardserve.router.compiled import compiled
from shardserve.router.servable import Array

#: Bytes of the longest varint, a negative number's.
_LONGEST = 10


def encode_varints(values: Array) -> bytes:
    """The integers of a flat array, one after the other; negative ones as 64 bits."""
    numbers = np.ascontiguousarray(values, np.int64 if values.dtype.kind == "i" else np.uint64)
    encoded = np.empty(numbers.size * _LONGEST, np.uint8)
    return encoded[: _write(numbers.view(np.uint64), encoded)].tobytes()


def _write_varints(numbers: Array, encoded: Array) -> int:
    end = 0
    for number in numbers:
        rest = number
        while rest > 127:
            encoded[end] = (rest & np.uint64(127)) | np.uint64(128)
            rest >>= np.uint64(7)
            end += 1
        encoded[end] = rest
        end += 1
    return end


_write = compiled(
    types.int64(types.Array(types.uint64, 1, "C", readonly=True), types.Array(types.uint8, 1, "C"))
)(_write_varints)
