"""Lookups that go to a shard together end each by itself."""

from __future__ import annotations

import asyncio
import math
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from shardserve.batching.errors import (
    DeadlineExceeded,
    Internal,
    InvalidArgument,
    Unavailable,
)
from shardserve.shards.batched_channel import BatchedChannel
from shardserve.shards.calls import Call, Sink
from shardserve.shards.fan_out import fan_out
from shardserve.shards.messages import Axis, LookupReply, LookupRequest, Op, Part, ScorePart
from shardserve.shards.stages import LookupBatching
from shardserve.shards.stream import ShardStream
from tests.shards.plane import (
    CREDENTIALS,
    LARGE,
    TABLE,
    Gate,
    Outcomes,
    gather,
    in_,
    serving,
    until,
)

ONE = LookupBatching(max_in_flight_batches=1)
BAD = 99
#: On `time.monotonic`: no alarm rings before.
FAR = 1e9


class Shard:
    """A channel that holds every message until it is told to answer.

    One that is late at `now` ends at once, and while the shard is down, every one does.
    """

    def __init__(self) -> None:
        self.asked: list[Call] = []
        self.cancelled: list[Call] = []
        self.now = 0.0
        self.is_down = False

    def submit(self, request: LookupRequest, deadline: float, sink: Sink, tag: int) -> Call:
        call = Call(request, deadline, sink, tag)
        call.holder = self
        if deadline <= self.now:
            call.end(DeadlineExceeded("no time was left to ask"))
        elif self.is_down:
            call.end(Unavailable("gone"))
        else:
            self.asked.append(call)
        return call

    def forget(self, call: Call) -> None:
        self.asked.remove(call)
        self.cancelled.append(call)

    def rows(self) -> list[list[int]]:
        return [[int(p.rows[0]) for p in call.request.parts] for call in self.asked]

    def answer(self) -> None:
        """The oldest message: its rows, or an error where a part asks for the bad one."""
        call = self.asked.pop(0)
        if any(BAD in part.rows for part in call.request.parts):
            call.end(InvalidArgument("a bad row"))
            return
        parts = [np.array(part.rows) for part in call.request.parts]
        scores = [score.queries * 2 for score in call.request.scores]
        call.succeed(LookupReply((*parts, *scores), 0.25, 0.5))


@pytest.fixture
def ask() -> Callable[..., tuple[Shard, BatchedChannel, Outcomes]]:
    def make(batching: LookupBatching = ONE) -> tuple[Shard, BatchedChannel, Outcomes]:
        shard = Shard()
        return shard, BatchedChannel(shard, batching), Outcomes()

    return make


def submit(channel: BatchedChannel, outcomes: Outcomes, *rows: int, seconds: float = 60) -> None:
    for row in rows:
        channel.submit(gather(row), in_(seconds), outcomes, row)


async def test_what_comes_while_a_message_is_under_way_goes_as_one(ask):
    shard, channel, outcomes = ask()
    submit(channel, outcomes, 1, 2, 3, 4)
    assert shard.rows() == [[1]]
    shard.answer()
    assert shard.rows() == [[2, 3, 4]]
    shard.answer()
    for row in (1, 2, 3, 4):
        (reply,) = outcomes.ended[row]
        assert isinstance(reply, LookupReply)
        assert [result.tolist() for result in reply.results] == [[row]]
        assert (reply.queue_seconds, reply.lookup_seconds) == (0.25, 0.5)


async def test_each_gets_its_own_parts_and_scores(ask):
    shard, channel, outcomes = ask()
    submit(channel, outcomes, 1)
    for tag in (10, 20):
        parts = tuple(Part(0, Op.GATHER, np.array([tag + n])) for n in range(tag // 10))
        scores = (ScorePart(0, np.full((1, 2), tag, np.float32), Axis.ROWS),)
        channel.submit(LookupRequest(parts, scores), in_(60), outcomes, tag)
    shard.answer()
    shard.answer()
    for tag, expected in ((10, [[10], [[20, 20]]]), (20, [[20], [21], [[40, 40]]])):
        (reply,) = outcomes.ended[tag]
        assert isinstance(reply, LookupReply)
        assert [result.tolist() for result in reply.results] == expected


async def test_a_bad_one_fails_alone(ask):
    shard, channel, outcomes = ask()
    submit(channel, outcomes, 1, 2, BAD, 3)
    for _ in range(5):
        shard.answer()
    assert not shard.asked
    (error,) = outcomes.ended[BAD]
    assert isinstance(error, InvalidArgument)
    for row in (1, 2, 3):
        (reply,) = outcomes.ended[row]
        assert isinstance(reply, LookupReply)


async def test_an_error_of_the_shards_is_everybodys(ask):
    shard, channel, outcomes = ask()
    submit(channel, outcomes, 1, 2, 3)
    shard.answer()
    shard.asked.pop().end(Internal("broken"))
    assert [type(outcomes.ended[row][0]) for row in (2, 3)] == [Internal, Internal]
    submit(channel, outcomes, 4)
    shard.answer()
    assert isinstance(outcomes.ended[4][0], LookupReply)


async def test_messages_are_bounded_by_rows_and_by_bytes(ask):
    for bounded in (
        LookupBatching(max_in_flight_batches=1, max_batch_size=2),
        LookupBatching(max_in_flight_batches=1, max_batch_bytes=16),
    ):
        shard, channel, outcomes = ask(bounded)
        submit(channel, outcomes, 1, 2, 3, 4, 5, 6)
        for _ in range(3):
            shard.answer()
        assert shard.rows() == [[6]]


async def test_too_many_that_wait_are_refused_at_once(ask):
    bounded = LookupBatching(max_in_flight_batches=1, max_batch_size=1, max_enqueued_batches=2)
    shard, channel, outcomes = ask(bounded)
    submit(channel, outcomes, 1, 2, 3, 4)
    (error,) = outcomes.ended[4]
    assert isinstance(error, Unavailable)
    for _ in range(3):
        shard.answer()
    assert outcomes.ended.keys() == {1, 2, 3, 4}


async def test_a_message_is_cancelled_when_nobody_waits_for_it_any_more(ask):
    shard, channel, outcomes = ask()
    submit(channel, outcomes, 1)
    calls = [channel.submit(gather(row), in_(60), outcomes, row) for row in (2, 3)]
    waits = channel.submit(gather(4), in_(60), outcomes, 4)
    waits.cancel()
    shard.answer()
    assert shard.rows() == [[2, 3]]
    calls[0].cancel()
    assert not shard.cancelled
    calls[1].cancel()
    assert len(shard.cancelled) == 1
    submit(channel, outcomes, 5)
    shard.answer()
    assert outcomes.ended.keys() == {1, 5}


async def test_each_ends_by_its_own_deadline(ask):
    shard, channel, outcomes = ask()
    submit(channel, outcomes, 1)
    submit(channel, outcomes, 2, seconds=0.01)
    submit(channel, outcomes, 3)
    shard.answer()
    await until(lambda: 2 in outcomes.ended)
    assert isinstance(outcomes.ended[2][0], DeadlineExceeded)
    shard.answer()
    assert isinstance(outcomes.ended[3][0], LookupReply)
    assert len(outcomes.ended[2]) == 1


async def test_what_is_late_together_ends_together_be_it_under_way_or_waiting(ask):
    shard, channel, outcomes = ask()
    late = FAR + 1
    for row in (1, 2, 3):
        channel.submit(gather(row), late, outcomes, row)
    channel.submit(gather(4), math.inf, outcomes, 4)
    shard.now = late
    channel.expire(late)
    assert [type(outcomes.ended[row][0]) for row in (1, 2, 3)] == [DeadlineExceeded] * 3
    assert shard.rows() == [[4]]


async def test_a_shard_that_is_gone_fails_however_many_wait_for_it(ask):
    waiting = 10 * sys.getrecursionlimit()
    shard, channel, outcomes = ask(
        LookupBatching(max_in_flight_batches=1, max_batch_size=1, max_enqueued_batches=waiting)
    )
    submit(channel, outcomes, *range(waiting))
    shard.is_down = True
    shard.asked.pop().end(Unavailable("gone"))
    assert len(outcomes.ended) == waiting


async def test_a_message_all_of_whose_calls_are_late_at_once_leaves_its_place_once(ask):
    shard, channel, outcomes = ask()
    submit(channel, outcomes, 1)
    deadline = in_(0.01)
    for row in (2, 3):
        channel.submit(gather(row), deadline, outcomes, row)
    shard.answer()
    await until(lambda: 3 in outcomes.ended)
    assert channel.counts().running_batches == 0
    submit(channel, outcomes, 4, 5, 6)
    assert shard.rows() == [[4]]


@settings(max_examples=200, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    st.lists(
        st.one_of(
            st.tuples(st.just("ask"), st.tuples(st.integers(0, BAD), st.integers(-1, 3))),
            st.tuples(st.just("cancel"), st.integers(0, 20)),
            st.tuples(st.just("answer"), st.none()),
            st.tuples(st.just("fail"), st.none()),
            st.tuples(st.just("down"), st.booleans()),
            st.tuples(st.just("wait"), st.integers(1, 4)),
        ),
        min_size=10,
        max_size=40,
    ),
    st.integers(1, 3),
    st.integers(1, 4),
)
def test_every_call_ends_once_or_is_cancelled(steps, in_flight, size):
    batching = LookupBatching(
        max_in_flight_batches=in_flight, max_batch_size=size, max_enqueued_batches=2
    )

    async def program() -> None:
        shard, outcomes = Shard(), Outcomes()
        shard.now = FAR
        channel = BatchedChannel(shard, batching)
        calls: list[Call] = []
        cancelled: set[int] = set()
        for what, value in steps:
            match what, value:
                case "ask", (row, seconds):
                    deadline = shard.now + seconds
                    calls.append(channel.submit(gather(row), deadline, outcomes, len(calls)))
                case "cancel", tag if tag < len(calls):
                    if tag not in outcomes.ended:
                        cancelled.add(tag)
                    calls[tag].cancel()
                case "answer", _ if shard.asked:
                    shard.answer()
                case "fail", _ if shard.asked:
                    shard.asked.pop(0).end(Unavailable("gone"))
                case "down", is_down:
                    shard.is_down = is_down
                case "wait", seconds:
                    shard.now += seconds
                    channel.expire(shard.now)
                    ended = outcomes.ended.keys() | cancelled
                    assert all(
                        call.deadline > shard.now or tag in ended for tag, call in enumerate(calls)
                    )
            assert len(shard.asked) <= in_flight + size
        while shard.asked:
            shard.answer()
        assert channel.counts().running_batches == channel.counts().waiting_tasks == 0
        assert outcomes.ended.keys() == set(range(len(calls))) - cancelled
        for tag, (outcome, *more) in outcomes.ended.items():
            assert not more
            row = int(calls[tag].request.parts[0].rows[0])
            match outcome:
                case LookupReply():
                    assert outcome.results[0].tolist() == [row]
                case DeadlineExceeded():
                    assert calls[tag].deadline <= shard.now
                case InvalidArgument():
                    assert row == BAD
                case _:
                    assert isinstance(outcome, Unavailable)

    asyncio.run(program())


async def test_over_a_stream_what_waits_for_a_busy_shard_is_asked_at_once(tmp_path: Path):
    gate = Gate(cost=LARGE, is_open=False)
    async with serving(gate, tmp_path / "shard.sock") as (_, address):
        stream = ShardStream("shard", address, CREDENTIALS)
        await stream.connect()
        channel = BatchedChannel(stream, ONE)
        asked = [
            asyncio.ensure_future(fan_out([(channel, gather(row, 3))], in_(60)))
            for row in range(10)
        ]
        await gate.has_entered()
        gate.opened.set()
        replies = await asyncio.gather(*asked)
        await stream.close()
    for row, (reply,) in enumerate(replies):
        np.testing.assert_array_equal(reply.results[0], TABLE[[row, 3]])
    assert len(gate.executed) == 2
