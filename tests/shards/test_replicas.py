"""The replicas of a shard as one channel: requests survive the loss of any one of them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shardserve.batching.errors import (
    Cancelled,
    DeadlineExceeded,
    InvalidArgument,
    NotFound,
    ResourceExhausted,
    Unavailable,
)
from shardserve.shards.address import Address
from shardserve.shards.calls import Call
from shardserve.shards.fan_out import fan_out
from shardserve.shards.link import LinkLimits
from shardserve.shards.messages import LookupReply, LookupRequest
from shardserve.shards.replicas import ReplicatedChannel, choose
from shardserve.shards.server import ShardServer
from shardserve.shards.stream import backoff
from shardserve.shards.waiting import WaitingRoom
from tests.shards.plane import (
    CREDENTIALS,
    LARGE,
    TABLE,
    Gate,
    Outcomes,
    Raising,
    gather,
    in_,
    serving,
    until,
)


async def no_pause(_seconds: float) -> None:
    await asyncio.sleep(0)


@asynccontextmanager
async def channel_to(
    *addresses: Address, patience_seconds: float = 60.0, all_up: bool = True, **limits: float
) -> AsyncIterator[ReplicatedChannel]:
    channel = ReplicatedChannel(
        "shard 3",
        addresses,
        CREDENTIALS,
        LinkLimits(**limits),  # type: ignore[arg-type]
        patience_seconds=patience_seconds,
        pause=no_pause,
    )
    if all_up:
        await until(lambda: all(stream.is_up for stream in channel._streams))
    try:
        yield channel
        assert channel.in_flight == 0
    finally:
        await channel.close()
        assert channel.in_flight == 0


def break_connections(server: ShardServer) -> None:
    for session in list(server._sessions):
        session.abort()


# Who is asked


@pytest.mark.parametrize(
    ("loads", "turn", "place"),
    [
        ([], 0, None),
        ([None, None], 3, None),
        ([0], 5, 0),
        ([2, 1, 2], 0, 1),
        ([1, 1, 1], 1, 1),
        ([1, 1, 1], 5, 2),
        ([0, 3, 0], 1, 2),
        ([None, 9, None], 0, 1),
    ],
)
def test_the_least_busy_is_chosen_and_equals_take_turns(
    loads: list[int | None], turn: int, place: int | None
) -> None:
    assert choose(loads, turn) == place


@given(st.lists(st.integers(0, 3), min_size=1, max_size=5), st.integers(0, 9))
def test_equals_are_all_chosen_within_one_round(loads: list[int], turn: int) -> None:
    chosen = {choose(loads, turn + step) for step in range(len(loads))}
    assert chosen == {place for place, load in enumerate(loads) if load == min(loads)}


@given(st.integers(1, 40), st.floats(0, 1, exclude_max=True))
def test_pauses_between_attempts_grow_to_a_bound(failures: int, chance: float) -> None:
    assert 0.01 <= backoff(failures, chance) <= 2.0
    assert backoff(failures + 1, chance) >= backoff(failures, chance)


async def test_requests_are_spread_over_the_replicas() -> None:
    gates = [Gate(LARGE, is_open=False) for _ in range(3)]
    async with AsyncExitStack() as stack:
        shards = [await stack.enter_async_context(serving(gate, threads=4)) for gate in gates]
        channel = await stack.enter_async_context(channel_to(*(a for _, a in shards)))
        tasks = [asyncio.create_task(channel.lookup(gather(n), in_(60.0))) for n in range(9)]
        await until(lambda: all(server.in_flight == 3 for server, _ in shards))
        for gate in gates:
            gate.opened.set()
        await asyncio.gather(*tasks)


# Losses


async def test_another_replica_takes_over_what_was_in_flight() -> None:
    stuck, ready = Gate(LARGE, is_open=False), Gate()
    async with (
        serving(stuck) as (server, first),
        serving(ready) as (_, second),
        channel_to(first, second) as channel,
    ):
        tasks = [asyncio.create_task(channel.lookup(gather(n), in_(60.0))) for n in range(6)]
        await stuck.has_entered()
        channel.update([first, second])
        break_connections(server)
        for number, reply in enumerate(await asyncio.gather(*tasks)):
            np.testing.assert_array_equal(reply.results[0], TABLE[[number]])
        stuck.opened.set()


async def test_a_broken_connection_is_waited_for() -> None:
    async with serving(Gate()) as (server, address), channel_to(address) as channel:
        for _ in range(5):
            break_connections(server)
            await until(lambda: not channel.is_up)
            await channel.lookup(gather(1), in_(60.0))


async def test_what_was_in_flight_on_the_only_connection_goes_over_the_next_one() -> None:
    gate = Gate(LARGE, is_open=False)
    async with serving(gate) as (server, address), channel_to(address) as channel:
        task = asyncio.create_task(channel.lookup(gather(7), in_(60.0)))
        await gate.has_entered()
        break_connections(server)
        gate.opened.set()
        reply = await task
        np.testing.assert_array_equal(reply.results[0], TABLE[[7]])
        assert gate.executed == [7, 7]


async def test_a_request_that_breaks_every_connection_is_not_tried_for_ever() -> None:
    gate = Gate(LARGE, is_open=False)
    async with serving(gate, threads=4) as (server, address), channel_to(address) as channel:
        task = asyncio.create_task(channel.lookup(gather(7), in_(60.0)))
        for _ in range(2):
            await gate.has_entered()
            break_connections(server)
        with pytest.raises(Unavailable, match="shard 3"):
            await task
        gate.opened.set()


async def test_a_shard_that_says_it_is_busy_is_not_asked_again() -> None:
    busy = Raising(Unavailable("too busy"))
    async with serving(busy) as (_, address), channel_to(address) as channel:
        with pytest.raises(Unavailable, match="too busy"):
            await channel.lookup(gather(1), in_(60.0))


async def test_what_one_replica_is_too_busy_for_another_may_do() -> None:
    async with (
        serving(Raising(Unavailable("too busy"))) as (_, first),
        serving(Gate()) as (_, second),
        channel_to(first, second) as channel,
    ):
        for _ in range(4):
            await channel.lookup(gather(1), in_(60.0))


async def test_other_errors_are_final() -> None:
    async with (
        serving(Raising(NotFound("no such row"))) as (_, first),
        serving(Raising(NotFound("no such row"))) as (_, second),
        channel_to(first, second) as channel,
    ):
        with pytest.raises(NotFound, match="no such row"):
            await channel.lookup(gather(1), in_(60.0))


# Outages


async def test_without_a_replica_the_shard_is_named_and_so_is_the_reason() -> None:
    nowhere = Address("/nowhere/shard.sock", node="another")
    async with channel_to(nowhere, all_up=False, patience_seconds=0.0) as channel:
        await until(lambda: channel._streams[0].last_error)
        with pytest.raises(Unavailable, match=r"shard 3: no replica .*nowhere.* cannot be reached"):
            await channel.lookup(gather(1), in_(60.0))
    async with channel_to(all_up=False, patience_seconds=0.0) as channel:
        with pytest.raises(Unavailable, match="none is known"):
            await channel.lookup(gather(1), in_(60.0))


async def test_patience_ends_for_all_at_once_and_then_there_is_none() -> None:
    async with channel_to(all_up=False, patience_seconds=0.02) as channel:
        tasks = [asyncio.create_task(channel.lookup(gather(1), in_(60.0))) for _ in range(5)]
        await until(lambda: channel.in_flight == 5)
        for task in tasks:
            with pytest.raises(Unavailable, match="shard 3: no replica can be reached"):
                await task
        late = asyncio.create_task(channel.lookup(gather(1), in_(60.0)))
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        assert late.done()
        with pytest.raises(Unavailable):
            await late


async def test_a_deadline_may_end_before_patience_does() -> None:
    async with channel_to(all_up=False) as channel:
        with pytest.raises(DeadlineExceeded, match="shard 3"):
            await channel.lookup(gather(1), in_(0.01))


async def test_more_than_may_wait_are_unavailable_at_once() -> None:
    async with channel_to(all_up=False, max_in_flight=2) as channel:
        sink = Outcomes()
        calls = [channel.submit(gather(1), in_(60.0), sink, tag) for tag in range(3)]
        assert list(sink.ended) == [2]
        for call in calls:
            call.cancel()
        assert channel.in_flight == 0
        assert list(sink.ended) == [2]


class LookedAt(Call):
    """Counts how often anybody wants to know the deadline of one of them."""

    looks = 0

    @property
    def deadline(self) -> float:  # type: ignore[override]
        LookedAt.looks += 1
        return self._deadline

    @deadline.setter
    def deadline(self, when: float) -> None:
        self._deadline = when


async def test_one_more_that_waits_costs_the_same_however_many_do() -> None:
    room = WaitingRoom("shard 0", 60.0, 500, lambda: "none")
    calls = [LookedAt(gather(0), in_(60), Outcomes(), tag) for tag in range(500)]
    for call in calls:
        room.admit(call)
    assert LookedAt.looks <= 2 * len(calls)
    assert room.release() == calls


async def test_those_who_wait_are_served_when_an_address_comes() -> None:
    async with channel_to(all_up=False) as channel, serving(Gate()) as (_, address):
        tasks = [asyncio.create_task(channel.lookup(gather(n), in_(60.0))) for n in range(5)]
        await until(lambda: channel.in_flight == 5)
        channel.update([address])
        await asyncio.gather(*tasks)
        channel.update([])


async def test_closing_fails_those_who_wait() -> None:
    channel = ReplicatedChannel("shard 3", [], CREDENTIALS, patience_seconds=60.0)
    task = asyncio.create_task(channel.lookup(gather(1), in_(60.0)))
    await until(lambda: channel.in_flight)
    await channel.close()
    with pytest.raises(Unavailable, match="closed by this router"):
        await task


# New addresses


async def test_an_update_keeps_what_stays_and_lets_go_of_what_goes_once_it_is_idle() -> None:
    staying, going = Gate(LARGE, is_open=False), Gate(LARGE, is_open=False)
    async with (
        serving(staying) as (kept, first),
        serving(going) as (left, second),
        channel_to(first, second) as channel,
    ):
        tasks = [asyncio.create_task(channel.lookup(gather(n), in_(60.0))) for n in range(2)]
        await staying.has_entered()
        await going.has_entered()
        (session,) = kept._sessions
        channel.update([first])
        assert channel.addresses == {first}
        assert left.connections == 1
        for gate in (going, staying):
            gate.opened.set()
        await asyncio.gather(*tasks)
        await until(lambda: left.connections == 0)
        assert set(kept._sessions) == {session}
        await channel.lookup(gather(1), in_(60.0))
        assert len(going.executed) == 1


async def test_closing_ends_what_is_in_flight_on_a_replica_that_went() -> None:
    gate = Gate(LARGE, is_open=False)
    async with serving(gate) as (server, address), channel_to(address) as channel:
        task = asyncio.create_task(channel.lookup(gather(1), in_(60.0)))
        await gate.has_entered()
        channel.update([])
        assert channel.in_flight == 1
        await channel.close()
        with pytest.raises(Unavailable, match="closed by this router"):
            await task
        await until(lambda: server.connections == 0)
        gate.opened.set()


async def test_an_idle_replica_that_goes_is_left_at_once() -> None:
    async with (
        serving(Gate()) as (left, first),
        serving(Gate()) as (_, second),
        channel_to(first) as channel,
    ):
        channel.update([second])
        await until(lambda: left.connections == 0)
        await channel.lookup(gather(1), in_(60.0))


async def test_a_replica_that_is_still_being_connected_can_go() -> None:
    async with serving(Gate()) as (server, address):
        for turns in range(8):
            async with channel_to(address, all_up=False) as channel:
                for _ in range(turns):
                    await asyncio.sleep(0)
                channel.update([])
                await until(lambda: server.connections == 0)


@settings(max_examples=25, deadline=None)
@given(
    st.lists(
        st.sampled_from(["ask", "ask", "ask", "cancel", "break 0", "break 1", "only 0", "both"]),
        min_size=5,
        max_size=40,
    )
)
def test_every_request_ends_exactly_once_whatever_happens_to_the_replicas(
    program: list[str],
) -> None:
    async def run() -> None:
        gates = [Gate(LARGE), Gate()]
        async with (
            serving(gates[0], threads=2) as (zero, first),
            serving(gates[1]) as (one, second),
            channel_to(first, second) as channel,
        ):
            sink = Outcomes()
            calls = []
            cancelled = set()
            for what in program:
                match what:
                    case "ask":
                        tag = len(calls)
                        calls.append(channel.submit(gather(tag), in_(60.0), sink, tag))
                    case "cancel" if calls:
                        calls[-1].cancel()
                        if len(calls) - 1 not in sink.ended:
                            cancelled.add(len(calls) - 1)
                    case "break 0" | "break 1":
                        break_connections(zero if what.endswith("0") else one)
                    case "only 0":
                        channel.update([first])
                    case "both":
                        channel.update([first, second])
                await asyncio.sleep(0)
            await until(lambda: channel.in_flight == 0)
            await until(lambda: len(sink.ended) + len(cancelled) == len(calls))
            assert not cancelled & set(sink.ended)
            for tag, outcomes in sink.ended.items():
                (outcome,) = outcomes
                if isinstance(outcome, LookupReply):
                    np.testing.assert_array_equal(outcome.results[0], TABLE[[tag]])
                else:
                    assert isinstance(outcome, Unavailable)

    asyncio.run(run())


# Fan-out


class SlowChannel:
    """A `ShardChannel` that has nothing but `lookup`."""

    def __init__(self) -> None:
        self.asked = 0
        self.cancelled = 0
        self.go_on = asyncio.Event()

    async def lookup(self, request: LookupRequest, deadline: float) -> LookupReply:
        self.asked += 1
        try:
            await self.go_on.wait()
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        return LookupReply((TABLE[request.parts[0].rows],))


async def test_replies_come_in_the_order_in_which_they_were_asked_for() -> None:
    slow = SlowChannel()
    async with serving(Gate()) as (_, address), channel_to(address) as channel:
        asked = [(slow, gather(1)), (channel, gather(2)), (channel, gather(3))]
        task = asyncio.create_task(fan_out(asked, in_(60.0)))
        await until(lambda: channel.in_flight == 0 and slow.asked)
        slow.go_on.set()
        replies = await task
        assert [reply.results[0].tolist() for reply in replies] == TABLE[[[1], [2], [3]]].tolist()
    assert await fan_out([], in_(60.0)) == []


async def test_the_first_error_cancels_the_others_and_their_shards_know() -> None:
    gate = Gate(LARGE, is_open=False)
    slow = SlowChannel()
    async with (
        serving(gate, threads=1) as (server, first),
        serving(Raising(InvalidArgument("row 9 is bad"))) as (_, second),
        channel_to(first) as stuck,
        channel_to(second) as failing,
    ):
        asked = [(stuck, gather(1)), (slow, gather(1)), (stuck, gather(2)), (failing, gather(9))]
        with pytest.raises(InvalidArgument, match="row 9 is bad"):
            await fan_out(asked, in_(60.0))
        assert stuck.in_flight == 0
        await until(lambda: server.in_flight == 0 and slow.cancelled == slow.asked)
        gate.opened.set()
    assert gate.executed in ([], [1])


async def test_an_error_before_anything_is_sent_stops_the_fan_out() -> None:
    async with serving(Gate()) as (_, address), channel_to(address) as channel:
        bad = LookupRequest(tuple(gather(1).parts) * 5000)
        with pytest.raises(ResourceExhausted, match="arrays for one message"):
            await fan_out([(channel, bad), (channel, gather(1))], in_(60.0))
        assert channel.in_flight == 0


async def test_a_fan_out_can_be_cancelled_at_every_await() -> None:
    gate = Gate(LARGE, is_open=False)
    slow = SlowChannel()
    async with serving(gate, threads=1) as (server, address), channel_to(address) as channel:
        for turns in range(6):
            asked = [(channel, gather(1)), (slow, gather(2))]
            task = asyncio.create_task(fan_out(asked, in_(60.0)))
            for _ in range(turns):
                await asyncio.sleep(0)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            assert channel.in_flight == 0
            await until(lambda: server.in_flight == 0)
            await until(lambda: slow.cancelled == slow.asked)
        gate.opened.set()


async def test_a_lookup_that_somebody_else_cancels_fails_the_fan_out() -> None:
    class Cancelling:
        async def lookup(self, request: LookupRequest, deadline: float) -> LookupReply:
            raise asyncio.CancelledError

    with pytest.raises(Cancelled):
        await fan_out([(Cancelling(), gather(1)), (SlowChannel(), gather(1))], in_(60.0))
