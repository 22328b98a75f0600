"""Whatever is encoded is decoded; whatever else comes is refused, at no cost."""

from __future__ import annotations

import math
import struct
import tracemalloc
from collections.abc import Callable
from contextlib import suppress
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from shardserve.batching.errors import (
    Code,
    InvalidArgument,
    ResourceExhausted,
    ServingError,
    error_of,
)
from shardserve.shards.frames import (
    BUFFER_BYTES,
    HEADER_LIMIT,
    ITEMS_LIMIT,
    TEXT_LIMIT,
    Frame,
    FrameReader,
    Kind,
    ProtocolError,
    bare_fields,
    bare_frame,
    frame,
)
from shardserve.shards.messages import Array, Axis, LookupRequest, Op, Part, ScorePart
from shardserve.shards.packing import DTYPES
from shardserve.shards.wire import (
    PING,
    decode_error,
    decode_reply,
    decode_request,
    encode_cancel,
    encode_error,
    encode_reply,
    encode_request,
)

LIMIT = 1 << 24
DECODERS: dict[Kind, Callable[[Frame], object]] = {
    Kind.REQUEST: decode_request,
    Kind.REPLY: decode_reply,
    Kind.ERROR: decode_error,
}


def received(data: bytes, cuts: tuple[int, ...] = (), limit: int = LIMIT) -> list[Frame]:
    """The frames in `data`, when it comes in pieces cut at `cuts`, or smaller ones."""
    reader = FrameReader(Kind, limit)
    frames = []
    places = sorted({0, len(data), *(cut % (len(data) + 1) for cut in cuts)})
    for start, stop in pairwise(places):
        while start < stop:
            room = reader.get_buffer()
            count = min(len(room), stop - start)
            room[:count] = data[start : start + count]
            frames += reader.received(count)
            start += count
    return frames


def only(data: bytes) -> Frame:
    (single,) = received(data)
    return single


def decoded(one: Frame) -> object:
    return DECODERS.get(one[0], bare_fields)(one)


def written(one: Frame) -> tuple[Kind, int, bytes, bytes]:
    kind, number, header, data, start, stop = one
    return kind, number, header, bytes(data[start:stop])


def joined(buffers: list[bytes | memoryview]) -> bytes:
    return b"".join(buffers)


def same(one: Array | None, other: Array | None) -> bool:
    if one is None or other is None:
        return one is other
    return (
        one.dtype == other.dtype and one.shape == other.shape and one.tobytes() == other.tobytes()
    )


@st.composite
def arrays(draw: st.DrawFn) -> Array:
    dtype = draw(st.sampled_from(DTYPES))
    shape = draw(st.lists(st.integers(0, 5), max_size=3))
    size = int(np.prod(shape, dtype=np.int64))
    if dtype == np.bool_:
        flat = np.array(draw(st.lists(st.booleans(), min_size=size, max_size=size)), np.bool_)
    else:
        nbytes = size * dtype.itemsize
        flat = np.frombuffer(draw(st.binary(min_size=nbytes, max_size=nbytes)), dtype)
    array = flat.reshape(shape)
    return array.T if draw(st.booleans()) else array


parts = st.builds(
    Part,
    st.integers(0, 2**40),
    st.sampled_from(Op),
    arrays(),
    st.none() | arrays(),
    st.none() | arrays(),
)
scores = st.builds(
    ScorePart,
    st.integers(0, 2**40),
    arrays(),
    st.sampled_from(Axis),
    st.integers(0, 2**31),
    st.none() | arrays(),
    st.booleans(),
)
requests = st.builds(
    LookupRequest,
    st.lists(parts, max_size=4).map(tuple),
    st.lists(scores, max_size=3).map(tuple),
)
numbers = st.integers(0, 2**62)
seconds = st.floats(0.0, 1e6)
messages = st.one_of(
    st.builds(lambda n, s, r: joined(encode_request(n, s, r)[0]), numbers, seconds, requests),
    st.builds(
        lambda n, r, q, s: joined(encode_reply(n, r, q, s)[0]),
        *(numbers, st.lists(arrays(), max_size=4).map(tuple), seconds, seconds),
    ),
    st.builds(encode_error, numbers, st.builds(error_of, st.integers(1, 16), st.text())),
    st.builds(encode_cancel, numbers),
    st.just(PING),
)


@given(numbers, st.floats(0.0, 1e9) | st.just(math.inf), requests)
def test_a_request_comes_out_as_it_went_in(
    number: int, seconds_left: float, request: LookupRequest
) -> None:
    buffers, nbytes = encode_request(number, seconds_left, request)
    one = only(joined(buffers))
    assert one[:2] == (Kind.REQUEST, number)
    assert len(joined(buffers)) == nbytes
    seconds_out, out = decode_request(one)
    assert seconds_out == seconds_left
    assert len(out.parts) == len(request.parts)
    for mine, theirs in zip(request.parts, out.parts, strict=True):
        assert (mine.slice_id, mine.op) == (theirs.slice_id, theirs.op)
        assert same(mine.rows, theirs.rows)
        assert same(mine.offsets, theirs.offsets)
        assert same(mine.weights, theirs.weights)
    assert len(out.scores) == len(request.scores)
    for mine, theirs in zip(request.scores, out.scores, strict=True):
        assert (mine.slice_id, mine.axis, mine.k) == (theirs.slice_id, theirs.axis, theirs.k)
        assert mine.totals == theirs.totals
        assert same(mine.queries, theirs.queries)
        assert same(mine.bias, theirs.bias)


@given(numbers, st.lists(arrays(), max_size=5).map(tuple), seconds, seconds)
def test_a_reply_comes_out_as_it_went_in(
    number: int, results: tuple[Array, ...], queued: float, at_work: float
) -> None:
    buffers, nbytes = encode_reply(number, results, queued, at_work)
    one = only(joined(buffers))
    assert one[:2] == (Kind.REPLY, number)
    assert len(joined(buffers)) == nbytes
    reply = decode_reply(one)
    assert (reply.queue_seconds, reply.lookup_seconds) == (queued, at_work)
    assert len(reply.results) == len(results)
    assert all(map(same, results, reply.results))
    assert all(not out.flags.writeable and out.flags.aligned for out in reply.results)


@given(numbers, st.integers(1, 16), st.text())
@example(1, Code.UNAVAILABLE, "shard 3 is gone")
def test_an_error_keeps_its_code_and_its_message(number: int, code: int, message: str) -> None:
    one = only(encode_error(number, error_of(code, message)))
    assert one[:2] == (Kind.ERROR, number)
    error = decode_error(one)
    assert (error.code, error.message) == (code, message)


def test_an_overlong_message_is_cut() -> None:
    error = decode_error(only(encode_error(1, ServingError("é" * TEXT_LIMIT))))
    assert error.message.startswith("ééé")
    assert error.message.endswith(" ...")


@given(numbers)
def test_a_cancel_keeps_its_number(number: int) -> None:
    one = only(encode_cancel(number))
    assert one[:2] == (Kind.CANCEL, number)
    assert bare_fields(one) == ()


@given(st.lists(messages, max_size=4), st.lists(st.integers(0, 1 << 16), max_size=6).map(tuple))
def test_where_the_stream_is_cut_makes_no_difference(
    sent: list[bytes], cuts: tuple[int, ...]
) -> None:
    data = b"".join(sent)
    whole = received(data)
    assert len(whole) == len(sent)
    assert list(map(written, received(data, cuts))) == list(map(written, whole))


@settings(max_examples=30)
@given(
    st.lists(st.integers(0, 3 * BUFFER_BYTES), min_size=1, max_size=4),
    st.lists(st.integers(0, 1 << 20), max_size=6).map(tuple),
)
def test_frames_longer_than_the_buffer_come_whole(sizes: list[int], cuts: tuple[int, ...]) -> None:
    sent = [np.full(size, place, np.uint8) for place, size in enumerate(sizes)]
    data = b"".join(joined(encode_reply(7, (array,), 0.0, 0.0)[0]) for array in sent)
    replies = [decode_reply(one) for one in received(data, cuts)]
    assert len(replies) == len(sent)
    assert all(same(array, reply.results[0]) for array, reply in zip(sent, replies, strict=True))


@given(messages, st.integers(0, 1 << 16))
def test_a_frame_that_is_cut_off_is_no_frame_yet(message: bytes, cut: int) -> None:
    assert received(message[: cut % len(message)]) == []


@settings(max_examples=300)
@given(messages, st.lists(st.tuples(st.integers(0, 1 << 16), st.integers(1, 255)), min_size=1))
def test_a_changed_frame_is_refused_or_is_another_message(
    message: bytes, changes: list[tuple[int, int]]
) -> None:
    changed = bytearray(message)
    for place, change in changes:
        changed[place % len(changed)] ^= change
    with suppress(ProtocolError):
        for one in received(bytes(changed)):
            decoded(one)


@given(st.sampled_from(Kind), st.binary(max_size=200), st.binary(max_size=64))
def test_random_headers_are_refused_or_are_messages(kind: Kind, header: bytes, body: bytes) -> None:
    with suppress(ProtocolError):
        decoded((kind, 1, header, body, 0, len(body)))


plain = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats()
    | st.text(max_size=3)
    | st.binary(max_size=3),
    lambda inner: st.lists(inner, max_size=4),
    max_leaves=12,
)


@settings(max_examples=300)
@given(st.sampled_from(sorted(DECODERS)), st.lists(plain, max_size=5), st.binary(max_size=5))
def test_well_formed_headers_of_any_content_are_refused_or_are_messages(
    kind: Kind, fields: list[object], body: bytes
) -> None:
    with suppress(ProtocolError):
        decoded(only(joined(frame(kind, 1, tuple(fields), [body * 8])[0])))


def prefix(kind: int, header: int, body: int, *, magic: bytes = b"ST", version: int = 1) -> bytes:
    return struct.pack("<2sBBIQQ", magic, version, kind, header, body, 1)


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (prefix(Kind.PING, 0, 0, magic=b"GE"), "not a frame"),
        (b"GET / HTTP/1.1\r\nHost: x\r\n\r\n", "not a frame"),
        (prefix(Kind.PING, 0, 0, version=2), "speaks version 2, we speak version 1"),
        (prefix(99, 0, 0), "of kind 99, which does not belong here"),
        (prefix(Kind.REQUEST, HEADER_LIMIT + 1, 0), f"limit is {HEADER_LIMIT}"),
        (prefix(Kind.REQUEST, 8, LIMIT), f"limit is {LIMIT}"),
        (prefix(Kind.REQUEST, 8, 2**64 - 8), f"limit is {LIMIT}"),
    ],
)
def test_a_prefix_that_is_wrong_is_refused_at_once(data: bytes, why: str) -> None:
    with pytest.raises(ProtocolError, match=why):
        received(data)


def test_a_reader_takes_the_kinds_and_lengths_that_it_was_told_to_accept() -> None:
    data = encode_cancel(7)

    def reading(kinds: tuple[Kind, ...], limit: int) -> list[Frame]:
        reader = FrameReader((Kind.HELLO,), LIMIT)
        reader.accept(kinds, limit)
        room = reader.get_buffer()[: len(data)]
        room[:] = data[: len(room)]
        return reader.received(len(room))

    assert reading((Kind.CANCEL,), len(data))[0][:2] == (Kind.CANCEL, 7)
    with pytest.raises(ProtocolError, match="does not belong here"):
        reading((Kind.PING,), len(data))
    with pytest.raises(ProtocolError, match=f"limit is {len(data) - 1}"):
        reading((Kind.CANCEL,), len(data) - 1)


def peak_bytes(work: Callable[[], object]) -> int:
    tracemalloc.start()
    try:
        with suppress(ProtocolError):
            work()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def test_nothing_is_allocated_for_a_frame_over_the_limit() -> None:
    data = prefix(Kind.REQUEST, 8, 1 << 30)
    assert peak_bytes(lambda: received(data, limit=1 << 29)) < 2 * BUFFER_BYTES


@settings(max_examples=30)
@given(st.sampled_from(sorted(DECODERS)), st.binary(min_size=1, max_size=40))
@example(Kind.REQUEST, b"\xdd\x00\x00\x0f\xff" * 8)
@example(Kind.REPLY, b"\x94\x01\xcb" + bytes(8) + b"\xcb" + bytes(8) + b"\xdc\x0f\xff" * 5)
def test_a_lying_header_costs_little(kind: Kind, header: bytes) -> None:
    one = (kind, 1, header, b"", 0, 0)
    assert peak_bytes(lambda: decoded(one)) < len(header) * ITEMS_LIMIT * 8 + (1 << 16)


def reply_of(*descriptions: tuple[int, ...], body: bytes = b"") -> Frame:
    return only(joined(frame(Kind.REPLY, 1, (0.0, 0.0, descriptions), [body])[0]))


@pytest.mark.parametrize(
    "shape",
    [(2**40, 2**40, 0), (2**63, 0), (0, *(1,) * 64), (-1,), (-1, 0), (0.0,), ("0",), (None,)],
)
def test_a_shape_that_no_array_has_is_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ProtocolError):
        decode_reply(reply_of((0, *shape)))


@pytest.mark.parametrize("code", [-1, len(DTYPES), 0.5, "0", None, ()])
def test_a_dtype_that_does_not_exist_is_refused(code: int) -> None:
    with pytest.raises(ProtocolError):
        decode_reply(reply_of((code, 0)))


@pytest.mark.parametrize("shape", [(0,), (0, 64), (2**40, 0)])
def test_an_array_without_elements_keeps_its_shape(shape: tuple[int, ...]) -> None:
    assert decode_reply(reply_of((0, *shape))).results[0].shape == shape


@pytest.mark.parametrize("count", [0, 1, 3, 4])
def test_a_body_that_its_arrays_do_not_fill_exactly_is_refused(count: int) -> None:
    with pytest.raises(ProtocolError):
        decode_reply(reply_of((DTYPES.index(np.dtype(np.int64)), count), body=bytes(16)))


def test_bools_that_are_neither_0_nor_1_are_refused() -> None:
    with pytest.raises(ProtocolError, match="bool"):
        decode_reply(reply_of((DTYPES.index(np.dtype(np.bool_)), 8), body=b"\1\0\1\0\2\0\0\0"))


@pytest.mark.parametrize(
    "array",
    [
        np.array([b"text"], object),
        np.array(["text"]),
        np.zeros(2, np.clongdouble),
        np.zeros(2, ">f4"),
        np.zeros(2, "datetime64[s]"),
        np.zeros(2, [("a", "<i4")]),
    ],
    ids=lambda array: f"{array.dtype}-{array.ndim}",
)
def test_an_array_that_the_wire_does_not_carry_is_named(array: Array) -> None:
    with pytest.raises(InvalidArgument, match="the wire carries no array of"):
        encode_reply(1, (array,), 0.0, 0.0)
    with pytest.raises(InvalidArgument, match="the wire carries no array of"):
        encode_request(1, 1.0, LookupRequest((Part(0, Op.GATHER, array),)))


def test_too_many_arrays_for_one_message_are_refused() -> None:
    part = Part(0, Op.GATHER, np.zeros(1, np.int32))
    with pytest.raises(ResourceExhausted, match=f"limit is {ITEMS_LIMIT}"):
        encode_request(1, 1.0, LookupRequest((part,) * (ITEMS_LIMIT + 1)))
    one = only(joined(encode_request(1, 1.0, LookupRequest((part,) * ITEMS_LIMIT))[0]))
    assert len(decode_request(one)[1].parts) == ITEMS_LIMIT


def test_a_large_array_is_copied_neither_in_nor_out() -> None:
    array = np.arange(1 << 16, dtype=np.float32)
    buffers, _ = encode_reply(1, (array,), 0.0, 0.0)
    assert any(np.shares_memory(np.frombuffer(buffer, np.uint8), array) for buffer in buffers)
    one = only(joined(buffers))
    reply = decode_reply(one)
    assert np.shares_memory(np.frombuffer(one[3], np.uint8), reply.results[0])


def test_views_stay_as_they_are_while_more_comes() -> None:
    reader = FrameReader(Kind, LIMIT)
    replies = []
    for value in range(2000):
        data = joined(encode_reply(value, (np.full(20, value),), 0.0, 0.0)[0])
        room = reader.get_buffer()
        assert len(room) >= len(data)
        room[: len(data)] = data
        replies += [decode_reply(one) for one in reader.received(len(data))]
    assert len(replies) == 2000
    assert all((reply.results[0] == value).all() for value, reply in enumerate(replies))


def test_a_bare_frame_may_have_no_body_and_only_the_fields_it_should() -> None:
    with pytest.raises(ProtocolError, match="PING is not as it should be"):
        bare_fields(only(joined(frame(Kind.PING, 1, (), [bytes(8)])[0])))
    with pytest.raises(ProtocolError, match="CANCEL is not as it should be"):
        bare_fields(only(bare_frame(Kind.CANCEL, 1, "one")))
    with pytest.raises(ProtocolError, match="ERROR is not as it should be"):
        decode_error(only(bare_frame(Kind.ERROR, 1, 14, b"bytes")))
