"""JSON tensors value by value: the rules in full, and an error that names the place.

`json_codec` converts whole lists at once and comes here only with what that refused.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from shardserve.batching.errors import InvalidArgument, ServingError, Unimplemented
from shardserve.router.json_dense import (
    INTEGER_RANGE,
    MAX_RANK,
    dense_prefix,
    is_base64,
    unpack_base64,
)
from shardserve.router.json_text import shown, to_bytes, type_name
from shardserve.router.servable import Array
from shardserve.router.tensor_types import STRING, TensorType

#: Longer lists are looked at as wholes first.
_FEW = 16


def decode_columns(content: Any, kinds: Mapping[str, TensorType]) -> dict[str, Array]:
    """`inputs`: a tensor where the signature has one input, or an object of tensors by name."""
    if not isinstance(content, dict) or is_base64(content):
        if len(kinds) > 1:
            raise InvalidArgument(
                "inputs is a plain value/list, but expecting an object as multiple input tensors "
                "required as per tensorinfo_map"
            )
        content = {next(iter(kinds)): content}
    arrays = {}
    for alias, kind in kinds.items():
        if alias not in content:
            raise InvalidArgument(f"Missing named input: {alias} in 'inputs' object.")
        arrays[alias] = _tensor(content[alias], kind)
    return arrays


def decode_rows(rows: Mapping[int, Any], kinds: Mapping[str, TensorType]) -> dict[str, Array]:
    """`instances`, by place: all plain, or all objects with exactly the inputs' names."""
    if not isinstance(rows[0], dict) and len(kinds) > 1:
        raise InvalidArgument(
            "instances is a plain list, but expecting list of objects as multiple input tensors "
            "required as per tensorinfo_map"
        )
    named = _is_named(rows[0])
    columns: dict[str, list[Array]] = {alias: [] for alias in kinds}
    for place, row in rows.items():
        if named:
            _add_named(columns, kinds, place, row)
        else:
            _add_plain(columns, kinds, place, row)
    return {alias: np.stack(column) for alias, column in columns.items()}


def _is_named(row: Any) -> bool:
    return isinstance(row, dict) and not is_base64(row)


def _add_named(
    columns: dict[str, list[Array]], kinds: Mapping[str, TensorType], place: int, row: Any
) -> None:
    if not _is_named(row):
        raise InvalidArgument(f"Expecting object but got list at item {place} of input list")
    for alias, value in row.items():
        try:
            _add(columns, kinds, alias, value)
        except ServingError as error:
            raise InvalidArgument(
                f"Failed to process element: {place} key: {alias} of 'instances' list. "
                f"Error: {error.code.name}: {error.message}"
            ) from None
    if row.keys() != kinds.keys():
        raise InvalidArgument(
            f"Failed to process element: {place} of 'instances' list. JSON object: {shown(row)} "
            f"must only have keys: {','.join(sorted(kinds))}"
        )


def _add_plain(
    columns: dict[str, list[Array]], kinds: Mapping[str, TensorType], place: int, row: Any
) -> None:
    if _is_named(row):
        raise InvalidArgument(f"Expecting value/list but got object at item {place} of input list")
    try:
        _add(columns, kinds, next(iter(kinds)), row)
    except ServingError as error:
        raise InvalidArgument(
            f"Failed to process element: {place} of 'instances' list. "
            f"Error: {error.code.name}: {error.message}"
        ) from None


def _add(
    columns: dict[str, list[Array]], kinds: Mapping[str, TensorType], alias: str, value: Any
) -> None:
    if alias not in kinds:
        raise InvalidArgument(f"JSON object: does not have named input: {alias}")
    array = _tensor(value, kinds[alias])
    column = columns[alias]
    if column and column[0].size != array.size:
        raise InvalidArgument(f"Expecting tensor size: {column[0].size} but got: {array.size}")
    if column and column[0].shape != array.shape:
        raise InvalidArgument(
            f"Expecting shape {_bracketed(column[0])} but got: {_bracketed(array)}"
        )
    column.append(array)


def _bracketed(array: Array) -> str:
    return "[" + ",".join(map(str, array.shape)) + "]"


def _tensor(value: Any, kind: TensorType) -> Array:
    """`value` as one dense tensor; its shape is that of its first elements."""
    shape = _shape(value)
    flat: list[Any] = []
    _fill(value, 0, shape, kind, flat)
    wide = np.int64 if kind.numpy.kind in "iu" and kind.numpy.itemsize < _WIDE else kind.numpy
    array = np.empty(len(flat), wide)
    array[:] = flat
    return array.astype(kind.numpy, copy=False).reshape(shape)


def _shape(value: Any) -> tuple[int, ...]:
    shape: list[int] = []
    while isinstance(value, list):
        shape.append(len(value))
        if len(shape) > MAX_RANK:
            raise InvalidArgument(f"a tensor has more than {MAX_RANK} dimensions")
        if not value:
            break
        value = value[0]
    return tuple(shape)


def _fill(
    value: Any, level: int, shape: tuple[int, ...], kind: TensorType, flat: list[Any]
) -> None:
    if not isinstance(value, list):
        if level != len(shape):
            raise InvalidArgument(
                f"JSON Value: {shown(value)} found at incorrect level: {level + 1} in the JSON "
                f"DOM. Expected at level: {len(shape)}"
            )
        flat.append(_element(value, kind))
        return
    if level >= len(shape):
        raise InvalidArgument(
            f"Encountered list at unexpected level: {level} expected < {len(shape)}"
        )
    if len(value) != shape[level]:
        raise InvalidArgument(
            f"Encountered list at unexpected size: {len(value)} at level: {level} "
            f"expected size: {shape[level]}"
        )
    start = 0
    if len(value) > _FEW:
        start, good = dense_prefix(value, kind, shape[level + 1 :])
        flat.extend(good.ravel().tolist())
    for element in value[start:]:
        _fill(element, level + 1, shape, kind, flat)


def _element(value: Any, kind: TensorType) -> Any:
    """One value as numpy takes it. Raises InvalidArgument if it is not of the type."""
    if isinstance(value, dict) and kind is STRING:
        if not is_base64(value):
            raise InvalidArgument(
                f"JSON Value: {shown(value)} not formatted correctly for base64 data"
            )
        return unpack_base64(value)
    if kind.name in ("float", "double") and _is_number(value):
        return _as_float(value)
    if kind.name in INTEGER_RANGE and isinstance(value, int) and not isinstance(value, bool):
        low, high = INTEGER_RANGE[kind.name]
        if low <= value <= high:
            return value
    if kind.name == "bool" and isinstance(value, bool):
        return value
    if kind is STRING and isinstance(value, str):
        return to_bytes(value)
    if kind.name not in _SENDABLE and not isinstance(value, dict):
        raise Unimplemented(f"Conversion of JSON Value: {shown(value)} to type: {kind.name}")
    raise InvalidArgument(
        f"JSON Value: {shown(value)} Type: {type_name(value)} is not of expected type: {kind.name}"
    )


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _as_float(value: float) -> float:
    try:
        return float(value)
    except OverflowError:
        return math.copysign(math.inf, value)


_SENDABLE = {"float", "double", "bool", "string", *INTEGER_RANGE}

#: Bytes of an integer that holds every narrower one before it wraps.
_WIDE = 8
