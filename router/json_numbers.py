"""Numbers as JSON text, many at once, in a compiled loop that also writes what is between them.

Floats are written as the original writes them: `%g` with six digits where that reads back as the
same float, else as many digits as every float of the type needs (9, or 17 for doubles); ".0" where
neither a point nor an exponent shows that it is a float; NaN, Infinity and -Infinity as tokens.

The digits are those of C's printf (`float_digits`). Where they are not certain, and for the largest
and smallest doubles, Python formats the number.
"""

from __future__ import annotations

import functools
from typing import Any

import numba
import numpy as np
import orjson
from numba import types

from shardserve.router.json_text import decimal
from shardserve.router.number_text import LONGEST, SLACK, write_text
from shardserve.router.number_writers import write_number
from shardserve.router.servable import Array
from shardserve.shards.lanes import store

#: So few numbers are written sooner than the compiled loop is called.
_FEW = 3

#: Of integers there are loops for the widest only.
_WIDE = {"i": np.int64, "u": np.uint64}


def join_numbers(array: Array, separators: tuple[bytes, ...], sizes: tuple[int, ...]) -> bytes:
    """The elements of an array of bools, integers, float32 or float64, in order, as JSON.

    Between two elements stands `separators[0]`, but `separators[k]`, for the largest such k, where
    a multiple of `sizes[k - 1]` elements has been written.
    """
    flat = array.ravel()
    if not sizes and len(flat) <= _FEW:
        return separators[0].join(_texts_of_few(flat))
    text = np.empty(_bound(len(flat), separators, sizes), np.uint8)
    doubtful = np.zeros(len(flat), np.bool_)
    wanted = (_as_written(flat), *_between(separators, sizes))
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
    """The separators, each in a row of words, how long each is, and `sizes`."""
    lengths = np.array([len(separator) for separator in separators])
    words = np.zeros((len(separators), max(lengths) // 8 + 1), np.int64)
    for row, separator in zip(words.view(np.uint8), separators, strict=True):
        row[: len(separator)] = np.frombuffer(separator, np.uint8)
    return words, lengths, np.array(sizes, np.int64)


def _as_written(flat: Array) -> Array:
    """As one of the types that there is a loop for."""
    return np.ascontiguousarray(flat, _WIDE.get(flat.dtype.kind))


def _bound(count: int, separators: tuple[bytes, ...], sizes: tuple[int, ...]) -> int:
    """As many bytes as they take at most."""
    most = count * (LONGEST + len(separators[0])) + SLACK
    for separator, size in zip(separators[1:], sizes, strict=True):
        most += count // size * len(separator)
    return most


def _written_by_python(flat: Array, doubtful: Array) -> Array:
    """Rows of bytes, the first the text's length, at the places that are doubtful."""
    given = np.zeros((len(flat), LONGEST + 1), np.uint8)
    for place in np.flatnonzero(doubtful):
        text = decimal(flat[place].item(), 9 if flat.dtype == np.float32 else 17).encode()
        given[place, 0] = len(text)
        given[place, 1 : len(text) + 1] = np.frombuffer(text, np.uint8)
    return given


_NOTHING = np.zeros((0, LONGEST + 1), np.uint8)


_compiled = numba.njit(nogil=True, cache=True)


@_compiled
def _write_between(level, words, lengths, at):  # type: ignore[no-untyped-def]
    store(at, words[level, 0])
    for word in range(1, words.shape[1]):
        store(at + 8 * word, words[level, word])
    return at + lengths[level]


@_compiled
def _level(place, sizes):  # type: ignore[no-untyped-def]
    """Of the largest groups that end there."""
    level = 0
    while level < len(sizes) and place % sizes[level] == 0:
        level += 1
    return level


def _write_numbers(values, words, lengths, sizes, given, doubtful, text):  # type: ignore[no-untyped-def]
    """All of it into `text`; how many bytes, or -1 if not all of it is certain.

    What is not certain is marked in `doubtful`, unless its text is `given`.
    """
    start = np.int64(text.ctypes.data)
    at, certain = start, True
    due = sizes[0] if len(sizes) else len(values)
    for place in range(len(values)):
        if place == due:
            at = _write_between(_level(place, sizes), words, lengths, at)
            due += sizes[0]
        elif place:
            at = _write_between(0, words, lengths, at)
        if len(given) and given[place, 0]:
            at = write_text(given[place, 1 : given[place, 0] + 1], at)
        else:
            after = write_number(values[place], at)
            if after < 0:
                doubtful[place], certain = True, False
            else:
                at = after
    return at - start if certain else -1


def _signature(kind: Any) -> Any:
    return types.int64(
        types.Array(kind, 1, "C", readonly=True),
        types.Array(types.int64, 2, "C", readonly=True),
        types.Array(types.int64, 1, "C", readonly=True),
        types.Array(types.int64, 1, "C", readonly=True),
        types.Array(types.uint8, 2, "C", readonly=True),
        types.Array(types.boolean, 1, "C"),
        types.Array(types.uint8, 1, "C"),
    )


_KINDS = (types.float32, types.float64, types.int64, types.uint64, types.boolean)

# Compiled, or loaded from numba's cache, at import and never in a request.
_write = numba.njit([_signature(kind) for kind in _KINDS], nogil=True, cache=True)(_write_numbers)
