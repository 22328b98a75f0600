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
from typing import Any

import numpy as np
import orjson
from numba import types

from shardserve.router import float_digits, number_text, number_writers
from shardserve.router.compiled import compiled, part
from shardserve.router.json_text import decimal
from shardserve.router.number_text import LONGEST, SLACK, write_text
from shardserve.router.number_writers import write_number
from shardserve.router.servable import Array
from shardserve.shards import lanes
from shardserve.shards.lanes import store

#: So few numbers are written sooner than the compiled loop is called.
_FEW = 3

#: Of integers there are loops for the widest only.
_WIDE = {"i": np.int64, "u": np.uint64}

#: What is between the elements of deeper nested lists is not kept: a client chooses how deep.
_KEPT_LEVELS = 8


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
    every = np.array(sizes, np.int64) if sizes else _NO_SIZES
    wanted = (_as_written(flat), *_between(separators), every)
    end = _write(*wanted, _NOTHING, doubtful, text)
    if end < 0:
        end = _write(*wanted, _written_by_python(flat, doubtful), doubtful, text)
    return text[:end].tobytes()


def _texts_of_few(flat: Array) -> list[bytes]:
    if flat.dtype.kind == "f":
        digits = 9 if flat.dtype.itemsize == 4 else 17
        return [decimal(value, digits).encode() for value in flat.tolist()]
    return [orjson.dumps(value) for value in flat.tolist()]


def _between(separators: tuple[bytes, ...]) -> tuple[Array, Array, Array]:
    """The separators as words one after the other, where each begins there, how long each is."""
    return (_kept if len(separators) <= _KEPT_LEVELS else _in_words)(separators)


def _in_words(separators: tuple[bytes, ...]) -> tuple[Array, Array, Array]:
    lengths = np.array([len(separator) for separator in separators])
    counts = np.maximum((lengths + 7) // 8, 1)
    padded = map(bytes.ljust, separators, (8 * counts).tolist(), itertools.repeat(b"\0"))
    return np.frombuffer(b"".join(padded), np.int64), np.cumsum(counts) - counts, lengths


_kept = functools.lru_cache(maxsize=128)(_in_words)


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
    """A row of bytes, the first the text's length, for each place that is doubtful, in order."""
    digits = 9 if flat.dtype == np.float32 else 17
    texts = [decimal(value, digits).encode() for value in flat[doubtful].tolist()]
    rows = [bytes([len(text)]) + text.ljust(LONGEST) for text in texts]
    return np.frombuffer(b"".join(rows), np.uint8).reshape(len(rows), -1)


_NOTHING = np.zeros((0, LONGEST + 1), np.uint8)

_NO_SIZES = np.zeros(0, np.int64)


@part
def _write_between(level, words, starts, lengths, at):  # type: ignore[no-untyped-def]
    start, length = starts[level], lengths[level]
    store(at, words[start])
    for byte in range(8, length, 8):
        store(at + byte, words[start + (byte >> 3)])
    return at + length


@part
def _level(place, sizes):  # type: ignore[no-untyped-def]
    """Of the largest groups that end there."""
    level = 0
    while level < len(sizes) and place % sizes[level] == 0:
        level += 1
    return level


def _write_numbers(values, words, starts, lengths, sizes, given, doubtful, text):  # type: ignore[no-untyped-def]
    """All of it into `text`; how many bytes, or -1 if not all of it is certain.

    What is not certain is marked in `doubtful`, unless the texts of all that is are `given`.
    """
    start = np.int64(text.ctypes.data)
    at, certain, taken = start, True, 0
    due = sizes[0] if len(sizes) else len(values)
    for place in range(len(values)):
        if place == due:
            at = _write_between(_level(place, sizes), words, starts, lengths, at)
            due += sizes[0]
        elif place:
            at = _write_between(0, words, starts, lengths, at)
        if len(given) and doubtful[place]:
            at = write_text(given[taken, 1 : given[taken, 0] + 1], at)
            taken += 1
        else:
            after = write_number(values[place], at)
            if after < 0:
                doubtful[place], certain = True, False
            else:
                at = after
    return at - start if certain else -1


def _signature(kind: Any) -> Any:
    integers = types.Array(types.int64, 1, "C", readonly=True)
    return types.int64(
        types.Array(kind, 1, "C", readonly=True),
        integers,
        integers,
        integers,
        integers,
        types.Array(types.uint8, 2, "C", readonly=True),
        types.Array(types.boolean, 1, "C"),
        types.Array(types.uint8, 1, "C"),
    )


_KINDS = (types.float32, types.float64, types.int64, types.uint64, types.boolean)

_write = compiled(
    *(_signature(kind) for kind in _KINDS),
    parts=(float_digits, lanes, number_text, number_writers),
)(_write_numbers)
