"""The profiler service, asked by TensorFlow's own client, and by hand."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import grpc
import pytest
import tensorflow as tf
from prometheus_client import CollectorRegistry

from shardserve.batching.errors import AlreadyExists
from shardserve.router.grpc_door import GrpcDoor
from shardserve.router.handlers import Handlers
from shardserve.router.metrics import Metrics
from shardserve.router.prediction import PredictionHandlers
from shardserve.router.profiler import MAX_SECONDS, Profiler

PROFILE = "/tensorflow.ProfilerService/Profile"


@pytest.fixture
async def door(handlers: Handlers) -> AsyncIterator[GrpcDoor]:
    prediction = PredictionHandlers(handlers, Metrics(CollectorRegistry()))
    door = GrpcDoor(prediction, "127.0.0.1", profiler=Profiler())
    await door.start()
    yield door
    await door.stop(grace=0.0)


def profile_request(milliseconds: int) -> bytes:
    """`duration_ms`, the first field of a ProfileRequest, as a varint."""
    raw = b"\x08"
    while milliseconds > 127:
        raw += bytes([milliseconds & 127 | 128])
        milliseconds >>= 7
    return raw + bytes([milliseconds])


def _only(root: Path, pattern: str) -> Path:
    (found,) = root.glob(pattern)
    return found


async def test_tensorflows_client_gets_a_trace_and_writes_it_where_it_was_told(
    door: GrpcDoor, tmp_path: Path
) -> None:
    await asyncio.to_thread(
        tf.profiler.experimental.client.trace,
        f"grpc://127.0.0.1:{door.port}",
        str(tmp_path),
        100,
        num_tracing_attempts=1,
    )
    # Its strings are not all UTF-8, which Python's messages insist on.
    assert b"/host:CPU" in _only(tmp_path, "plugins/profile/*/*.xplane.pb").read_bytes()


async def test_one_trace_is_taken_at_a_time_and_the_next_one_once_it_was_given_up() -> None:
    profiler = Profiler()
    long = asyncio.ensure_future(profiler.profile(profile_request(30_000)))
    await asyncio.sleep(0)
    with pytest.raises(AlreadyExists, match="Another profiler session is active"):
        await profiler.profile(profile_request(0))
    long.cancel()
    with pytest.raises(asyncio.CancelledError):
        await long
    assert await profiler.profile(profile_request(0))


@pytest.mark.parametrize(
    ("raw", "why"),
    [
        (profile_request(int(MAX_SECONDS * 1e3) + 1), "duration_ms must be at most 60000"),
        (b"\xff", "not a tensorflow.ProfileRequest"),
    ],
)
async def test_what_cannot_be_traced_is_refused_over_the_wire(
    door: GrpcDoor, raw: bytes, why: str
) -> None:
    async with grpc.aio.insecure_channel(f"127.0.0.1:{door.port}") as channel:
        with pytest.raises(grpc.aio.AioRpcError, match=why) as refused:
            await channel.unary_unary(PROFILE)(raw)
    assert refused.value.code() is grpc.StatusCode.INVALID_ARGUMENT
