"""Outputs as the JSON of a REST predict reply."""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping
from typing import Any

import numpy as np
import orjson

from shardserve.batching.errors import InvalidArgument
from shardserve.router.json_codec import Form
from shardserve.router.servable import Array
from shardserve.router.tensor_types import BY_NUMPY, STRING

#: Outputs so named hold bytes rather than text, and are written in base64.
_BYTES_SUFFIX = "_bytes"

_WRITABLE = frozenset(
    ("float", "double", "int32", "int16", "int8", "uint8", "string", "int64", "bool", "uint32",
     "uint64")
)  # fmt: skip


def encode_predict(outputs: Mapping[str, Array], form: Form) -> bytes:
    """The reply to a request of that form: `predictions` by row, or `outputs` by name.

    One output stands alone, several make objects. Floats read back as the very same floats; NaN
    and the infinities are bare tokens. Raises InvalidArgument for a type that JSON cannot carry,
    and by rows for outputs that do not all have the same number of rows.
    """
    if not outputs:
        raise InvalidArgument("Cannot convert empty tensor map to JSON")
    if form is Form.ROWS:
        return _dumps({"predictions": _by_row(outputs)})
    values = {name: _value(array, name) for name, array in outputs.items()}
    return _dumps({"outputs": values if len(values) > 1 else next(iter(values.values()))})


def _by_row(outputs: Mapping[str, Array]) -> Any:
    _check_rows(outputs)
    if len(outputs) == 1:
        name, array = next(iter(outputs.items()))
        return _value(array, name)
    columns = [_rows_of(array, name) for name, array in outputs.items()]
    return [dict(zip(outputs, row, strict=True)) for row in zip(*columns, strict=True)]


def _check_rows(outputs: Mapping[str, Array]) -> None:
    expected = None
    for name, array in outputs.items():
        if array.ndim == 0:
            raise InvalidArgument(f"Tensor name: {name} has no shape information ")
        if expected is not None and len(array) != expected:
            raise InvalidArgument(
                f"Tensor name: {name} has inconsistent batch size: {len(array)} "
                f"expecting: {expected}"
            )
        expected = len(array)


def _rows_of(array: Array, name: str) -> Any:
    """What orjson writes for each row of the array."""
    if _is_plain(array):
        return array.tolist() if array.ndim == 1 and array.dtype.kind != "f" else array
    return [_value(row, name) for row in _as_arrays(array)]


def _as_arrays(array: Array) -> list[Array]:
    return [array[place : place + 1].reshape(array.shape[1:]) for place in range(len(array))]


def _value(array: Array, name: str) -> Any:
    """What orjson writes for the array: itself wherever possible."""
    kind = BY_NUMPY.get(array.dtype)
    if kind is None or kind.name not in _WRITABLE:
        written = kind.name if kind else str(array.dtype)
        raise InvalidArgument(f"Failed to write JSON value for tensor type: {written}")
    if kind is STRING:
        return _strings(array, name)
    if not _is_plain(array):
        return orjson.Fragment(_with_tokens(array))
    return array if array.ndim else array[()]


def _is_plain(array: Array) -> bool:
    """Whether orjson writes the elements as they should be: it knows neither NaN nor bytes."""
    if array.dtype.kind == "f":
        return bool(np.isfinite(array).all())
    return array.dtype.kind in "iub"


def _with_tokens(array: Array) -> bytes:
    """JSON of floats of which some are not finite."""
    finite = np.isfinite(array)
    texts = orjson.dumps(np.where(finite, array, 0).ravel(), option=_NUMPY)[1:-1].split(b",")
    flat = array.ravel()
    for place in np.flatnonzero(~finite.ravel()):
        texts[place] = _token(flat[place])
    return _nested(texts, array.shape)


def _token(value: float) -> bytes:
    if np.isnan(value):
        return b"NaN"
    return b"Infinity" if value > 0 else b"-Infinity"


def _nested(texts: list[bytes], shape: tuple[int, ...]) -> bytes:
    """The texts of all elements, put into lists from the innermost dimension out."""
    for size in reversed(shape):
        texts = [
            b"[" + b",".join(texts[start : start + size]) + b"]"
            for start in range(0, len(texts), size)
        ]
    return texts[0]


def _strings(array: Array, name: str) -> Any:
    flat = array.ravel().tolist()
    if name.endswith(_BYTES_SUFFIX):
        values: list[Any] = [{"b64": base64.b64encode(raw).decode("ascii")} for raw in flat]
    else:
        values = [_text(raw) for raw in flat]
    if array.ndim <= 1:
        return values if array.ndim else values[0]
    nested = np.empty(len(values), object)
    nested[:] = values
    return nested.reshape(array.shape).tolist()


def _text(raw: bytes) -> Any:
    """A string; one that is not UTF-8 goes out byte by byte, as it is."""
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError:
        quoted = json.dumps(raw.decode("utf-8", "surrogateescape"), ensure_ascii=False)
        return orjson.Fragment(quoted.encode("utf-8", "surrogateescape"))


_NUMPY = orjson.OPT_SERIALIZE_NUMPY


def _dumps(value: Any) -> bytes:
    return orjson.dumps(value, option=_NUMPY, default=_contiguous)


def _contiguous(value: Any) -> Any:
    """orjson asks here about arrays that it cannot write as they lie."""
    if isinstance(value, np.ndarray):
        return np.ascontiguousarray(value)
    raise TypeError(f"{type(value).__name__} is not JSON")
