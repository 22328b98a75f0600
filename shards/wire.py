"""Requests, replies and what goes with them, to and from frames. Pure; nothing is ever unpickled.

The header's fields, by kind; arrays are described as `packing` has it, in the body's order:

    REQUEST  number, budget in microseconds, ((slice id, op, has), ...), (array, ...)
             has: 1 if the part has offsets, plus 2 if it has weights
             arrays: of each part its rows, its offsets and its weights, as it has them
    CANCEL   number
    REPLY    number, queue seconds, lookup seconds, (result, ...)
    ERROR    number, code, message
    PING, PONG   none

A request's number is its client's, and unique among those in flight on its connection. Decoders
give exactly what was encoded, or raise ProtocolError and nothing else; their arrays are read-only
views of the frame's body. What they allocate is a small multiple of the header's size.
"""

from __future__ import annotations

import math
from typing import Final

from shardserve.batching.errors import ResourceExhausted, ServingError, error_of
from shardserve.shards.frames import (
    ITEMS_LIMIT,
    MALFORMED,
    TEXT_LIMIT,
    Buffers,
    Frame,
    Kind,
    ProtocolError,
    bare_fields,
    bare_frame,
    frame,
    unpack,
)
from shardserve.shards.messages import Array, LookupReply, LookupRequest, Op, Part
from shardserve.shards.packing import append_array, read_arrays

_OPS: Final = {op.value: op for op in Op}
_OFFSETS: Final = 1
_WEIGHTS: Final = 2

PING: Final = bare_frame(Kind.PING)
PONG: Final = bare_frame(Kind.PONG)


def encode_request(number: int, budget_us: int, request: LookupRequest) -> tuple[Buffers, int]:
    """A REQUEST frame's buffers, and their bytes together.

    Raises InvalidArgument for an array of a dtype or rank that the wire does not carry,
    ResourceExhausted for too many arrays.
    """
    body: Buffers = []
    parts = []
    arrays = []
    for part in request.parts:
        has = 0
        arrays.append(append_array(body, part.rows))
        if part.offsets is not None:
            has |= _OFFSETS
            arrays.append(append_array(body, part.offsets))
        if part.weights is not None:
            has |= _WEIGHTS
            arrays.append(append_array(body, part.weights))
        parts.append((part.slice_id, part.op, has))
    if len(arrays) > ITEMS_LIMIT:
        raise _too_many(len(arrays))
    return frame(Kind.REQUEST, (number, budget_us, parts, arrays), body)


def encode_reply(
    number: int, results: tuple[Array, ...], queue_seconds: float, lookup_seconds: float
) -> tuple[Buffers, int]:
    """A REPLY frame's buffers, and their bytes together. Raises as `encode_request` does."""
    body: Buffers = []
    arrays = []
    for result in results:
        arrays.append(append_array(body, result))  # noqa: PERF401 (one call fewer)
    if len(arrays) > ITEMS_LIMIT:
        raise _too_many(len(arrays))
    return frame(Kind.REPLY, (number, queue_seconds, lookup_seconds, arrays), body)


def encode_error(number: int, error: ServingError) -> bytes:
    """An ERROR frame. An overlong message is cut."""
    return bare_frame(Kind.ERROR, number, int(error.code), cut_text(error.message))


def encode_cancel(number: int) -> bytes:
    """A CANCEL frame."""
    return bare_frame(Kind.CANCEL, number)


def decode_request(frame: Frame) -> tuple[int, int, LookupRequest]:
    """A REQUEST's number, budget in microseconds, and request."""
    _, header, body = frame
    try:
        number, budget_us, fields, descriptions = unpack(header)
        arrays = iter(read_arrays(descriptions, body))
        parts = []
        for slice_id, op, has in fields:
            if type(slice_id) is not int or not 0 <= has <= _OFFSETS | _WEIGHTS:
                raise ProtocolError("REQUEST has a part that is none")
            rows = next(arrays)
            offsets = next(arrays) if has & _OFFSETS else None
            weights = next(arrays) if has & _WEIGHTS else None
            parts.append(Part(slice_id, _OPS[op], rows, offsets, weights))
    except MALFORMED as error:
        raise ProtocolError(f"REQUEST is malformed: {error!r}") from error
    if type(number) is not int or type(budget_us) is not int or budget_us < 0:
        raise ProtocolError("REQUEST has no number or no budget")
    if next(arrays, None) is not None:
        raise ProtocolError("REQUEST has more arrays than its parts need")
    return number, budget_us, LookupRequest(tuple(parts))


def decode_reply(frame: Frame) -> tuple[int, LookupReply]:
    """A REPLY's number and reply."""
    _, header, body = frame
    try:
        number, queue_seconds, lookup_seconds, descriptions = unpack(header)
        results = tuple(read_arrays(descriptions, body))
    except MALFORMED as error:
        raise ProtocolError(f"REPLY is malformed: {error!r}") from error
    if type(number) is not int:
        raise ProtocolError("REPLY has no number")
    if type(queue_seconds) is not float or type(lookup_seconds) is not float:
        raise ProtocolError("REPLY has no seconds")
    if not (0.0 <= queue_seconds < math.inf and 0.0 <= lookup_seconds < math.inf):
        raise ProtocolError("REPLY has seconds that are none")
    return number, LookupReply(results, queue_seconds, lookup_seconds)


def decode_error(frame: Frame) -> tuple[int, ServingError]:
    """An ERROR's number, and the error as it was raised at the shard."""
    number, code, message = bare_fields(frame, int, int, str)
    return number, error_of(code, message)


def decode_cancel(frame: Frame) -> int:
    """A CANCEL's number."""
    number: int
    (number,) = bare_fields(frame, int)
    return number


def cut_text(text: str) -> str:
    """`text`, cut so that it surely fits one msgpack string."""
    encoded = text.encode(errors="replace")
    if len(encoded) <= TEXT_LIMIT:
        return encoded.decode()
    return encoded[: TEXT_LIMIT - 4].decode(errors="ignore") + " ..."


def _too_many(count: int) -> ResourceExhausted:
    return ResourceExhausted(f"{count} arrays for one message, the limit is {ITEMS_LIMIT}")
