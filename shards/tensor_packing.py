"""Tensors of every dtype that a request can carry as arrays that `packing` can carry. Pure.

Each tensor has a form, which says what became of it:

    0       an array of its own dtype
    a name  an array of the bits of the dtype of this name, which numpy itself does not have
    a shape strings of this shape, as two arrays: the lengths, uint32 [n], and all bytes, uint8 [m]
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final

import ml_dtypes
import numpy as np

from shardserve.batching.errors import InvalidArgument, ResourceExhausted
from shardserve.shards.frames import Buffers, ProtocolError
from shardserve.shards.messages import Array
from shardserve.shards.packing import append_array

Form = int | str | tuple[int, ...]

_PLAIN: Final = 0
#: By name: a dtype, and one of the same size that the wire carries. Quantised integers are
#: structures of one field to TensorFlow.
_BITS: Final[dict[str, tuple[np.dtype[Any], np.dtype[Any]]]] = {
    "bfloat16": (np.dtype(ml_dtypes.bfloat16), np.dtype(np.uint16)),
    **{
        name: (np.dtype(getattr(ml_dtypes, name)), np.dtype(np.uint8))
        for name in (
            *("float8_e5m2", "float8_e4m3fn", "float8_e4m3fnuz", "float8_e4m3b11fnuz"),
            *("float8_e5m2fnuz", "float4_e2m1fn", "int4", "uint4", "int2", "uint2"),
        )
    },
    **{
        f"q{name}": (np.dtype([(f"q{name}", name)]), np.dtype(name))
        for name in ("int8", "uint8", "int16", "uint16", "int32")
    },
}
_NAMES: Final = {dtype: name for name, (dtype, _) in _BITS.items()}
_LENGTHS: Final = np.dtype(np.uint32)
_BYTES: Final = np.dtype(np.uint8)
_OBJECT: Final = np.dtype(object)


def append_tensor(body: Buffers, arrays: list[tuple[int, ...]], tensor: Array) -> Form:
    """Append a tensor's bytes to a body, and what describes them to `arrays`; return its form.

    Raises InvalidArgument for an array of a dtype that no tensor has, and for strings that are not
    bytes; ResourceExhausted for a string of 4 GiB.
    """
    if tensor.dtype == _OBJECT:
        return _append_strings(body, arrays, tensor)
    name = _NAMES.get(tensor.dtype)
    if name is None:
        arrays.append(append_array(body, tensor))
        return _PLAIN
    arrays.append(append_array(body, tensor.view(_BITS[name][1])))
    return name


def read_tensor(form: Any, arrays: Iterator[Array]) -> Array:
    """The tensor of a form, from the next of `arrays`. It is read-only.

    Raises ProtocolError, or one of `frames.MALFORMED`, for a form that does not fit them.
    """
    if type(form) is tuple:
        return _read_strings(form, next(arrays), next(arrays))
    if type(form) is str:
        dtype, bits = _BITS[form]
        return _of_dtype(next(arrays), bits).view(dtype)
    if form != _PLAIN:
        raise ProtocolError(f"not a tensor's form: {form!r:.80}")
    return next(arrays)


def _append_strings(body: Buffers, arrays: list[tuple[int, ...]], tensor: Array) -> tuple[int, ...]:
    strings = tensor.reshape(-1).tolist()
    kinds = set(map(type, strings)) - {bytes}
    if kinds:
        found = ", ".join(sorted(kind.__name__ for kind in kinds))
        raise InvalidArgument(f"an array of objects holds {found}; strings are bytes")
    try:
        lengths = np.fromiter(map(len, strings), _LENGTHS, len(strings))
    except OverflowError:
        raise ResourceExhausted("the wire carries no string of 4 GiB or more") from None
    arrays.append(append_array(body, lengths))
    arrays.append(append_array(body, np.frombuffer(b"".join(strings), _BYTES)))
    return tensor.shape


def _read_strings(shape: tuple[int, ...], lengths: Array, joined: Array) -> Array:
    ends = np.cumsum(_of_dtype(lengths, _LENGTHS), dtype=np.int64)
    data = _of_dtype(joined, _BYTES).tobytes()
    if lengths.ndim != 1 or joined.ndim != 1 or (ends[-1] if ends.size else 0) != len(data):
        raise ProtocolError("a tensor's strings are not as long as is said")
    strings = np.empty(len(ends), _OBJECT)
    start = 0
    for place, end in enumerate(ends.tolist()):
        strings[place] = data[start:end]
        start = end
    shaped = strings.reshape(shape)
    if shaped.shape != shape:
        raise ProtocolError(f"not a shape of strings: {shape!r:.80}")
    shaped.flags.writeable = False
    return shaped


def _of_dtype(array: Array, dtype: np.dtype[Any]) -> Array:
    if array.dtype != dtype:
        raise ProtocolError(f"a tensor lies in an array of {array.dtype}, not {dtype}")
    return array
