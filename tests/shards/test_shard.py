"""A shard over the slices of a layout, in process."""

from __future__ import annotations

import asyncio
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from shardserve.batching.errors import (
    DeadlineExceeded,
    Internal,
    InvalidArgument,
    ServingError,
    Unimplemented,
)
from shardserve.shards.bundle import open_bundle
from shardserve.shards.layout import Layout, row_hash, row_range, whole_table
from shardserve.shards.local import INLINE_COST, LocalChannel
from shardserve.shards.messages import LookupRequest, Op, Part
from shardserve.shards.shard import Shard
from shardserve.shards.store import HostStore
from tests.checkpoints import numbered, save

A, B = numbered((40, 4)), numbered((30, 2), np.float64)


def ints(*values: int) -> np.ndarray:
    return np.array(values, np.int64)


@pytest.fixture
def sources(tmp_path):
    bundle = open_bundle(save(tmp_path / "v", {"key_a": A, "key_b": B}))
    return {name: bundle.source(f"key_{name}", name) for name in "ab"}


@pytest.fixture
def shard() -> Shard:
    return Shard([HostStore(A.copy()), HostStore(B.copy())])


def test_each_part_is_answered_in_its_place(shard):
    request = LookupRequest(
        (
            Part(1, Op.GATHER, ints(29, 3)),
            Part(0, Op.POOL, ints(1, 2, 3), ints(0, 1, 3)),
            Part(0, Op.GATHER, ints()),
            Part(1, Op.POOL, ints(4), ints(0, 1), np.array([0.5])),
        )
    )
    gathered, pooled, nothing, weighted = shard.execute(request)
    np.testing.assert_array_equal(gathered, B[[29, 3]])
    np.testing.assert_array_equal(pooled, [A[1], A[2] + A[3]])
    assert nothing.shape == (0, 4)
    np.testing.assert_array_equal(weighted, [B[4] / 2])


def test_a_request_without_parts_has_no_answers(shard):
    assert shard.execute(LookupRequest(())) == ()


@pytest.mark.parametrize(
    ("part", "error", "message"),
    [
        (Part(2, Op.GATHER, ints(0)), InvalidArgument, r"slice 2 is not in \[0, 2\)"),
        (Part(-1, Op.GATHER, ints(0)), InvalidArgument, r"slice -1 is not in \[0, 2\)"),
        (Part(0, Op.GATHER, ints(40)), InvalidArgument, r"slice 0: rows\[0\] = 40 is not in"),
        (Part(0, Op.GATHER, ints(0), ints(0, 1)), InvalidArgument, "a gather takes neither"),
        (Part(0, Op.POOL, ints(0)), InvalidArgument, "a pool takes offsets"),
        (Part(0, Op.POOL, ints(0), ints(0, 2)), InvalidArgument, "offsets must rise"),
        (Part(0, 7, ints(0)), InvalidArgument, "unknown operation 7"),
    ],
)
def test_a_part_that_cannot_be_done_is_named(shard, part, error, message):
    with pytest.raises(error, match=rf"parts\[1\]: .*{message}"):
        shard.execute(LookupRequest((Part(0, Op.GATHER, ints(0)), part)))


def test_what_a_store_cannot_do_keeps_its_code():
    shard = Shard([HostStore(np.zeros((3, 2), np.int32))])
    with pytest.raises(Unimplemented, match=r"parts\[0\]: slice 0: pooling rows of int32"):
        shard.execute(LookupRequest((Part(0, Op.POOL, ints(0), ints(0, 1)),)))


def test_the_cost_grows_with_what_is_touched(shard):
    def cost(*parts: Part) -> int:
        return shard.cost(LookupRequest(parts))

    assert cost() == 0
    assert cost(Part(0, Op.GATHER, ints(*range(10)))) >= 10 * 16 * 2
    assert cost(Part(0, Op.POOL, ints(), ints(*[0] * 1001))) >= 1000 * 16
    one = Part(1, Op.POOL, ints(1, 2, 3), ints(0, 3))
    assert cost(one, one) == 2 * cost(one)
    assert cost(Part(9, Op.GATHER, ints(1))) == 0


def test_shards_together_hold_the_tables(sources):
    table_a, table_b = (sources[name].table for name in "ab")
    layout = Layout(
        2,
        1,
        {"a": row_range(table_a, [(0, 0, 25), (1, 25, 40)]), "b": row_hash(table_b, [0, 1])},
    )
    rows_of_a, rows_of_b = [], []
    for number in range(2):
        slices = layout.slices_of_shard(number)
        shard = Shard.load(sources, slices)
        assert shard.nbytes == sum(piece.nbytes(sources[piece.table].table) for piece in slices)
        a, b = shard.execute(
            LookupRequest(
                tuple(
                    Part(i, Op.GATHER, np.arange(piece.rows.count))
                    for i, piece in enumerate(slices)
                )
            )
        )
        rows_of_a.append(a)
        rows_of_b.append((slices[1].rows.rows(0, len(b)), b))
    np.testing.assert_array_equal(np.concatenate(rows_of_a), A)
    for rows, values in rows_of_b:
        np.testing.assert_array_equal(values, B[rows])


def test_loading_tells_of_every_byte_and_refuses_unknown_tables(sources):
    slices = whole_table(sources["a"].table, 0).slices
    steps: list[int] = []
    Shard.load(sources, slices, steps.append)
    assert sum(steps) == A.nbytes
    with pytest.raises(InvalidArgument, match="table 'a'"):
        Shard.load({}, slices)


# In process: the same answers and errors, on the loop or on a thread.

SMALL = LookupRequest((Part(0, Op.GATHER, ints(3)),))
LARGE = LookupRequest((Part(0, Op.GATHER, np.arange(INLINE_COST // 16) % 40),))


def soon() -> float:
    return time.monotonic() + 30


@pytest.mark.parametrize("request_", [SMALL, LARGE], ids=["small", "large"])
async def test_a_local_channel_answers(shard, request_):
    reply = await LocalChannel(shard).lookup(request_, soon())
    np.testing.assert_array_equal(reply.results[0], A[request_.parts[0].rows])
    assert reply.lookup_seconds > 0
    assert reply.queue_seconds >= 0


async def test_a_local_channel_takes_many_requests_at_once(shard):
    channel = LocalChannel(shard)
    replies = await asyncio.gather(*[channel.lookup(LARGE, soon()) for _ in range(8)])
    for reply in replies:
        np.testing.assert_array_equal(reply.results[0], A[LARGE.parts[0].rows])


async def test_a_local_channel_raises_what_the_shard_raises(shard):
    bad = LookupRequest((Part(0, Op.GATHER, ints(99)), *LARGE.parts))
    with pytest.raises(InvalidArgument, match=r"rows\[0\] = 99"):
        await LocalChannel(shard).lookup(LookupRequest(bad.parts[:1]), soon())
    with pytest.raises(InvalidArgument, match=r"rows\[0\] = 99"):
        await LocalChannel(shard).lookup(bad, soon())


@pytest.mark.parametrize("request_", [SMALL, LARGE], ids=["small", "large"])
async def test_a_local_channel_does_not_start_what_is_too_late(shard, request_):
    with pytest.raises(DeadlineExceeded):
        await LocalChannel(shard).lookup(request_, time.monotonic() - 1)


class _Held:
    """A shard that computes until it is let go."""

    def __init__(self) -> None:
        self.started, self.release = threading.Event(), threading.Event()

    def cost(self, request: LookupRequest) -> int:
        return INLINE_COST + 1

    def execute(self, request: LookupRequest) -> tuple[np.ndarray, ...]:
        self.started.set()
        self.release.wait(60)
        return ()


async def test_a_local_channel_gives_up_at_the_deadline():
    held = _Held()
    with ThreadPoolExecutor(1) as threads:
        try:
            with pytest.raises(DeadlineExceeded, match="while the shard was at work"):
                await LocalChannel(held, threads).lookup(LARGE, time.monotonic() + 0.05)
            assert held.started.is_set()
        finally:
            held.release.set()


async def test_a_cancelled_lookup_that_waits_never_starts():
    busy, waiting = _Held(), _Held()
    with ThreadPoolExecutor(1) as threads:
        try:
            first = asyncio.ensure_future(LocalChannel(busy, threads).lookup(LARGE, soon()))
            await asyncio.to_thread(busy.started.wait, 60)
            second = asyncio.ensure_future(LocalChannel(waiting, threads).lookup(LARGE, soon()))
            await asyncio.sleep(0)
            second.cancel()
            with pytest.raises(asyncio.CancelledError):
                await second
        finally:
            busy.release.set()
        assert (await first).results == ()
    assert not waiting.started.is_set()


class _Broken(_Held):
    def execute(self, request: LookupRequest) -> tuple[np.ndarray, ...]:
        raise ZeroDivisionError


async def test_a_shard_that_fails_of_itself_is_an_internal_error():
    with pytest.raises(Internal) as raised:
        await LocalChannel(_Broken()).lookup(LARGE, soon())
    assert isinstance(raised.value, ServingError)
