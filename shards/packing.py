"""Arrays into a frame's body and, without a copy, out of it. Pure.

An array is described in the header as (dtype code, *shape). Its bytes lie in the body, in C order,
little-endian, padded to a multiple of 8, in the order of the descriptions. bfloat16 travels as its
bits, uint16.
"""

from __future__ import annotations

import math
from typing import Any, Final

import numpy as np

from shardserve.batching.errors import InvalidArgument
from shardserve.shards.frames import COPY_BELOW, Buffers, ProtocolError, padding
from shardserve.shards.messages import Array

RANK_LIMIT: Final = 8

#: The dtypes that may cross the wire. The place in this list is the code; only ever append.
DTYPES: Final = tuple(
    np.dtype(kind)
    for kind in (
        *(np.float32, np.float64, np.float16),
        *(np.int8, np.int16, np.int32, np.int64),
        *(np.uint8, np.uint16, np.uint32, np.uint64),
        np.bool_,
    )
)
_ITEMSIZES: Final = tuple(dtype.itemsize for dtype in DTYPES)
_CODES: Final = {dtype: code for code, dtype in enumerate(DTYPES)}
_BOOL: Final = np.dtype(np.bool_)
_BYTES_LIMIT: Final = 1 << 63


def append_array(buffers: Buffers, array: Array) -> tuple[int, ...]:
    """Append an array's bytes to a body; return its description for the header.

    Raises InvalidArgument for an array of a dtype or rank we do not carry.
    """
    shape = array.shape
    code = _CODES.get(array.dtype)
    if code is None or len(shape) > RANK_LIMIT:
        raise InvalidArgument(f"the wire carries no array of {array.dtype} and shape {shape}")
    nbytes = array.nbytes
    if nbytes < COPY_BELOW:
        buffers.append(array.tobytes())
    else:
        buffers.append(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)
    if nbytes % 8:
        buffers.append(padding(nbytes))
    return (code, *shape)


def read_arrays(descriptions: Any, body: memoryview) -> list[Array]:
    """Read-only views of the arrays that make up a body.

    Raises ProtocolError unless the descriptions are such, and the body is exactly what they say.
    """
    if type(descriptions) is not tuple:
        raise _not_described(descriptions)
    arrays: list[Array] = []
    start, end = 0, len(body)
    for description in descriptions:
        if type(description) is not tuple or not 0 < len(description) <= RANK_LIMIT + 1:
            raise _not_described(description)
        code, shape = description[0], description[1:]
        if type(code) is not int or not 0 <= code < len(DTYPES):
            raise _not_described(description)
        dtype = DTYPES[code]
        nbytes = _ITEMSIZES[code]
        for size in shape:
            if type(size) is not int or size < 0:
                raise _not_described(description)
            nbytes *= size
        stop = start + nbytes
        if stop > end:
            raise ProtocolError(f"array of {dtype} and shape {shape} is longer than the body")
        if nbytes == 0:
            arrays.append(_empty(shape, dtype))
            continue
        if dtype is _BOOL and max(body[start:stop]) > 1:
            raise ProtocolError("array of bool has bytes that are neither 0 nor 1")
        arrays.append(np.ndarray(shape, dtype, body, start))
        start = stop + 7 & ~7
    if start != end:
        raise ProtocolError(f"body has {end} bytes, its arrays {start}")
    return arrays


def _not_described(description: object) -> ProtocolError:
    return ProtocolError(f"not an array's description: {description!r:.80}")


def _empty(shape: tuple[int, ...], dtype: np.dtype[Any]) -> Array:
    if math.prod(size or 1 for size in shape) * dtype.itemsize >= _BYTES_LIMIT:
        raise ProtocolError(f"shape {shape} is beyond what an array can have")
    array: Array = np.empty(shape, dtype)
    array.flags.writeable = False
    return array
