"""Numbers as JSON text, many at once, in a compiled loop that also writes what is between them.

Floats are written as the original writes them: `%g` with six digits where that reads back as the
same float, else as many digits as every float of the type needs (9, or 17 for doubles); ".0" where
neither a point nor an exponent shows that it is a float; NaN, Infinity and -Infinity as tokens.

The digits are those of C's printf (`float_digits`). Where they are not certain, and for the largest
and smallest doubles, Python formats the number.
"""

from __future__ import annotations

import functools
import itertools
import math

import numba
import numpy as np
import orjson
from numba import types

from shardserve.router.float_digits import (
    LARGEST,
    NORMAL,
    SHORT,
    SMALLEST,
    reads_back,
    rounded,
)
from shardserve.router.json_text import decimal
from shardserve.router.servable import Array

#: Characters of the longest number: the sign, 17 digits, the point, an exponent of 3 digits.
_LONGEST = 25

#: So few numbers are written sooner than the compiled loop is called.
_FEW = 6

_CODES = {"b": 4, "u": 3, "i": 2}


def join_numbers(array: Array, separators: tuple[bytes, ...], sizes: tuple[int, ...]) -> bytes:
    """The elements of an array of bools, integers, float32 or float64, in order, as JSON.

    Between two elements stands `separators[0]`, but `separators[k]`, for the largest such k, where
    a multiple of `sizes[k - 1]` elements has been written.
    """
    flat = array.ravel()
    if not sizes and len(flat) <= _FEW:
        return separators[0].join(_texts_of_few(flat))
    code = _CODES.get(flat.dtype.kind, int(flat.dtype.itemsize == 8))
    text = np.empty(_bound(len(flat), separators, sizes), np.uint8)
    doubtful = np.zeros(len(flat), np.bool_)
    wanted = (_bits(flat), code, *_between(separators, sizes))
    end = _write(*wanted, _NOTHING, doubtful, text)
    if end < 0:
        end = _write(*wanted, _written_by_python(flat, doubtful), doubtful, text)
    return text[:end].tobytes()


def _texts_of_few(flat: Array) -> list[bytes]:
    if flat.dtype.kind == "f":
        digits = 9 if flat.dtype.itemsize == 4 else 17
        return [decimal(value, digits).encode() for value in flat.tolist()]
    return [orjson.dumps(value) for value in flat.tolist()]


@functools.lru_cache(maxsize=1024)
def _between(separators: tuple[bytes, ...], sizes: tuple[int, ...]) -> tuple[Array, Array, Array]:
    """The separators one after the other, where each begins and ends, and `sizes`."""
    ends = list(itertools.accumulate(map(len, separators), initial=0))
    joined = np.frombuffer(b"".join(separators), np.uint8)
    return joined, np.array(ends, np.int64), np.array(sizes, np.int64)


def _bits(flat: Array) -> Array:
    """Each element as 64 bits: a double's, an integer's."""
    if flat.dtype.kind == "f":
        return np.ascontiguousarray(flat, np.float64).view(np.uint64)
    wide = np.int64 if flat.dtype.kind == "i" else np.uint64
    return np.ascontiguousarray(flat, wide).view(np.uint64)


def _bound(count: int, separators: tuple[bytes, ...], sizes: tuple[int, ...]) -> int:
    """As many bytes as they take at most."""
    most = count * (_LONGEST + len(separators[0]))
    for separator, size in zip(separators[1:], sizes, strict=True):
        most += count // size * len(separator)
    return most


def _written_by_python(flat: Array, doubtful: Array) -> Array:
    """Rows of `_LONGEST` bytes, the first the text's length, at the places that are doubtful."""
    given = np.zeros((len(flat), _LONGEST + 1), np.uint8)
    for place in np.flatnonzero(doubtful):
        text = decimal(flat[place].item(), 9 if flat.dtype == np.float32 else 17).encode()
        given[place, 0] = len(text)
        given[place, 1 : len(text) + 1] = np.frombuffer(text, np.uint8)
    return given


_NOTHING = np.zeros((0, _LONGEST + 1), np.uint8)


_compiled = numba.njit(nogil=True, cache=True)


@_compiled
def _write_digits(number, text, end):  # type: ignore[no-untyped-def]
    start = end
    rest = number
    while True:
        text[end] = 48 + rest % np.uint64(10)
        rest //= np.uint64(10)
        end += 1
        if rest == 0:
            break
    for place in range((end - start) // 2):
        other = end - 1 - place
        text[start + place], text[other] = text[other], text[start + place]
    return end


@_compiled
def _write_text(characters, text, end):  # type: ignore[no-untyped-def]
    for character in characters:
        text[end] = character
        end += 1
    return end


@_compiled
def _write_pointed(number, count, before, text, end):  # type: ignore[no-untyped-def]
    """A number's `count` digits, a point after so many of them."""
    for place in range(count - 1, -1, -1):
        text[end + place + (1 if place >= before else 0)] = 48 + number % np.uint64(10)
        number //= np.uint64(10)
    text[end + before] = 46
    return end + count + 1


@_compiled
def _write_exponent(exponent, text, end):  # type: ignore[no-untyped-def]
    text[end] = 101
    text[end + 1] = 45 if exponent < 0 else 43
    end += 2
    if abs(exponent) < 10:
        text[end] = 48
        end += 1
    return _write_digits(np.uint64(abs(exponent)), text, end)


@_compiled
def _write_decimal(number, exponent, digits, text, end):  # type: ignore[no-untyped-def]
    """`%.{digits}g` of a number of so many digits, with ".0" where it would look like an integer.

    `digits` decides between the two forms, as it does in printf.
    """
    count = digits
    while number % np.uint64(10) == 0:
        number //= np.uint64(10)
        count -= 1
    if exponent < -4 or exponent >= digits:
        if count > 1:
            end = _write_pointed(number, count, 1, text, end)
        else:
            end = _write_digits(number, text, end)
        return _write_exponent(exponent, text, end)
    if exponent < 0:
        text[end] = 48
        text[end + 1] = 46
        end += 2
        for _ in range(-exponent - 1):
            text[end] = 48
            end += 1
        return _write_digits(number, text, end)
    for _ in range(exponent + 2 - count):
        number *= np.uint64(10)
        count += 1
    return _write_pointed(number, count, exponent + 1, text, end)


@_compiled
def _may_be_short(number, digits):  # type: ignore[no-untyped-def]
    """Whether six digits may do for a normal float whose 9 or 17 are `number`.

    Neighbouring floats differ by less than 120 in those digits.
    """
    unit = np.uint64(1000) if digits == 9 else np.uint64(100000000000)
    last = number % unit
    return last < np.uint64(120) or last > unit - np.uint64(120)


@_compiled
def _write_positive(value, narrow, text, end):  # type: ignore[no-untyped-def]
    """Where it ends, or -1 if that is not certain."""
    if not SMALLEST < value < LARGEST:
        return -1
    if narrow:
        digits, least = 9, np.uint64(100000000)
    else:
        digits, least = 17, np.uint64(10000000000000000)
    number, exponent, certain = rounded(value, digits, least)
    if _may_be_short(number, digits) or value < NORMAL:
        short, short_exponent, _ = rounded(value, SHORT, np.uint64(100000))
        reads = reads_back(value, short, short_exponent, narrow)
        if reads == -1:
            return -1
        if reads == 1:
            return _write_decimal(short, short_exponent, SHORT, text, end)
    return _write_decimal(number, exponent, digits, text, end) if certain else -1


@_compiled
def _write_float(value, narrow, text, end):  # type: ignore[no-untyped-def]
    """Where it ends, or -1 if that is not certain."""
    if math.isnan(value):
        return _write_text(_NAN, text, end)
    if math.copysign(1.0, value) < 0:
        text[end] = 45
        end += 1
        value = -value
    if math.isinf(value):
        return _write_text(_INFINITY, text, end)
    if value == 0:
        return _write_text(_ZERO, text, end)
    return _write_positive(value, narrow, text, end)


@_compiled
def _write_integer(bits, is_signed, text, end):  # type: ignore[no-untyped-def]
    if is_signed and bits >> np.uint64(63):
        text[end] = 45
        end += 1
        bits = ~bits + np.uint64(1)
    return _write_digits(bits, text, end)


def _write_numbers(bits, code, between, ends, sizes, given, doubtful, text):  # type: ignore[no-untyped-def]
    """All of it into `text`; how many bytes, or -1 if not all of it is certain.

    `code` is 0 for float32, 1 float64, 2 signed, 3 unsigned, 4 bool. What is not certain is marked
    in `doubtful`, unless its text is `given`.
    """
    floats = bits.view(np.float64)
    end, certain = 0, True
    for place in range(len(bits)):
        if place:
            level = 0
            while level < len(sizes) and place % sizes[level] == 0:
                level += 1
            # A slice would cost as much as the digits do.
            for at in range(ends[level], ends[level + 1]):
                text[end] = between[at]
                end += 1
        if code == 4:
            end = _write_text(_TRUE if bits[place] else _FALSE, text, end)
        elif code >= 2:
            end = _write_integer(bits[place], code == 2, text, end)
        elif len(given) and given[place, 0]:
            end = _write_text(given[place, 1 : given[place, 0] + 1], text, end)
        else:
            after = _write_float(floats[place], code == 0, text, end)
            if after < 0:
                doubtful[place], certain = True, False
            else:
                end = after
    return end if certain else -1


_NAN, _INFINITY, _ZERO, _TRUE, _FALSE = (
    np.frombuffer(text, np.uint8) for text in (b"NaN", b"Infinity", b"0.0", b"true", b"false")
)

# Compiled, or loaded from numba's cache, at import and never in a request.
_write = numba.njit(
    types.int64(
        types.Array(types.uint64, 1, "C"),
        types.int64,
        types.Array(types.uint8, 1, "C", readonly=True),
        types.Array(types.int64, 1, "C", readonly=True),
        types.Array(types.int64, 1, "C", readonly=True),
        types.Array(types.uint8, 2, "C", readonly=True),
        types.Array(types.boolean, 1, "C"),
        types.Array(types.uint8, 1, "C"),
    ),
    nogil=True,
    cache=True,
)(_write_numbers)
