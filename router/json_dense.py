"""JSON lists to dense tensors by whole arrays, or word that they are none of just that type."""

from __future__ import annotations

import base64
import binascii
import itertools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from shardserve.batching.errors import InvalidArgument
from shardserve.router.json_text import to_bytes
from shardserve.router.servable import Array
from shardserve.router.tensor_types import STRING, TensorType

#: numpy's limit.
MAX_RANK = 64

_INT32_RANGE = (-(2**31), 2**31 - 1)

# The original reads small integers as 32 bits and lets them wrap.
INTEGER_RANGE = {
    "int32": _INT32_RANGE,
    "int16": _INT32_RANGE,
    "int8": _INT32_RANGE,
    "uint8": _INT32_RANGE,
    "int64": (-(2**63), 2**63 - 1),
    "uint32": (0, 2**32 - 1),
    "uint64": (0, 2**64 - 1),
}


def is_base64(value: Any) -> bool:
    """Whether a JSON object stands for one binary string: {"b64": "..."}."""
    return isinstance(value, dict) and len(value) == 1 and isinstance(value.get("b64"), str)


def unpack_base64(value: Mapping[str, Any]) -> bytes:
    """The bytes of a `{"b64": ...}`: standard alphabet, padding optional, white space ignored."""
    text = "".join(value["b64"].split()).rstrip("=")
    try:
        return base64.b64decode(text + "=" * (-len(text) % 4), validate=True)
    except (binascii.Error, ValueError):
        raise InvalidArgument("Unable to base64 decode") from None


def dense(value: Any, kind: TensorType) -> Array | None:
    """`value` as an array of the type, or None where it is not a dense tensor of just that type."""
    if kind is STRING:
        return _strings(value)
    accept = _ACCEPT.get(kind.name)
    if accept is None:
        return None
    shape, flat = _flatten(value)
    # Left to itself, numpy would take "1" and true for numbers, and 1.5 for an integer.
    if not accept.types.issuperset(map(type, flat)):
        return None
    try:
        array = np.array(flat, accept.held)
    except OverflowError:
        return None
    numbers = fitted(array, kind)
    return None if numbers is None else numbers.reshape(shape)


def held_by(kind: TensorType) -> np.dtype[Any] | None:
    """What numbers of the type are read into at first; None where JSON has none of it."""
    accept = _ACCEPT.get(kind.name)
    return None if accept is None else accept.held


def fitted(numbers: Array, kind: TensorType) -> Array | None:
    """Numbers of the kind that holds the type, as the type; None where some are out of bounds."""
    bounds = _ACCEPT[kind.name].bounds
    if bounds is not None and numbers.size and not _within(numbers, *bounds):
        return None
    return numbers if numbers.dtype == kind.numpy else numbers.astype(kind.numpy)


def dense_prefix(values: list[Any], kind: TensorType, shape: tuple[int, ...]) -> tuple[int, Array]:
    """How many of `values`, from the first, are dense tensors of that type and shape; and these.

    Takes about twice the time that `dense` would take for all of them.
    """

    def part(start: int, end: int) -> Array | None:
        array = dense(values[start:end], kind)
        return array if array is not None and array.shape[1:] == shape else None

    count = accepted_prefix(len(values), lambda start, end: part(start, end) is not None)
    array = part(0, count) if count else None
    return (0, np.empty(0, kind.numpy)) if array is None else (count, array)


def accepted_prefix(count: int, accepts: Callable[[int, int], bool]) -> int:
    """How many of `count` things, from the first, are accepted, where runs can be asked about.

    By halving: a run of all, then of half of it, and so on, each only where it is not known yet.
    """
    start, end = 0, count
    if end and accepts(start, end):
        return end
    while end - start > 1:
        middle = (start + end) // 2
        if accepts(start, middle):
            start = middle
        else:
            end = middle
    return start


def _within(array: Array, low: int, high: int) -> bool:
    return bool(array.min() >= low and array.max() <= high)


def _flatten(value: Any) -> tuple[list[int], list[Any]]:
    """Shape and elements of nested lists; where they are ragged, lists are left among the elements.

    Level by level, each by a few passes over all of it that run without the interpreter.
    """
    if type(value) is not list:
        return [], [value]
    shape, flat = [len(value)], value
    while flat and type(flat[0]) is list and len(shape) < MAX_RANK:
        if len(flat) == 1:
            flat = flat[0]
            shape.append(len(flat))
            continue
        if set(map(type, flat)) != {list} or len(set(map(len, flat))) > 1:
            break
        shape.append(len(flat[0]))
        flat = list(itertools.chain.from_iterable(flat))
    return shape, flat


def _strings(value: Any) -> Array | None:
    shape, flat = _flatten(value)
    types = set(map(type, flat))
    if types == {str}:
        flat = [to_bytes(text) for text in flat]
    elif types <= {str, dict} and all(type(v) is str or is_base64(v) for v in flat):
        try:
            flat = [to_bytes(v) if type(v) is str else unpack_base64(v) for v in flat]
        except InvalidArgument:
            # Which element it is, `json_strict` says.
            return None
    else:
        return None
    values = np.empty(len(flat), object)
    values[:] = flat
    return values.reshape(shape)


@dataclass(frozen=True)
class _Accept:
    """The Python types that numbers of a type parse to, what holds them at first, their bounds."""

    types: frozenset[type]
    held: np.dtype[Any]
    bounds: tuple[int, int] | None = None


def _accept(held: str, *types: type, bounds: tuple[int, int] | None = None) -> _Accept:
    return _Accept(frozenset(types), np.dtype(held), bounds)


# The original reads small integers as 32 bits and lets them wrap.
_INT32 = _accept("i8", int, bounds=INTEGER_RANGE["int32"])

_ACCEPT: Mapping[str, _Accept] = {
    "float": _accept("f4", int, float),
    "double": _accept("f8", int, float),
    "int32": _INT32,
    "int16": _INT32,
    "int8": _INT32,
    "uint8": _INT32,
    "int64": _accept("i8", int),
    "uint32": _accept("i8", int, bounds=INTEGER_RANGE["uint32"]),
    "uint64": _accept("u8", int),
    "bool": _accept("?", bool),
}
