"""The element types that a request may carry: their names, numpy dtypes and TensorProto fields."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from tensorflow.core.framework import types_pb2
from tensorflow.python.framework import dtypes


@dataclass(frozen=True)
class TensorType:
    """One `types_pb2.DataType`.

    `number` is its number, `name` what TensorFlow calls it in messages, `numpy` the dtype of its
    arrays (object for strings, whose elements are bytes). `field` is the TensorProto field of its
    values; each of them, cast to `bits`, holds the bits of one element (of half a complex one).
    """

    number: int
    name: str
    numpy: np.dtype[Any]
    field: str
    bits: np.dtype[Any]


def _type(name: str, field: str, bits: str) -> TensorType:
    number = types_pb2.DataType.Value(f"DT_{name.upper()}")
    numpy = np.dtype(dtypes.as_dtype(number).as_numpy_dtype)
    return TensorType(number, name, numpy, field, np.dtype(bits))


STRING = _type("string", "string_val", "O")

_TYPES = (
    STRING,
    _type("float", "float_val", "<f4"),
    _type("double", "double_val", "<f8"),
    _type("int32", "int_val", "<i4"),
    _type("uint8", "int_val", "u1"),
    _type("int16", "int_val", "<i2"),
    _type("int8", "int_val", "i1"),
    _type("complex64", "scomplex_val", "<f4"),
    _type("int64", "int64_val", "<i8"),
    _type("bool", "bool_val", "?"),
    _type("qint8", "int_val", "i1"),
    _type("quint8", "int_val", "u1"),
    _type("qint32", "int_val", "<i4"),
    _type("bfloat16", "half_val", "<u2"),
    _type("qint16", "int_val", "<i2"),
    _type("quint16", "int_val", "<u2"),
    _type("uint16", "int_val", "<u2"),
    _type("complex128", "dcomplex_val", "<f8"),
    _type("half", "half_val", "<u2"),
    _type("uint32", "uint32_val", "<u4"),
    _type("uint64", "uint64_val", "<u8"),
    _type("float8_e5m2", "float8_val", "u1"),
    _type("float8_e4m3fn", "float8_val", "u1"),
    _type("float8_e4m3fnuz", "float8_val", "u1"),
    _type("float8_e4m3b11fnuz", "float8_val", "u1"),
    _type("float8_e5m2fnuz", "float8_val", "u1"),
    _type("float4_e2m1fn", "float8_val", "u1"),
    _type("int4", "int_val", "i1"),
    _type("uint4", "int_val", "u1"),
    _type("int2", "int_val", "i1"),
    _type("uint2", "int_val", "u1"),
)

BY_NUMBER: Mapping[int, TensorType] = {t.number: t for t in _TYPES}

BY_NUMPY: Mapping[np.dtype[Any], TensorType] = {t.numpy: t for t in _TYPES}


def name_of(number: int) -> str:
    """TensorFlow's name for a DataType, also for one that no request can carry."""
    if number in BY_NUMBER:
        return BY_NUMBER[number].name
    if number in types_pb2.DataType.values():
        return str(types_pb2.DataType.Name(number)).removeprefix("DT_").lower()
    return f"unknown dtype enum ({number})"
