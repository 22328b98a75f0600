"""Whatever is encoded is decoded; whatever else comes is refused, at no cost."""

from __future__ import annotations

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
    BLOCK_BYTES,
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
from shardserve.shards.messages import Array, LookupRequest, Op, Part
from shardserve.shards.packing import DTYPES
from shardserve.shards.wire import (
    PING,
    decode_cancel,
    decode_error,
    decode_reply,
    decode_request,
    encode_cancel,
    encode_error,
    encode_reply,
    encode_request,
)

LIMIT = 1 << 24
DECODERS = {
    Kind.REQUEST: decode_request,
    Kind.REPLY: decode_reply,
    Kind.ERROR: decode_error,
    Kind.CANCEL: decode_cancel,
}


def received(data: bytes, cuts: tuple[int, ...] = (), limit: int = LIMIT) -> list[Frame]:
    """The frames in `data`, when it comes in pieces cut at `cuts`, or smaller ones."""
    reader = FrameReader(limit)
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
requests = st.builds(LookupRequest, st.lists(parts, max_size=4).map(tuple))
numbers = st.integers(0, 2**62)
seconds = st.floats(0.0, 1e6)
messages = st.one_of(
    st.builds(lambda n, b, r: joined(encode_request(n, b, r)[0]), numbers, numbers, requests),
    st.builds(
        lambda n, r, q, s: joined(encode_reply(n, r, q, s)[0]),
        *(numbers, st.lists(arrays(), max_size=4).map(tuple), seconds, seconds),
    ),
    st.builds(encode_error, numbers, st.builds(error_of, st.integers(1, 16), st.text())),
    st.builds(encode_cancel, numbers),
    st.just(PING),
)


@given(numbers, numbers, requests)
def test_a_request_comes_out_as_it_went_in(
    number: int, budget: int, request: LookupRequest
) -> None:
    buffers, nbytes = encode_request(number, budget, request)
    assert len(joined(buffers)) == nbytes
    number_out, budget_out, out = decode_request(only(joined(buffers)))
    assert (number_out, budget_out) == (number, budget)
    assert len(out.parts) == len(request.parts)
    for mine, theirs in zip(request.parts, out.parts, strict=True):
        assert (mine.slice_id, mine.op) == (theirs.slice_id, theirs.op)
        assert same(mine.rows, theirs.rows)
        assert same(mine.offsets, theirs.offsets)
        assert same(mine.weights, theirs.weights)


@given(numbers, st.lists(arrays(), max_size=5).map(tuple), seconds, seconds)
def test_a_reply_comes_out_as_it_went_in(
    number: int, results: tuple[Array, ...], queued: float, looked: float
) -> None:
    buffers, nbytes = encode_reply(number, results, queued, looked)
    assert len(joined(buffers)) == nbytes
    number_out, reply = decode_reply(only(joined(buffers)))
    assert (number_out, reply.queue_seconds, reply.lookup_seconds) == (number, queued, looked)
    assert len(reply.results) == len(results)
    assert all(map(same, results, reply.results))
    assert all(not out.flags.writeable and out.flags.aligned for out in reply.results)


@given(numbers, st.integers(1, 16), st.text())
@example(1, Code.UNAVAILABLE, "shard 3 is gone")
def test_an_error_keeps_its_code_and_its_message(number: int, code: int, message: str) -> None:
    number_out, error = decode_error(only(encode_error(number, error_of(code, message))))
    assert number_out == number
    assert (error.code, error.message) == (code, message)


def test_an_overlong_message_is_cut() -> None:
    _, error = decode_error(only(encode_error(1, ServingError("é" * TEXT_LIMIT))))
    assert error.message.startswith("ééé")
    assert error.message.endswith(" ...")


@given(numbers)
def test_a_cancel_keeps_its_number(number: int) -> None:
    assert decode_cancel(only(encode_cancel(number))) == number


@given(st.lists(messages, max_size=4), st.lists(st.integers(0, 1 << 16), max_size=6).map(tuple))
def test_where_the_stream_is_cut_makes_no_difference(
    sent: list[bytes], cuts: tuple[int, ...]
) -> None:
    data = b"".join(sent)
    whole = received(data)
    assert len(whole) == len(sent)
    assert [[bytes(v) for v in one[1:]] for one in received(data, cuts)] == [
        [bytes(v) for v in one[1:]] for one in whole
    ]


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
    view = memoryview(header)
    with suppress(ProtocolError):
        decoded((kind, view, memoryview(body)))


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
        decoded(only(joined(frame(kind, tuple(fields), [body * 8])[0])))


def prefix(kind: int, header: int, body: int, *, magic: bytes = b"ST", version: int = 1) -> bytes:
    return struct.pack("<2sBBIQ", magic, version, kind, header, body)


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (prefix(Kind.PING, 0, 0, magic=b"GE"), "not a frame"),
        (b"GET / HTTP/1.1\r\n\r\n", "not a frame"),
        (prefix(Kind.PING, 0, 0, version=2), "speaks version 2, we speak version 1"),
        (prefix(99, 0, 0), "unknown kind 99"),
        (prefix(Kind.REQUEST, HEADER_LIMIT + 1, 0), f"limit is {HEADER_LIMIT}"),
        (prefix(Kind.REQUEST, 8, LIMIT), f"limit is {LIMIT}"),
        (prefix(Kind.REQUEST, 8, 2**64 - 8), f"limit is {LIMIT}"),
        (prefix(Kind.REQUEST, 8, 7), "multiple of 8"),
    ],
)
def test_a_prefix_that_is_wrong_is_refused_at_once(data: bytes, why: str) -> None:
    with pytest.raises(ProtocolError, match=why):
        received(data)


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
    assert peak_bytes(lambda: received(data, limit=1 << 29)) < 2 * BLOCK_BYTES


@settings(max_examples=30)
@given(st.sampled_from(sorted(DECODERS)), st.binary(min_size=1, max_size=40))
@example(Kind.REQUEST, b"\xdd\x00\x00\x0f\xff" * 8)
@example(Kind.REPLY, b"\x94\x01\xcb" + bytes(8) + b"\xcb" + bytes(8) + b"\xdc\x0f\xff" * 5)
def test_a_lying_header_costs_little(kind: Kind, header: bytes) -> None:
    one = (kind, memoryview(header), memoryview(b""))
    assert peak_bytes(lambda: decoded(one)) < len(header) * ITEMS_LIMIT * 8 + (1 << 16)


@pytest.mark.parametrize("shape", [(2**40, 2**40, 0), (0, 2**62), (2**63, 0), (1,) * 65, (-1,)])
def test_a_shape_that_no_array_has_is_refused(shape: tuple[int, ...]) -> None:
    one = only(joined(frame(Kind.REPLY, (1, 0.0, 0.0, ((0, *shape),)), [])[0]))
    if (
        np.prod([float(size or 1) for size in shape]) < 2**60
        and len(shape) < 64
        and min(shape) >= 0
    ):
        assert decode_reply(one)[1].results[0].shape == shape
    else:
        with pytest.raises(ProtocolError):
            decode_reply(one)


@pytest.mark.parametrize("fewer", [8, 16])
def test_a_body_that_its_arrays_do_not_fill_is_refused(fewer: int) -> None:
    for size in (2 - fewer // 8, 2 + fewer // 8):
        description = (DTYPES.index(np.dtype(np.int64)), size)
        one = only(joined(frame(Kind.REPLY, (1, 0.0, 0.0, (description,)), [bytes(16)])[0]))
        with pytest.raises(ProtocolError):
            decode_reply(one)


def test_bools_that_are_neither_0_nor_1_are_refused() -> None:
    description = (DTYPES.index(np.dtype(np.bool_)), 8)
    one = only(joined(frame(Kind.REPLY, (1, 0.0, 0.0, (description,)), [b"\1\0\1\0\2\0\0\0"])[0]))
    with pytest.raises(ProtocolError, match="bool"):
        decode_reply(one)


@pytest.mark.parametrize(
    "array",
    [
        np.array([b"text"], object),
        np.array(["text"]),
        np.zeros(2, np.complex64),
        np.zeros(2, ">f4"),
        np.zeros(2, "datetime64[s]"),
        np.zeros(2, [("a", "<i4")]),
        np.zeros((1,) * 9, np.float32),
    ],
    ids=lambda array: f"{array.dtype}-{array.ndim}",
)
def test_an_array_that_the_wire_does_not_carry_is_named(array: Array) -> None:
    with pytest.raises(InvalidArgument, match="the wire carries no array of"):
        encode_reply(1, (array,), 0.0, 0.0)
    with pytest.raises(InvalidArgument, match="the wire carries no array of"):
        encode_request(1, 1, LookupRequest((Part(0, Op.GATHER, array),)))


def test_too_many_arrays_for_one_message_are_refused() -> None:
    part = Part(0, Op.GATHER, np.zeros(1, np.int32))
    with pytest.raises(ResourceExhausted, match=f"limit is {ITEMS_LIMIT}"):
        encode_request(1, 1, LookupRequest((part,) * (ITEMS_LIMIT + 1)))
    number, _, request = decode_request(
        only(joined(encode_request(1, 1, LookupRequest((part,) * ITEMS_LIMIT))[0]))
    )
    assert (number, len(request.parts)) == (1, ITEMS_LIMIT)


def test_a_large_array_is_copied_neither_in_nor_out() -> None:
    array = np.arange(1 << 16, dtype=np.float32)
    buffers, _ = encode_reply(1, (array,), 0.0, 0.0)
    assert any(np.shares_memory(np.frombuffer(buffer, np.uint8), array) for buffer in buffers)
    one = only(joined(buffers))
    _, reply = decode_reply(one)
    assert np.shares_memory(np.frombuffer(one[2], np.uint8), reply.results[0])


def test_views_stay_as_they_are_while_more_comes() -> None:
    reader = FrameReader(LIMIT)
    replies = []
    for value in range(2000):
        data = joined(encode_reply(value, (np.full(20, value),), 0.0, 0.0)[0])
        room = reader.get_buffer()
        assert len(room) >= len(data)
        room[: len(data)] = data
        replies += [decode_reply(one) for one in reader.received(len(data))]
    assert [number for number, _ in replies] == list(range(2000))
    assert all((reply.results[0] == number).all() for number, reply in replies)


def test_a_bare_frame_may_have_no_body() -> None:
    with pytest.raises(ProtocolError, match="PING is not as it should be"):
        bare_fields(only(joined(frame(Kind.PING, (), [bytes(8)])[0])))
    with pytest.raises(ProtocolError, match="CANCEL is not as it should be"):
        decode_cancel(only(bare_frame(Kind.CANCEL, "one")))
