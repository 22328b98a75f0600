"""Decoding the three messages of a tensor bundle's index, without TensorFlow or protobuf.

The messages are tensor_bundle.proto's BundleHeaderProto and BundleEntryProto, and what they hold
of tensor_shape.proto, tensor_slice.proto and versions.proto; the numbers below are theirs.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from shardserve.shards.sstable import varint

_Fields = dict[int, list[int | bytes]]

_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5

#: types.proto's numbers of what numpy (or, for bfloat16, its bits) can hold.
DTYPES = {
    1: "float32",
    2: "float64",
    3: "int32",
    4: "uint8",
    5: "int16",
    6: "int8",
    7: "string",
    8: "complex64",
    9: "int64",
    10: "bool",
    14: "bfloat16",
    17: "uint16",
    18: "complex128",
    19: "float16",
    22: "uint32",
    23: "uint64",
}


@dataclass(frozen=True)
class Header:
    """BundleHeaderProto."""

    shards: int
    big_endian: bool
    min_consumer: int
    bad_consumers: tuple[int, ...]


#: TensorSliceProto: for each dimension, the first place and how many; None for all there are.
SliceExtents = tuple[tuple[int, int | None], ...]


@dataclass(frozen=True)
class RawEntry:
    """BundleEntryProto. `crc32c` is masked, as LevelDB's are."""

    dtype: str
    shape: tuple[int, ...]
    shard: int
    offset: int
    size: int
    slices: tuple[SliceExtents, ...]
    crc32c: int


def header(data: bytes) -> Header:
    """Raises IndexError or ValueError if `data` is not a BundleHeaderProto."""
    fields = _grouped(data)
    version = _grouped(_last_bytes(fields, 3))
    return Header(
        shards=_last(fields, 1),
        big_endian=bool(_last(fields, 2)),
        min_consumer=_last(version, 2),
        bad_consumers=tuple(_numbers(version, 3)),
    )


def entry(data: bytes) -> RawEntry:
    """Raises IndexError or ValueError if `data` is not a BundleEntryProto."""
    fields = _grouped(data)
    number = _last(fields, 1)
    return RawEntry(
        dtype=DTYPES.get(number, f"DataType {number}"),
        shape=_shape(_last_bytes(fields, 2)),
        shard=_last(fields, 3),
        offset=_last(fields, 4),
        size=_last(fields, 5),
        slices=tuple(_slice(value) for value in _messages(fields, 7)),
        crc32c=int.from_bytes(_last_bytes(fields, 6), "little"),
    )


def _shape(data: bytes) -> tuple[int, ...]:
    return tuple(_signed(_last(_grouped(dim), 1)) for dim in _messages(_grouped(data), 2))


def _slice(data: bytes) -> SliceExtents:
    return tuple(_extent(_grouped(extent)) for extent in _messages(_grouped(data), 1))


def _extent(fields: _Fields) -> tuple[int, int | None]:
    return _signed(_last(fields, 1)), (_signed(_last(fields, 2)) if 2 in fields else None)


def _grouped(data: bytes) -> _Fields:
    """Every field's values, by number, in the order they came."""
    fields: _Fields = {}
    for number, value in _wire(data):
        fields.setdefault(number, []).append(value)
    return fields


def _wire(data: bytes) -> Iterator[tuple[int, int | bytes]]:
    at = 0
    while at < len(data):
        tag, at = varint(data, at)
        number, kind = tag >> 3, tag & 7
        if kind == _VARINT:
            value, at = varint(data, at)
            yield number, value
            continue
        if kind == _BYTES:
            length, at = varint(data, at)
        elif kind in (_FIXED32, _FIXED64):
            length = 4 if kind == _FIXED32 else 8
        else:
            raise ValueError(f"wire type {kind}")
        if at + length > len(data):
            raise IndexError("a field is cut off")
        yield number, data[at : at + length]
        at += length


def _last(fields: _Fields, number: int) -> int:
    value = fields.get(number, [0])[-1]
    if not isinstance(value, int):
        raise ValueError(f"field {number} is not a number")
    return value


def _last_bytes(fields: _Fields, number: int) -> bytes:
    return next(reversed(list(_messages(fields, number))), b"")


def _messages(fields: _Fields, number: int) -> Iterator[bytes]:
    for value in fields.get(number, []):
        if not isinstance(value, bytes):
            raise ValueError(f"field {number} is not a message")
        yield value


def _numbers(fields: _Fields, number: int) -> Iterator[int]:
    """A repeated number's values, packed or one by one."""
    for value in fields.get(number, []):
        if isinstance(value, int):
            yield value
            continue
        at = 0
        while at < len(value):
            one, at = varint(value, at)
            yield one


def _signed(value: int) -> int:
    """A varint as the int64 it stands for."""
    return value - (1 << 64) if value >> 63 else value
