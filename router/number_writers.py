"""One number as the original writes it in JSON, by its type, for compiled loops."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numba import types
from numba.extending import overload

from shardserve.router.compiled import part
from shardserve.router.float_digits import (
    LARGEST,
    SHORT,
    SMALLEST,
    digits_of_single,
    reads_back,
    rounded,
)
from shardserve.router.number_text import write_decimal, write_integer, write_text
from shardserve.shards.lanes import store

_MINUS = np.uint8(ord("-"))


def write_number(value: Any, at: Any) -> Any:
    """Write `value` at the address `at`; where it ends, or -1 if it is not certain how."""
    raise NotImplementedError("for compiled code only")


@overload(write_number)
def _by_type(value, at):  # type: ignore[no-untyped-def]
    if value == types.float32:
        return lambda value, at: _write_single(value, at)
    if value == types.float64:
        return lambda value, at: _write_double(value, at)
    if value == types.boolean:
        return lambda value, at: write_text(_TRUE if value else _FALSE, at)
    if value == types.int64:
        return lambda value, at: _write_signed(value, at)
    return lambda value, at: write_integer(value, at)


@part
def _write_seventeen(number, exponent, digits, at):  # type: ignore[no-untyped-def]
    """A decimal of the number's 17 digits, of which `digits` count."""
    unit = np.uint64(100000000)
    above, last = number // unit, np.int64(number % unit)
    first, middle = np.int64(above // unit), np.int64(above % unit)
    return write_decimal(first, middle, last, exponent, digits, at)


@part
def _may_be_short(number):  # type: ignore[no-untyped-def]
    """Whether six digits may do for a double whose 17 are `number`.

    Neighbouring doubles differ by less than 23 in those digits.
    """
    unit = np.uint64(100000000000)
    last = number % unit
    return last < np.uint64(23) or last > unit - np.uint64(23)


@part
def _write_positive(value, at):  # type: ignore[no-untyped-def]
    """Where a double ends, or -1 if that is not certain."""
    if not SMALLEST < value < LARGEST:
        return -1
    number, exponent, certain = rounded(value, 17, np.uint64(10000000000000000))
    if _may_be_short(number):
        short, short_exponent, _ = rounded(value, SHORT, np.uint64(100000))
        reads = reads_back(value, short, short_exponent)
        if reads == -1:
            return -1
        if reads == 1:
            unit = np.uint64(100000000000)
            return _write_seventeen(short * unit, short_exponent, SHORT, at)
    return _write_seventeen(number, exponent, 17, at) if certain else -1


@part
def _write_sign(value, at):  # type: ignore[no-untyped-def]
    if math.copysign(1.0, value) < 0:
        store(at, _MINUS)
        return at + 1
    return at


@part
def _write_unusual(value, at):  # type: ignore[no-untyped-def]
    """NaN, an infinity or a zero."""
    if math.isnan(value):
        return write_text(_NAN, at)
    return write_text(_ZERO if value == 0 else _INFINITY, _write_sign(value, at))


@part
def _write_single(value, at):  # type: ignore[no-untyped-def]
    if value == 0 or not math.isfinite(value):
        return _write_unusual(value, at)
    number, exponent, digits = digits_of_single(abs(np.float64(value)))
    if digits == 0:
        return -1
    first = number // 100000000
    rest = number - first * 100000000
    return write_decimal(first, rest, 0, exponent, digits, _write_sign(value, at))


@part
def _write_double(value, at):  # type: ignore[no-untyped-def]
    if value == 0 or not math.isfinite(value):
        return _write_unusual(value, at)
    return _write_positive(abs(value), _write_sign(value, at))


@part
def _write_signed(value, at):  # type: ignore[no-untyped-def]
    if value < 0:
        store(at, _MINUS)
        return write_integer(np.uint64(-value), at + 1)
    return write_integer(np.uint64(value), at)


_NAN, _INFINITY, _ZERO, _TRUE, _FALSE = (
    np.frombuffer(text, np.uint8) for text in (b"NaN", b"Infinity", b"0.0", b"true", b"false")
)
