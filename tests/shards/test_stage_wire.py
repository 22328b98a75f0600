"""Tensors of every dtype that a request can carry come out as they went in, or are refused."""

from __future__ import annotations

import math
import pickle
from contextlib import suppress

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from shardserve.batching.errors import InvalidArgument, ResourceExhausted
from shardserve.batching.tasks import Priority
from shardserve.router.tensor_types import BY_NUMPY
from shardserve.shards.frames import ITEMS_LIMIT, Frame, Kind, ProtocolError, frame
from shardserve.shards.messages import Array
from shardserve.shards.stage_messages import StageRequest
from shardserve.shards.stage_wire import (
    STAGES,
    decode_stage_reply,
    decode_stage_request,
    encode_stage_reply,
    encode_stage_request,
)
from tests.shards.test_wire import joined, numbers, only, peak_bytes, plain, received, seconds


@st.composite
def tensors(draw: st.DrawFn) -> Array:
    dtype = draw(st.sampled_from(sorted(BY_NUMPY, key=str)))
    shape = draw(st.lists(st.integers(0, 4), max_size=3))
    size = math.prod(shape)
    if dtype.kind == "O":
        strings = draw(st.lists(st.binary(max_size=20), min_size=size, max_size=size))
        flat = np.array([*strings, None], object)[:-1]
    elif dtype == np.bool_:
        flat = np.array(draw(st.lists(st.booleans(), min_size=size, max_size=size)), np.bool_)
    else:
        nbytes = size * dtype.itemsize
        flat = np.frombuffer(draw(st.binary(min_size=nbytes, max_size=nbytes)), dtype)
    array = flat.reshape(shape)
    return array.T if draw(st.booleans()) else array


def same(one: Array, other: Array) -> bool:
    if one.dtype != other.dtype or one.shape != other.shape:
        return False
    return one.tolist() == other.tolist() if one.dtype == object else bits(one) == bits(other)


def bits(array: Array) -> bytes:
    return array.tobytes()


requests = st.builds(
    StageRequest,
    st.text(max_size=40),
    st.lists(tensors(), max_size=4).map(tuple),
    st.integers(0, 2**40),
    st.sampled_from(Priority),
)


@given(numbers, st.floats(0.0, 1e9) | st.just(math.inf), requests)
def test_a_request_comes_out_as_it_went_in(
    number: int, seconds_left: float, request: StageRequest
) -> None:
    buffers, nbytes = encode_stage_request(number, seconds_left, request)
    one = only(joined(buffers))
    assert one[:2] == (Kind.STAGE_REQUEST, number)
    assert len(joined(buffers)) == nbytes
    seconds_out, out = decode_stage_request(one)
    assert seconds_out == seconds_left
    assert (out.stage, out.rows, out.priority) == (request.stage, request.rows, request.priority)
    assert len(out.tensors) == len(request.tensors)
    assert all(map(same, request.tensors, out.tensors))
    assert not any(tensor.flags.writeable for tensor in out.tensors)


@given(numbers, st.lists(tensors(), max_size=5).map(tuple), seconds, seconds)
def test_a_reply_comes_out_as_it_went_in(
    number: int, outputs: tuple[Array, ...], queued: float, at_work: float
) -> None:
    buffers, nbytes = encode_stage_reply(number, outputs, queued, at_work)
    one = only(joined(buffers))
    assert one[:2] == (Kind.STAGE_REPLY, number)
    assert len(joined(buffers)) == nbytes
    reply = decode_stage_reply(one)
    assert (reply.queue_seconds, reply.run_seconds) == (queued, at_work)
    assert len(reply.tensors) == len(outputs)
    assert all(map(same, outputs, reply.tensors))


@pytest.mark.parametrize("dtype", sorted(BY_NUMPY, key=str), ids=str)
def test_scalars_and_tensors_of_no_element_keep_dtype_and_shape(dtype: np.dtype[object]) -> None:
    sent = (np.zeros((), dtype), np.zeros((0,), dtype), np.zeros((3, 0, 2), dtype))
    if dtype.kind == "O":
        sent = (np.array(b"s", object), *sent[1:])
    reply = decode_stage_reply(only(joined(encode_stage_reply(1, sent, 0.0, 0.0)[0])))
    assert all(map(same, sent, reply.tensors))


def test_long_strings_come_whole() -> None:
    sent = np.array([b"", b"x" * 100_000, b"\0"], object)
    reply = decode_stage_reply(only(joined(encode_stage_reply(1, (sent,), 0.0, 0.0)[0])))
    assert same(sent, reply.tensors[0])


@pytest.mark.parametrize("strange", ["text", None, 1, pickle, bytearray(b"x")], ids=repr)
def test_objects_that_are_no_bytes_are_refused(strange: object) -> None:
    tensor = np.empty(2, object)
    tensor[:] = [b"fine", strange]
    with pytest.raises(InvalidArgument, match="strings are bytes"):
        encode_stage_reply(1, (tensor,), 0.0, 0.0)


def test_too_many_tensors_for_one_message_are_refused() -> None:
    request = StageRequest("tower", (np.zeros(1, np.float32),) * (ITEMS_LIMIT + 1), 1)
    with pytest.raises(ResourceExhausted, match=f"limit is {ITEMS_LIMIT}"):
        encode_stage_request(1, 1.0, request)


messages = st.one_of(
    st.builds(lambda n, s, r: joined(encode_stage_request(n, s, r)[0]), numbers, seconds, requests),
    st.builds(
        lambda n, t: joined(encode_stage_reply(n, t, 0.0, 0.0)[0]),
        *(numbers, st.lists(tensors(), max_size=3).map(tuple)),
    ),
)


def decoded(one: Frame) -> object:
    if one[0] is STAGES.request:
        return STAGES.decode_request(one)
    return STAGES.decode_reply(one) if one[0] is STAGES.reply else None


@settings(max_examples=200)
@given(messages, st.lists(st.tuples(st.integers(0, 1 << 16), st.integers(1, 255)), min_size=1))
def test_a_changed_message_is_refused_or_is_another(
    message: bytes, changes: list[tuple[int, int]]
) -> None:
    changed = bytearray(message)
    for place, change in changes:
        changed[place % len(changed)] ^= change
    with suppress(ProtocolError):
        for one in received(bytes(changed)):
            decoded(one)


@settings(max_examples=200)
@given(
    st.sampled_from((STAGES.request, STAGES.reply)),
    st.lists(plain, max_size=6),
    st.binary(max_size=5),
)
@example(STAGES.reply, [0.0, 0.0, [[2**40, 2**40]], [[9, 0], [7, 0]]], b"")
def test_headers_of_any_content_are_refused_or_are_messages(
    kind: Kind, fields: list[object], body: bytes
) -> None:
    with suppress(ProtocolError):
        decoded(only(joined(frame(kind, 1, tuple(fields), [body * 8])[0])))


def strings_of(shape: tuple[object, ...], lengths: list[int], text: bytes) -> Frame:
    packed = np.array(lengths, np.uint32)
    body = packed.tobytes() + bytes(-packed.nbytes % 8) + text + bytes(-len(text) % 8)
    arrays = ((9, len(lengths)), (7, len(text)))
    return only(joined(frame(STAGES.reply, 1, (0.0, 0.0, (shape,), arrays), [body])[0]))


@pytest.mark.parametrize(
    ("shape", "lengths", "text"),
    [
        ((2,), [1, 1], b"abc"),
        ((2,), [1, 3], b"abc"),
        ((3,), [1, 2], b"abc"),
        ((-1,), [1, 2], b"abc"),
        ((2, -1), [1, 2], b"abc"),
        ((2**40, 0, 2**40), [], b""),
        (("2",), [1, 2], b"abc"),
        ((2,), [2**32 - 1, 4], b"abc"),
    ],
)
def test_strings_that_are_not_as_long_as_is_said_are_refused(
    shape: tuple[object, ...], lengths: list[int], text: bytes
) -> None:
    with pytest.raises(ProtocolError):
        decode_stage_reply(strings_of(shape, lengths, text))


def test_strings_take_a_small_multiple_of_their_frame() -> None:
    lengths = [0] * 50_000
    one = strings_of((50_000,), lengths, b"")
    assert peak_bytes(lambda: decode_stage_reply(one)) < 32 * 4 * len(lengths)
