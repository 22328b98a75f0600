"""A REST predict request's tensors, by whole arrays; see `json_strict` for what does not fit."""

from __future__ import annotations

import enum
import itertools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from shardserve.batching.errors import InvalidArgument
from shardserve.router.json_strict import (
    INTEGER_RANGE,
    MAX_RANK,
    decode_columns,
    decode_rows,
    is_base64,
    unpack_base64,
)
from shardserve.router.json_text import (
    may_repeat_a_key,
    parse_exactly,
    parse_object,
    shown,
    signature_name_of,
    to_bytes,
)
from shardserve.router.servable import Array, Signature
from shardserve.router.tensor_types import BY_NUMBER, STRING, TensorType


class Form(enum.Enum):
    """How a request lays out its tensors, and therefore how the reply does."""

    ROWS = "instances"
    COLUMNS = "inputs"


@dataclass(frozen=True)
class PredictBody:
    """A request body, parsed but for its tensors, which need the signature's types.

    `content` is the value of "instances" or "inputs".
    """

    signature_name: str
    form: Form
    content: Any


def parse_predict(body: bytes) -> PredictBody:
    """Raises InvalidArgument, in TensorFlow Serving's words, unless `body` is a predict request."""
    document = parse_object(body)
    if may_repeat_a_key(body, _count_keys(document)):
        document = parse_exactly(body)
    name = signature_name_of(document)
    form = _form(document)
    return PredictBody(name, form, document[form.value])


def decode_predict(body: PredictBody, signature: Signature) -> dict[str, Array]:
    """The signature's inputs, each of its own dtype.

    Rows: the outermost dimension counts the instances. Raises InvalidArgument, or Unimplemented
    for types that JSON cannot carry.
    """
    if not signature.inputs:
        name = body.signature_name or "DEFAULT"
        raise InvalidArgument(f"Failed to get input map for signature: {name}")
    kinds = _kinds(signature)
    decode = _rows if body.form is Form.ROWS else _columns
    with np.errstate(over="ignore"):
        return decode(body.content, kinds)


def _count_keys(document: dict[str, Any]) -> int:
    """Keys in a predict request: its own, and those of the objects that hold named tensors."""
    columns = document.get(Form.COLUMNS.value)
    rows = document.get(Form.ROWS.value)
    keys = len(document)
    if isinstance(columns, dict) and not is_base64(columns):
        keys += len(columns)
    if isinstance(rows, list) and rows and isinstance(rows[0], dict):
        keys += sum([len(row) for row in rows if isinstance(row, dict) and not is_base64(row)])
    return keys


def _form(document: dict[str, Any]) -> Form:
    given = [form for form in Form if form.value in document]
    if not given:
        raise InvalidArgument("Missing 'inputs' or 'instances' key")
    if len(given) > 1:
        raise InvalidArgument(
            f"JSON Value: {shown(document)} Not formatted correctly expecting only one of "
            "'inputs' or 'instances' keys to exist "
        )
    if given[0] is Form.ROWS:
        _check_instances(document, document[Form.ROWS.value])
    return given[0]


def _check_instances(document: dict[str, Any], rows: Any) -> None:
    if not isinstance(rows, list):
        raise InvalidArgument(
            f"JSON Value: {shown(document)} Excepting 'instances' to be an list/array"
        )
    if not rows:
        raise InvalidArgument(f"JSON Value: {shown(document)} No values in 'instances' array")


def _kinds(signature: Signature) -> dict[str, TensorType]:
    kinds = {}
    for alias, info in signature.inputs.items():
        if info.dtype not in BY_NUMBER:
            raise InvalidArgument(f"input {alias} is of a type that cannot be sent: {info.dtype}")
        kinds[alias] = BY_NUMBER[info.dtype]
    return kinds


def _columns(content: Any, kinds: Mapping[str, TensorType]) -> dict[str, Array]:
    named = {next(iter(kinds)): content} if len(kinds) == 1 else content
    if isinstance(content, dict) and not is_base64(content):
        named = content
    if not isinstance(named, dict) or not named.keys() >= kinds.keys():
        return decode_columns(content, kinds)
    arrays = {alias: dense(named[alias], kind) for alias, kind in kinds.items()}
    complete = {alias: array for alias, array in arrays.items() if array is not None}
    return complete if len(complete) == len(kinds) else decode_columns(content, kinds)


def _rows(content: list[Any], kinds: Mapping[str, TensorType]) -> dict[str, Array]:
    columns = _row_columns(content, kinds)
    if columns is None:
        return decode_rows(content, kinds)
    arrays = {alias: dense(columns[alias], kind) for alias, kind in kinds.items()}
    complete = {alias: array for alias, array in arrays.items() if array is not None}
    return complete if len(complete) == len(kinds) else decode_rows(content, kinds)


def _row_columns(
    content: list[Any], kinds: Mapping[str, TensorType]
) -> dict[str, list[Any]] | None:
    """Each input's values over all rows, or None where the rows are not alike."""
    if not isinstance(content[0], dict) or is_base64(content[0]):
        return {next(iter(kinds)): content} if len(kinds) == 1 else None
    if not all(isinstance(row, dict) and row.keys() == kinds.keys() for row in content):
        return None
    return {alias: [row[alias] for row in content] for alias in kinds}


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
    if accept.bounds is not None and array.size and not _within(array, *accept.bounds):
        return None
    if array.dtype != kind.numpy:
        array = array.astype(kind.numpy)
    return array.reshape(shape)


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
        flat = [to_bytes(v) if type(v) is str else unpack_base64(v) for v in flat]
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
