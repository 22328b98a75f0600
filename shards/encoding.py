"""From rows of float32 to the bytes that they are kept as at another precision. Pure.

`docs/layouts.md` has the bounds of the error. `row_forms.py` reads what is written here.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from shardserve.shards.storage import SCALE_BYTES, Precision, coded_row_bytes

Array = npt.NDArray[Any]
Encoded = tuple[Array, Array]

#: The largest codes: those of a row's largest element. Symmetric, so that zero is exact.
_PEAK_CODES = {Precision.INT8: 127, Precision.INT4: 7}
#: A scale below this would have lost digits of its own.
_LEAST_SCALE = np.finfo(np.float32).tiny


def encode(precision: Precision, rows: Array) -> Encoded:
    """The rows' bytes, uint8 [n, coded_row_bytes], and whether each row can be kept so, bool [n].

    `rows` is float32 [n, columns]. A row with finite elements that are too large for the precision
    cannot be kept, nor, where it has a scale, one with infinity or NaN; its bytes mean nothing.
    """
    return _ENCODE[precision](precision, rows)


def _encode_float16(_precision: Precision, rows: Array) -> Encoded:
    with np.errstate(over="ignore"):
        halves = rows.astype(np.float16)
    return halves.view(np.uint8), _fits(rows, np.isinf(halves))


def _encode_bfloat16(_precision: Precision, rows: Array) -> Encoded:
    """To the nearest, ties to even: what is added makes the upper half one larger just then."""
    bits = rows.view(np.uint32)
    rounded = (bits + np.uint32(0x7FFF) + (bits >> 16 & 1)) >> 16
    quiet = bits >> 16 | np.uint32(0x40)
    halves = np.where(np.isnan(rows), quiet, rounded).astype(np.uint16)
    return halves.view(np.uint8), _fits(rows, halves & 0x7FFF == 0x7F80)


def _fits(rows: Array, overflows: Array) -> Array:
    fits: Array = np.logical_not(np.any(overflows & np.isfinite(rows), axis=1))
    return fits


def _encode_scaled(precision: Precision, rows: Array) -> Encoded:
    n, columns = rows.shape
    peaks = np.abs(rows).max(axis=1)
    fits = np.isfinite(peaks)
    scales = np.maximum(np.where(fits, peaks, 0) / np.float32(_PEAK_CODES[precision]), _LEAST_SCALE)
    codes = np.rint(np.where(fits[:, None], rows, 0) / scales[:, None]).astype(np.int8)
    coded = np.empty((n, coded_row_bytes(precision, columns)), np.uint8)
    coded[:, :SCALE_BYTES] = scales.astype(np.float32)[:, None].view(np.uint8)
    coded[:, SCALE_BYTES:] = _packed(codes) if precision is Precision.INT4 else codes.view(np.uint8)
    return coded, fits


def _packed(codes: Array) -> Array:
    """Two codes a byte, the first in its low half."""
    even = np.pad(codes, ((0, 0), (0, codes.shape[1] % 2))).view(np.uint8)
    packed: Array = even[:, 0::2] & 15 | even[:, 1::2] << 4
    return packed


_ENCODE: dict[Precision, Callable[[Precision, Array], Encoded]] = {
    Precision.FLOAT16: _encode_float16,
    Precision.BFLOAT16: _encode_bfloat16,
    Precision.INT8: _encode_scaled,
    Precision.INT4: _encode_scaled,
}
