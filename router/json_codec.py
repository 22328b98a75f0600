"""A REST predict request's tensors, by whole arrays; see `json_strict` for what does not fit."""

from __future__ import annotations

import enum
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from shardserve.batching.errors import InvalidArgument
from shardserve.router.json_dense import accepted_prefix, dense, is_base64
from shardserve.router.json_number_lists import NumberLists, number_lists
from shardserve.router.json_strict import decode_columns, decode_rows
from shardserve.router.json_text import (
    may_repeat_a_key,
    parse_exactly,
    parse_object,
    shown,
    signature_name_of,
)
from shardserve.router.servable import Array, Signature
from shardserve.router.tensor_types import BY_NUMBER, TensorType


class Form(enum.Enum):
    """How a request lays out its tensors, and therefore how the reply does."""

    ROWS = "instances"
    COLUMNS = "inputs"


_FORMS = {form.value: form for form in Form}
_ROWS, _COLUMNS = _FORMS


class PredictBody(NamedTuple):
    """A request body, parsed but for its tensors, which need the signature's types.

    `content` is the value of "instances" or "inputs", as Python has it or as `NumberLists`.
    """

    signature_name: str
    form: Form
    content: Any


def parse_predict(body: bytes) -> PredictBody:
    """Raises InvalidArgument, in TensorFlow Serving's words, unless `body` is a predict request."""
    numbers = number_lists(body, _FORMS)
    if numbers is not None:
        return PredictBody(numbers.signature_name, _FORMS[numbers.key], numbers)
    return _parse_values(body)


def _parse_values(body: bytes) -> PredictBody:
    document = parse_object(body)
    # There is a colon for each key.
    if body.count(b":") > len(document) and may_repeat_a_key(body, _count_keys(document)):
        document = parse_exactly(body)
    name = signature_name_of(document)
    key = _key(document)
    return PredictBody(name, _FORMS[key], document[key])


def decode_predict(body: PredictBody, signature: Signature) -> dict[str, Array]:
    """The signature's inputs, each of its own dtype.

    Rows: the outermost dimension counts the instances. Raises InvalidArgument, or Unimplemented
    for types that JSON cannot carry.
    """
    if not signature.inputs:
        name = body.signature_name or "DEFAULT"
        raise InvalidArgument(f"Failed to get input map for signature: {name}")
    kinds = _kinds(signature)
    if isinstance(body.content, NumberLists):
        return _numbers(body.content, kinds)
    return _values(body, kinds)


def _numbers(lists: NumberLists, kinds: Mapping[str, TensorType]) -> dict[str, Array]:
    if len(kinds) == 1:
        [(alias, kind)] = kinds.items()
        with np.errstate(over="ignore"):
            array = lists.as_array(kind)
        if array is not None:
            return {alias: array}
    return _values(_parse_values(lists.body), kinds)


def _values(body: PredictBody, kinds: Mapping[str, TensorType]) -> dict[str, Array]:
    decode = _rows if body.form is Form.ROWS else _columns
    with np.errstate(over="ignore"):
        return decode(body.content, kinds)


def _count_keys(document: dict[str, Any]) -> int:
    """Keys in a predict request: its own, and those of the objects that hold named tensors."""
    columns = document.get(_COLUMNS)
    rows = document.get(_ROWS)
    keys = len(document)
    if isinstance(columns, dict) and not is_base64(columns):
        keys += len(columns)
    if isinstance(rows, list) and rows and isinstance(rows[0], dict):
        keys += sum([len(row) for row in rows if isinstance(row, dict) and not is_base64(row)])
    return keys


def _key(document: dict[str, Any]) -> str:
    """Which of the two keys the tensors are below."""
    if _ROWS not in document:
        if _COLUMNS not in document:
            raise InvalidArgument("Missing 'inputs' or 'instances' key")
        return _COLUMNS
    if _COLUMNS in document:
        raise InvalidArgument(
            f"JSON Value: {shown(document)} Not formatted correctly expecting only one of "
            "'inputs' or 'instances' keys to exist "
        )
    _check_instances(document, document[_ROWS])
    return _ROWS


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
    arrays = _dense_rows(content, kinds)
    if arrays is not None:
        return arrays
    # The first row that does not go with those before it says what is wrong, if anything is.
    first = _dense_rows(content[:1], kinds)
    shapes = {} if first is None else {alias: a.shape[1:] for alias, a in first.items()}

    def accepts(start: int, end: int) -> bool:
        part = _dense_rows(content[start:end], kinds)
        return part is not None and all(part[alias].shape[1:] == shapes[alias] for alias in kinds)

    place = accepted_prefix(len(content), accepts) if shapes else 0
    decode_rows({0: content[0], place: content[place]}, kinds)
    return decode_rows(dict(enumerate(content)), kinds)


def _dense_rows(content: list[Any], kinds: Mapping[str, TensorType]) -> dict[str, Array] | None:
    columns = _row_columns(content, kinds)
    if columns is None:
        return None
    arrays = {alias: dense(columns[alias], kind) for alias, kind in kinds.items()}
    complete = {alias: array for alias, array in arrays.items() if array is not None}
    return complete if len(complete) == len(kinds) else None


def _row_columns(
    content: list[Any], kinds: Mapping[str, TensorType]
) -> dict[str, list[Any]] | None:
    """Each input's values over all rows, or None where the rows are not alike."""
    if not isinstance(content[0], dict) or is_base64(content[0]):
        return {next(iter(kinds)): content} if len(kinds) == 1 else None
    if not all(isinstance(row, dict) and row.keys() == kinds.keys() for row in content):
        return None
    return {alias: [row[alias] for row in content] for alias in kinds}
