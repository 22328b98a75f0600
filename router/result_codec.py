"""Classifications and regressions as serialised protos, written in a compiled loop."""

from __future__ import annotations

import numpy as np
from numba import types

from shardserve.router.compiled import compiled, part
from shardserve.router.inference import Classes
from shardserve.router.servable import Array

#: Bytes of a class besides its label: two tags, two lengths, a tag and a score.
_CLASS_BYTES = 18

_ROW_BYTES = 11


def encode_classification_result(classes: Classes) -> bytes:
    """A serialised ClassificationResult."""
    labels, scores = classes.labels, classes.scores
    rows, columns = (scores if labels is None else labels).shape  # type: ignore[union-attr]
    text, ends = _joined(labels, rows * columns)
    bits = np.zeros((rows, columns), np.uint32)
    if scores is not None:
        bits[:] = scores.view(np.uint32)
    encoded = np.empty(len(text) + rows * (columns * _CLASS_BYTES + _ROW_BYTES), np.uint8)
    return encoded[: _write(text, ends, bits, encoded)].tobytes()


def encode_regression_result(values: Array) -> bytes:
    """A serialised RegressionResult, of a flat float32 array."""
    encoded = np.empty(values.size * 7, np.uint8)
    bits = np.ascontiguousarray(values).view(np.uint32)
    return encoded[: _write_values(bits, encoded)].tobytes()


def _joined(labels: Array | None, count: int) -> tuple[Array, Array]:
    """All labels' bytes one after the other, and where each begins and ends."""
    ends = np.zeros(count + 1, np.int64)
    if labels is None:
        return np.zeros(0, np.uint8), ends
    flat = labels.ravel().tolist()
    np.cumsum(np.fromiter(map(len, flat), np.int64, count), out=ends[1:])
    return np.frombuffer(bytearray(b"".join(flat)), np.uint8), ends


@part
def _put_varint(value, encoded, end):  # type: ignore[no-untyped-def]
    while value > 127:
        encoded[end] = (value & 127) | 128
        value >>= 7
        end += 1
    encoded[end] = value
    return end + 1


@part
def _varint_size(value):  # type: ignore[no-untyped-def]
    size = 1
    while value > 127:
        value >>= 7
        size += 1
    return size


@part
def _put_float(tag, bits, encoded, end):  # type: ignore[no-untyped-def]
    encoded[end] = tag
    for byte in range(4):
        encoded[end + 1 + byte] = (bits >> np.uint32(8 * byte)) & np.uint32(255)
    return end + 5


@part
def _class_size(length, bits):  # type: ignore[no-untyped-def]
    """Of a Class; fields that are zero are left out, as proto3 does."""
    label = 1 + _varint_size(length) + length if length else 0
    return label + (5 if bits else 0)


def _write_classifications(text, ends, bits, encoded):  # type: ignore[no-untyped-def]
    rows, columns = bits.shape
    end = 0
    for row in range(rows):
        size = 0
        for column in range(columns):
            place = row * columns + column
            inner = _class_size(ends[place + 1] - ends[place], bits[row, column])
            size += 1 + _varint_size(inner) + inner
        encoded[end] = 0x0A
        end = _put_varint(size, encoded, end + 1)
        for column in range(columns):
            place = row * columns + column
            length = ends[place + 1] - ends[place]
            encoded[end] = 0x0A
            end = _put_varint(_class_size(length, bits[row, column]), encoded, end + 1)
            if length:
                encoded[end] = 0x0A
                end = _put_varint(length, encoded, end + 1)
                encoded[end : end + length] = text[ends[place] : ends[place + 1]]
                end += length
            if bits[row, column]:
                end = _put_float(0x15, bits[row, column], encoded, end)
    return end


def _write_regressions(bits, encoded):  # type: ignore[no-untyped-def]
    end = 0
    for place in range(len(bits)):
        encoded[end] = 0x0A
        encoded[end + 1] = 5 if bits[place] else 0
        end += 2
        if bits[place]:
            end = _put_float(0x0D, bits[place], encoded, end)
    return end


_U8 = types.Array(types.uint8, 1, "C")

_write = compiled(
    types.int64(_U8, types.Array(types.int64, 1, "C"), types.Array(types.uint32, 2, "C"), _U8)
)(_write_classifications)

_write_values = compiled(types.int64(types.Array(types.uint32, 1, "C", readonly=True), _U8))(
    _write_regressions
)
