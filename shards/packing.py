"""Arrays into a frame's body and, without a copy, out of it. Pure.

An array is described in the header as (dtype code, *shape). Its bytes lie in the body, in C order,
little-endian, padded to a multiple of 8, in the order of the descriptions. bfloat16 travels as its
bits, uint16.
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np

from shardserve.batching.errors import InvalidArgument
from shardserve.shards.frames import COPY_BELOW, Buffers, ProtocolError, padding
from shardserve.shards.messages import Array

#: The dtypes that may cross the wire. The place in this list is the code; only ever append.
DTYPES: Final = tuple(
    np.dtype(kind)
    for kind in (
        *(np.float32, np.float64, np.float16),
        *(np.int8, np.int16, np.int32, np.int64),
        *(np.uint8, np.uint16, np.uint32, np.uint64),
        np.bool_,
        *(np.complex64, np.complex128),
    )
)
_CODES: Final = {dtype: code for code, dtype in enumerate(DTYPES)}
#: Not the tuple itself, which would take negative codes.
_DTYPES: Final = dict(enumerate(DTYPES))
_BOOL: Final = np.dtype(np.bool_)


def append_array(body: Buffers, array: Array) -> tuple[int, ...]:
    """Append an array's bytes to a body; return its description for the header.

    Raises InvalidArgument for an array of a dtype that the wire does not carry.
    """
    try:
        code = _CODES[array.dtype]
    except KeyError:
        raise InvalidArgument(f"the wire carries no array of {array.dtype}") from None
    nbytes = array.nbytes
    if nbytes < COPY_BELOW:
        body.append(array.tobytes())
    else:
        body.append(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)
    if nbytes % 8:
        body.append(padding(nbytes))
    return (code, *array.shape)


def read_arrays(descriptions: Any, data: bytes | memoryview, start: int, stop: int) -> list[Array]:
    """Read-only views of the arrays that make up a body, which is `data[start:stop]`.

    Raises ProtocolError, or one of `frames.MALFORMED`, unless the descriptions are such, and the
    body is exactly what they say.
    """
    arrays: list[Array] = []
    for description in descriptions:
        shape = description[1:]
        dtype = _DTYPES[description[0]]
        array: Array = np.ndarray(shape, dtype, data, start)
        if array.shape != shape:
            raise ProtocolError(f"not an array's description: {description!r:.80}")
        if dtype is _BOOL and array.view(np.uint8).max(initial=0) > 1:
            raise ProtocolError("array of bool has bytes that are neither 0 nor 1")
        arrays.append(array)
        start += array.nbytes + 7 & ~7
    if start != stop:
        raise ProtocolError("a body is not as long as its arrays")
    return arrays
