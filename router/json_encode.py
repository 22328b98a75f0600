"""Outputs as the JSON of a REST reply, in the layout of RapidJSON's pretty writer."""

from __future__ import annotations

import base64
import itertools
import json
from collections.abc import Mapping

import numpy as np
import orjson

from shardserve.batching.errors import InvalidArgument
from shardserve.router.json_codec import Form
from shardserve.router.json_layout import Nesting, Style, empty, nesting, new_line
from shardserve.router.json_numbers import join_numbers
from shardserve.router.servable import Array
from shardserve.router.tensor_types import BY_NUMPY, STRING

#: Outputs so named hold bytes rather than text, and are written in base64.
_BYTES_SUFFIX = "_bytes"

_WRITABLE = frozenset(
    ("float", "double", "int32", "int16", "int8", "uint8", "string", "int64", "bool", "uint32",
     "uint64")
)  # fmt: skip

#: Between the texts of rows; no JSON text holds it.
_CUT = b"\0"


def encode_predict(outputs: Mapping[str, Array], form: Form) -> bytes:
    """The reply to a request of that form: `predictions` by row, or `outputs` by name.

    One output stands alone, several make objects. Floats read back as the very same floats; NaN
    and the infinities are bare tokens. Raises InvalidArgument for a type that JSON cannot carry,
    and by rows for outputs that do not all have the same number of rows.
    """
    if not outputs:
        raise InvalidArgument("Cannot convert empty tensor map to JSON")
    for array in outputs.values():
        _check_type(array)
    if form is Form.COLUMNS:
        return _member("outputs", _columns(outputs))
    _check_rows(outputs)
    if len(outputs) == 1:
        [(name, array)] = outputs.items()
        return _member("predictions", _plain_rows(name, array))
    return _member("predictions", _object_rows(outputs))


def encode_classifications(labels: Array | None, scores: Array | None) -> bytes:
    """The reply to classify: for each example its classes, each [label, score].

    Both are [examples, classes], at least one of them there; empty labels stand in for the other,
    or zeros. Raises InvalidArgument for no examples.
    """
    shape = _shape_of(labels, scores)
    if shape[0] == 0:
        raise InvalidArgument("Cannot convert empty ClassificationResults to JSON")
    if shape[1] == 0:
        return _member("results", b"[" + b", ".join([b"[]"] * shape[0]) + _END_OF_ROWS)
    count = shape[0] * shape[1]
    numbers = np.zeros(count, np.float32) if scores is None else scores
    names = _texts(labels.ravel().tolist()) if labels is not None else [b'""'] * count
    texts = join_numbers(numbers, (_CUT,), ()).split(_CUT)
    pairs = [b"[%b, %b]" % pair for pair in zip(names, texts, strict=True)]
    rows = nesting(shape, Style.LINE, 1).joined(pairs)
    return _member("results", rows[:-1] + _END_OF_ROWS)


def encode_regressions(values: Array) -> bytes:
    """The reply to regress, of a flat array. Raises InvalidArgument for an empty one."""
    if not values.size:
        raise InvalidArgument("Cannot convert empty RegressionResults to JSON")
    return _member("results", b"[" + join_numbers(values, (b", ",), ()) + b"]")


def encode_error(message: str) -> bytes:
    """What went wrong, as the body of a reply."""
    return _member("error", orjson.dumps(message.encode("utf-8", "replace").decode("utf-8")))


def _member(name: str, value: bytes) -> bytes:
    """An object of that one member."""
    return b"".join((b'{\n    "', name.encode(), b'": ', value, b"\n}"))


#: The original ends lists of rows so, each of which is on one line.
_END_OF_ROWS = new_line(1) + b"]"


def _check_type(array: Array) -> None:
    kind = BY_NUMPY.get(array.dtype)
    if kind is None or kind.name not in _WRITABLE:
        written = kind.name if kind else str(array.dtype)
        raise InvalidArgument(f"Failed to write JSON value for tensor type: {written}")


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


def _plain_rows(name: str, array: Array) -> bytes:
    text = _array(name, array, Style.LINE, 1)
    return text[:-1] + _END_OF_ROWS if len(array) else text


def _object_rows(outputs: Mapping[str, Array]) -> bytes:
    columns = [_row_texts(name, array) for name, array in outputs.items()]
    if not columns[0]:
        return b"[]"
    pieces = []
    before = b"," + new_line(2) + b"{" + new_line(3)
    for name, texts in zip(outputs, columns, strict=True):
        pieces += [itertools.repeat(before + orjson.dumps(name) + b": "), texts]
        before = b"," + new_line(3)
    pieces.append(itertools.repeat(new_line(2) + b"}"))
    rows = b"".join(itertools.chain.from_iterable(zip(*pieces, strict=False)))
    return b"[" + rows[1:] + _END_OF_ROWS


def _row_texts(name: str, array: Array) -> list[bytes]:
    """The text of each row, within an object in the list of rows."""
    shape = array.shape[1:]
    if not array.size:
        return [empty(shape, Style.LINE, 3)] * len(array) if len(array) else []
    if not shape:
        return _elements(name, array, Nesting(b"", (_CUT,), (), b""), 3).split(_CUT)
    row = nesting(shape, Style.LINE, 3)
    cut = row.closing + _CUT + row.opening
    sizes = (*row.sizes, array.size // len(array))
    rows = Nesting(row.opening, (*row.separators, cut), sizes, row.closing)
    return _elements(name, array, rows, 3 + len(shape)).split(_CUT)


def _columns(outputs: Mapping[str, Array]) -> bytes:
    if len(outputs) == 1:
        [(name, array)] = outputs.items()
        return _array(name, array, Style.BLOCK, 1)
    members = [
        b"".join((new_line(2), orjson.dumps(name), b": ", _array(name, array, Style.BLOCK, 2)))
        for name, array in outputs.items()
    ]
    return b"{" + b",".join(members) + new_line(1) + b"}"


def _array(name: str, array: Array, style: Style, depth: int) -> bytes:
    """The text of a whole array, within `depth` containers."""
    if not array.size:
        return empty(array.shape, style, depth)
    if not array.ndim:
        return _elements(name, array, Nesting(b"", (b"",), (), b""), depth)
    return _elements(name, array, nesting(array.shape, style, depth), depth + array.ndim)


def _elements(name: str, array: Array, around: Nesting, depth: int) -> bytes:
    """The elements, which lie within `depth` containers, with all that is around them."""
    if BY_NUMPY[array.dtype] is not STRING:
        return around.around(join_numbers(array, around.separators, around.sizes))
    flat = array.ravel().tolist()
    texts = _base64(flat, depth) if name.endswith(_BYTES_SUFFIX) else _texts(flat)
    return around.joined(texts)


def _base64(values: list[bytes], depth: int) -> list[bytes]:
    before = b"{" + new_line(depth + 1) + b'"b64": "'
    after = b'"' + new_line(depth) + b"}"
    return [before + base64.b64encode(raw) + after for raw in values]


def _texts(values: list[bytes]) -> list[bytes]:
    try:
        return [orjson.dumps(raw.decode()) for raw in values]
    except UnicodeDecodeError:
        return [_quoted(raw) for raw in values]


def _quoted(raw: bytes) -> bytes:
    """A string; bytes that are not UTF-8 go out as they are."""
    quoted = json.dumps(raw.decode("utf-8", "surrogateescape"), ensure_ascii=False)
    return quoted.encode("utf-8", "surrogateescape")


def _shape_of(labels: Array | None, scores: Array | None) -> tuple[int, int]:
    there = scores if labels is None else labels
    assert there is not None
    rows, columns = there.shape
    return rows, columns
