"""Requests, replies and what goes with them, to and from frames. Pure; nothing is ever unpickled.

The header's fields, by kind; arrays are described as `packing` has it, in the body's order:

    REQUEST  seconds left, ((slice id, form), ...), (array, ...)
             form: the op, plus 64 if the part has offsets, plus 128 if it has weights
             arrays: of each part its rows, its offsets and its weights, as it has them
             The request's scores follow its parts.
             form: 256, plus 512 if classes are columns, plus 1024 if there is a bias, plus 2048 if
             totals are asked for, plus 4096 times k
             arrays: the queries, and the bias
    REPLY    seconds queued, seconds at work, (result, ...)
    ERROR    code, message
    CANCEL, PING, PONG   none

A request's number, in its frame's prefix, is its client's, and unique among those in flight on its
connection. Decoders give exactly what was encoded, or raise ProtocolError and nothing else; their
arrays are read-only views of the frame's body. What they allocate is a small multiple of the
header's size.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Final

from shardserve.batching.errors import ResourceExhausted, ServingError, error_of
from shardserve.shards.exchange import Exchange
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
from shardserve.shards.messages import Array, Axis, LookupReply, LookupRequest, Op, Part, ScorePart
from shardserve.shards.packing import append_array, read_arrays

_REQUEST: Final = Kind.REQUEST
_REPLY: Final = Kind.REPLY

_OFFSETS: Final = 64
_WEIGHTS: Final = 128
#: What a part's form means: its op, whether it has offsets, whether it has weights.
_FORMS: Final = {
    op + offsets + weights: (op, bool(offsets), bool(weights))
    for op in Op
    for offsets in (0, _OFFSETS)
    for weights in (0, _WEIGHTS)
}

_SCORE: Final = 256
_BY_COLUMNS: Final = 512
_BIAS: Final = 1024
_TOTALS: Final = 2048
_ONE_K: Final = 4096

PING: Final = bare_frame(Kind.PING, 0)
PONG: Final = bare_frame(Kind.PONG, 0)


def encode_request(number: int, seconds_left: float, request: LookupRequest) -> tuple[Buffers, int]:
    """A REQUEST frame's buffers, and their bytes together.

    Raises InvalidArgument for an array of a dtype that the wire does not carry, ResourceExhausted
    for too many arrays.
    """
    body: Buffers = []
    parts = []
    arrays = []
    for part in request.parts:
        form: int = part.op
        arrays.append(append_array(body, part.rows))
        if part.offsets is not None:
            form += _OFFSETS
            arrays.append(append_array(body, part.offsets))
        if part.weights is not None:
            form += _WEIGHTS
            arrays.append(append_array(body, part.weights))
        parts.append((part.slice_id, form))
    for score in request.scores:
        arrays.append(append_array(body, score.queries))
        if score.bias is not None:
            arrays.append(append_array(body, score.bias))
        parts.append((score.slice_id, _score_form(score)))
    if len(arrays) > ITEMS_LIMIT:
        raise _too_many(len(arrays))
    return frame(_REQUEST, number, (seconds_left, parts, arrays), body)


def decode_request(received: Frame) -> tuple[float, LookupRequest]:
    """A REQUEST's seconds left, and its request."""
    _, _, header, data, start, stop = received
    try:
        seconds_left, fields, descriptions = unpack(header)
        arrays = iter(read_arrays(descriptions, data, start, stop))
        parts = []
        scores = []
        for slice_id, form in fields:
            if form >= _SCORE:
                scores.append(_score_part(slice_id, form, arrays))
                continue
            op, has_offsets, has_weights = _FORMS[form]
            rows = next(arrays)
            offsets = next(arrays) if has_offsets else None
            weights = next(arrays) if has_weights else None
            parts.append(Part(slice_id, op, rows, offsets, weights))
            if type(slice_id) is not int:
                raise ProtocolError(f"REQUEST names slice {slice_id!r:.80}")
        if not seconds_left >= 0.0 or next(arrays, None) is not None:
            raise ProtocolError("REQUEST has no time left, or an array that belongs to no part")
    except MALFORMED as error:
        raise ProtocolError(f"REQUEST is malformed: {error!r}") from error
    return seconds_left, LookupRequest(tuple(parts), tuple(scores))


def encode_reply(
    number: int, results: tuple[Array, ...], queue_seconds: float, lookup_seconds: float
) -> tuple[Buffers, int]:
    """A REPLY frame's buffers, and their bytes together. Raises as `encode_request` does."""
    body: Buffers = []
    arrays = []
    for result in results:
        arrays.append(append_array(body, result))  # noqa: PERF401 (dearer for a result or two)
    if len(arrays) > ITEMS_LIMIT:
        raise _too_many(len(arrays))
    return frame(_REPLY, number, (queue_seconds, lookup_seconds, arrays), body)


def decode_reply(received: Frame) -> LookupReply:
    """A REPLY's reply."""
    _, _, header, data, start, stop = received
    try:
        queue_seconds, lookup_seconds, descriptions = unpack(header)
        results = tuple(read_arrays(descriptions, data, start, stop))
        if not (0.0 <= queue_seconds < math.inf and 0.0 <= lookup_seconds < math.inf):
            raise ProtocolError("REPLY has seconds that are none")
    except MALFORMED as error:
        raise ProtocolError(f"REPLY is malformed: {error!r}") from error
    return LookupReply(results, queue_seconds, lookup_seconds)


def encode_error(number: int, error: ServingError) -> bytes:
    """An ERROR frame. An overlong message is cut."""
    return bare_frame(Kind.ERROR, number, int(error.code), _cut(error.message))


def decode_error(received: Frame) -> ServingError:
    """The error as it was raised at the shard."""
    code, message = bare_fields(received, int, str)
    return error_of(code, message)


def encode_cancel(number: int) -> bytes:
    """A CANCEL frame."""
    return bare_frame(Kind.CANCEL, number)


def _score_form(part: ScorePart) -> int:
    form = _SCORE + part.k * _ONE_K + part.axis * _BY_COLUMNS + part.totals * _TOTALS
    return form if part.bias is None else form + _BIAS


def _score_part(slice_id: int, form: int, arrays: Iterator[Array]) -> ScorePart:
    if type(slice_id) is not int or not form & _SCORE or form % _SCORE:
        raise ProtocolError(f"REQUEST names slice {slice_id!r:.80} in the form {form!r:.80}")
    queries = next(arrays)
    bias = next(arrays) if form & _BIAS else None
    axis = Axis.COLUMNS if form & _BY_COLUMNS else Axis.ROWS
    return ScorePart(slice_id, queries, axis, form // _ONE_K, bias, bool(form & _TOTALS))


def _cut(text: str) -> str:
    encoded = text.encode(errors="replace")
    if len(encoded) <= TEXT_LIMIT:
        return encoded.decode()
    return encoded[: TEXT_LIMIT - 4].decode(errors="ignore") + " ..."


def _too_many(count: int) -> ResourceExhausted:
    return ResourceExhausted(f"{count} arrays for one message, the limit is {ITEMS_LIMIT}")


#: What routers and shards say to each other.
LOOKUPS: Final = Exchange(
    _REQUEST, _REPLY, encode_request, decode_request, encode_reply, decode_reply
)
