"""TensorProto to numpy and back, by whole arrays, with TensorFlow's rules for odd protos."""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from tensorflow.core.framework import tensor_pb2, tensor_shape_pb2

from shardserve.batching.errors import InvalidArgument
from shardserve.router.servable import Array
from shardserve.router.tensor_types import BY_NUMBER, BY_NUMPY, STRING, TensorType, name_of
from shardserve.router.varints import encode_varints

#: numpy's limit; TensorFlow's own is 254, of which no kernel takes more than 8.
MAX_RANK = 64

#: Sizes and names of that many dimensions, generously.
MAX_SHAPE_BYTES = 4096

#: What numpy can count, whatever the elements, in bytes.
MAX_ELEMENTS = 2**59

#: A proto may repeat its last value to fill its shape; it may not make that much out of nothing.
MAX_FILLED_BYTES = 64 << 20

_TENSOR_CONTENT = 4

_FEW = 40


@dataclass(frozen=True)
class Field:
    """A field of typed values in a TensorProto: its number, the numpy dtype of its values.

    `raw` values lie on the wire as numpy holds them; the others are varints.
    """

    number: int
    dtype: np.dtype[Any]
    raw: bool


FIELDS: Mapping[str, Field] = {
    "float_val": Field(5, np.dtype("<f4"), raw=True),
    "double_val": Field(6, np.dtype("<f8"), raw=True),
    "int_val": Field(7, np.dtype("<i4"), raw=False),
    "scomplex_val": Field(9, np.dtype("<f4"), raw=True),
    "int64_val": Field(10, np.dtype("<i8"), raw=False),
    "bool_val": Field(11, np.dtype("?"), raw=True),
    "dcomplex_val": Field(12, np.dtype("<f8"), raw=True),
    "half_val": Field(13, np.dtype("<i4"), raw=False),
    "uint32_val": Field(16, np.dtype("<u4"), raw=False),
    "uint64_val": Field(17, np.dtype("<u8"), raw=False),
    "float8_val": Field(18, np.dtype("u1"), raw=True),
}


class TensorError(ValueError):
    """A proto that is no tensor. The text says why, for a message that names the input."""


def decode_tensor(proto: tensor_pb2.TensorProto) -> Array:
    """The tensor as an array of its type's numpy dtype; it may be a read-only view of the proto.

    As TensorFlow reads it: `tensor_content`, where present, must be exactly as long as the shape
    asks; else the typed values fill the shape in order, surplus ones are dropped, the last one is
    repeated where there are too few, and zero where there is none. An unknown rank is a scalar.
    Raises TensorError before anything is allocated that the bytes received do not account for.
    """
    kind = BY_NUMBER.get(proto.dtype)
    if kind is None:
        raise TensorError(f"a tensor of type {name_of(proto.dtype)} cannot be sent")
    shape, count = _decode_shape(proto.tensor_shape.SerializeToString())
    if kind is STRING:
        values = _decode_strings(proto, count)
    elif proto.tensor_content and count:
        values = _decode_content(proto.tensor_content, kind, count)
    else:
        values = _decode_field(proto, kind, count)
    return values.reshape(shape)


@functools.lru_cache(maxsize=4096)
def _decode_shape(raw: bytes) -> tuple[tuple[int, ...], int]:
    """A serialised TensorShapeProto's sizes and their product. Requests have few different ones."""
    if len(raw) > MAX_SHAPE_BYTES:
        raise TensorError(f"a shape of {len(raw)} bytes")
    shape = tuple([dim.size for dim in tensor_shape_pb2.TensorShapeProto.FromString(raw).dim])
    if len(shape) > MAX_RANK or min(shape, default=0) < 0:
        raise TensorError(f"invalid shape {list(shape)}")
    if math.prod(filter(None, shape)) > MAX_ELEMENTS:
        raise TensorError(f"invalid shape {list(shape)}")
    return shape, math.prod(shape)


def _decode_content(content: bytes, kind: TensorType, count: int) -> Array:
    needed = count * kind.numpy.itemsize
    if len(content) != needed:
        raise TensorError(f"tensor_content has {len(content)} bytes, the shape takes {needed}")
    if kind.numpy == np.bool_ and max(content) > 1:
        raise TensorError("tensor_content has a byte that is no bool")
    return np.frombuffer(content, kind.numpy)


def _decode_field(proto: tensor_pb2.TensorProto, kind: TensorType, count: int) -> Array:
    values = _field_values(getattr(proto, kind.field), FIELDS[kind.field])
    if values.dtype != kind.numpy:
        values = _as_elements(values, kind)
    return values if len(values) == count else _filled(values, count, kind.numpy)


def _as_elements(values: Array, kind: TensorType) -> Array:
    """The elements whose bits lie in a field's values."""
    if kind.numpy.kind == "c":
        values = values[: len(values) // 2 * 2]
    elements: Array = values.astype(kind.bits, copy=False).view(kind.numpy)
    return elements


def _field_values(values: Any, field: Field) -> Array:
    if isinstance(values, bytes):
        return np.frombuffer(values, field.dtype)
    # Two ways into numpy: the first is quicker for a few values, the second copies memory.
    if len(values) < _FEW:
        return np.array(values[:], field.dtype)
    return np.asarray(values, field.dtype)


def _filled(elements: Array, count: int, dtype: np.dtype[Any]) -> Array:
    """`elements` cut, or filled up with the last of them (zero where there is none), to `count`."""
    given = len(elements)
    if given >= count:
        return elements[:count]
    if (count - given) * dtype.itemsize > MAX_FILLED_BYTES:
        raise TensorError(f"{given} values for a shape of {count} elements")
    filled = np.zeros(count, dtype)
    if given:
        filled[:given] = elements
        filled[given:] = elements[-1]
    return filled


def _decode_strings(proto: tensor_pb2.TensorProto, count: int) -> Array:
    if proto.tensor_content and count:
        values = _split_strings(proto.tensor_content, count)
    else:
        values = list(proto.string_val) or [b""]
    elements = np.empty(len(values), object)
    elements[:] = values
    return elements if len(elements) == count else _filled(elements, count, elements.dtype)


def _split_strings(content: bytes, count: int) -> list[bytes]:
    """Strings in `tensor_content`: the `count` lengths as varints, then the bytes of them all."""
    if count > len(content):
        raise TensorError(f"tensor_content has {len(content)} bytes for {count} strings")
    lengths = []
    position = 0
    for _ in range(count):
        length, position = _varint(content, position)
        lengths.append(length)
    if position + sum(lengths) != len(content):
        raise TensorError(f"tensor_content has {len(content)} bytes, not those of its strings")
    values = []
    for length in lengths:
        values.append(content[position : position + length])
        position += length
    return values


def _varint(content: bytes, position: int) -> tuple[int, int]:
    value = 0
    for place, byte in enumerate(content[position : position + 10]):
        value |= (byte & 127) << (7 * place)
        if byte < 128:
            return value, position + place + 1
    raise TensorError("tensor_content is cut off in a string's length")


def encode_tensor(array: Array, as_content: bool = False) -> bytes:
    """A serialised TensorProto: type, shape, and all values in the typed field.

    `as_content` puts them into `tensor_content` instead. Raises InvalidArgument for a dtype that
    TensorFlow has no type for.
    """
    kind = BY_NUMPY.get(array.dtype)
    if kind is None:
        raise InvalidArgument(f"an output of numpy type {array.dtype} cannot be sent")
    encode = _encode_content if as_content else _encode_values
    return _type_and_shape(kind.number, array.shape) + encode(array, kind)


#: Replies have few different ones.
@functools.lru_cache(maxsize=4096)
def _type_and_shape(number: int, shape: tuple[int, ...]) -> bytes:
    dims = b"".join([message_field(2, _number(1, size)) for size in shape])
    return _number(1, number) + message_field(2, dims)


def encode_predict_response(
    outputs: Mapping[str, Array], model_spec: bytes, as_content: bool = False
) -> bytes:
    """A serialised PredictResponse. `model_spec` is a serialised ModelSpec."""
    entries = [
        message_field(1, encode_named_tensor(alias, array, as_content))
        for alias, array in outputs.items()
    ]
    return b"".join((*entries, message_field(2, model_spec)))


def encode_predict_request(inputs: Mapping[str, Array], model_spec: bytes) -> bytes:
    """A serialised PredictRequest for all outputs. `model_spec` is a serialised ModelSpec."""
    entries = [message_field(2, encode_named_tensor(*entry)) for entry in inputs.items()]
    return b"".join((message_field(1, model_spec), *entries))


def encode_named_tensor(name: str, array: Array, as_content: bool = False) -> bytes:
    """A serialised NamedTensorProto, which is also an entry of PredictResponse.outputs."""
    return _name(name) + message_field(2, encode_tensor(array, as_content))


@functools.lru_cache(maxsize=4096)
def _name(name: str) -> bytes:
    return message_field(1, name.encode())


def _encode_content(array: Array, kind: TensorType) -> bytes:
    if not array.size:
        return b""
    if kind is not STRING:
        return message_field(_TENSOR_CONTENT, np.ascontiguousarray(array).tobytes())
    strings = array.ravel().tolist()
    lengths = encode_varints(np.fromiter(map(len, strings), np.uint64, len(strings)))
    return message_field(_TENSOR_CONTENT, b"".join((lengths, *strings)))


def _encode_values(array: Array, kind: TensorType) -> bytes:
    if not array.size:
        return b""
    if kind is STRING:
        strings = tensor_pb2.TensorProto(string_val=array.ravel().tolist())
        encoded: bytes = strings.SerializeToString()
        return encoded
    field = FIELDS[kind.field]
    bits = np.ascontiguousarray(array).view(kind.bits).ravel()
    return message_field(field.number, bits.tobytes() if field.raw else encode_varints(bits))


def _number(field: int, value: int) -> bytes:
    """A varint field, left out when zero, as proto3 does."""
    return _varint_bytes(field << 3) + _varint_bytes(value) if value else b""


def message_field(field: int, content: bytes) -> bytes:
    """A field of a length and so many bytes: a message, a string, packed numbers."""
    return b"".join((_varint_bytes(field << 3 | 2), _varint_bytes(len(content)), content))


@functools.lru_cache(maxsize=4096)
def _varint_bytes(value: int) -> bytes:
    encoded = bytearray()
    while value > 127:
        encoded.append(value & 127 | 128)
        value >>= 7
    encoded.append(value)
    return bytes(encoded)
