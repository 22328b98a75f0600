"""Requests to stage actors and their replies, to and from frames. Pure; nothing is unpickled.

The header's fields, by kind; forms are as `tensor_packing` has them, arrays as `packing` does:

    STAGE_REQUEST  seconds left, stage, rows, priority, (form, ...), (array, ...)
    STAGE_REPLY    seconds queued, seconds at work, (form, ...), (array, ...)

The rest is as in `wire`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Final

from shardserve.batching.errors import ResourceExhausted
from shardserve.batching.tasks import Priority
from shardserve.shards.exchange import Exchange
from shardserve.shards.frames import (
    ITEMS_LIMIT,
    MALFORMED,
    Buffers,
    Frame,
    Kind,
    ProtocolError,
    frame,
    unpack,
)
from shardserve.shards.messages import Array
from shardserve.shards.packing import read_arrays
from shardserve.shards.stage_messages import StageReply, StageRequest
from shardserve.shards.tensor_packing import Form, append_tensor, read_tensor


def encode_stage_request(
    number: int, seconds_left: float, request: StageRequest
) -> tuple[Buffers, int]:
    """A STAGE_REQUEST frame's buffers, and their bytes together.

    Raises as `append_tensor` does, and ResourceExhausted for too many tensors.
    """
    body, forms, arrays = _packed(request.tensors)
    fields = (seconds_left, request.stage, request.rows, int(request.priority), forms, arrays)
    return frame(Kind.STAGE_REQUEST, number, fields, body)


def decode_stage_request(received: Frame) -> tuple[float, StageRequest]:
    """A STAGE_REQUEST's seconds left, and its request."""
    _, _, header, data, start, stop = received
    try:
        seconds_left, stage, rows, priority, forms, descriptions = unpack(header)
        tensors = _read(forms, descriptions, data, start, stop)
        if type(stage) is not str or type(rows) is not int or rows < 0 or not seconds_left >= 0.0:
            raise ProtocolError("STAGE_REQUEST names no stage, or no rows, or has no time left")
        return seconds_left, StageRequest(stage, tensors, rows, Priority(priority))
    except MALFORMED as error:
        raise ProtocolError(f"STAGE_REQUEST is malformed: {error!r}") from error


def encode_stage_reply(
    number: int, tensors: tuple[Array, ...], queue_seconds: float, run_seconds: float
) -> tuple[Buffers, int]:
    """A STAGE_REPLY frame's buffers, and their bytes together. Raises as the request's encoder."""
    body, forms, arrays = _packed(tensors)
    return frame(Kind.STAGE_REPLY, number, (queue_seconds, run_seconds, forms, arrays), body)


def decode_stage_reply(received: Frame) -> StageReply:
    """A STAGE_REPLY's reply."""
    _, _, header, data, start, stop = received
    try:
        queue_seconds, run_seconds, forms, descriptions = unpack(header)
        tensors = _read(forms, descriptions, data, start, stop)
        if not (0.0 <= queue_seconds < math.inf and 0.0 <= run_seconds < math.inf):
            raise ProtocolError("STAGE_REPLY has seconds that are none")
    except MALFORMED as error:
        raise ProtocolError(f"STAGE_REPLY is malformed: {error!r}") from error
    return StageReply(tensors, queue_seconds, run_seconds)


#: What routers and stage actors say to each other.
STAGES: Final = Exchange(
    Kind.STAGE_REQUEST,
    Kind.STAGE_REPLY,
    encode_stage_request,
    decode_stage_request,
    encode_stage_reply,
    decode_stage_reply,
)


def _packed(tensors: Sequence[Array]) -> tuple[Buffers, list[Form], list[tuple[int, ...]]]:
    body: Buffers = []
    arrays: list[tuple[int, ...]] = []
    forms = [append_tensor(body, arrays, tensor) for tensor in tensors]
    if len(arrays) > ITEMS_LIMIT:
        raise ResourceExhausted(
            f"{len(forms)} tensors, {len(arrays)} arrays, the limit is {ITEMS_LIMIT}"
        )
    return body, forms, arrays


def _read(
    forms: Any, descriptions: Any, data: bytes | memoryview, start: int, stop: int
) -> tuple[Array, ...]:
    arrays = iter(read_arrays(descriptions, data, start, stop))
    tensors = tuple([read_tensor(form, arrays) for form in forms])
    if next(arrays, None) is not None:
        raise ProtocolError("a message has an array that belongs to no tensor")
    return tensors
