"""The driver of a step scheduler: real loop, real clock, steps made of numpy."""

from __future__ import annotations

import asyncio
import logging

import numpy as np
import pytest

from shardserve.batching.driver import BatchDevice
from shardserve.batching.errors import (
    DeadlineExceeded,
    FailedPrecondition,
    Internal,
    InvalidArgument,
    Unavailable,
)
from shardserve.batching.parameters import BatchingParameters
from shardserve.batching.step_driver import StepBatcher, take_steps
from shardserve.batching.step_form import SequenceRow, StepForm
from shardserve.batching.step_turns import Turns

FORM = StepForm(1, 1, 0, ("s",), last=(0,), every=(0,))


def add(values):
    state, x = values
    if (x < 0).any():
        raise InvalidArgument("negative")
    return [state + x]


class Steps:
    """Takes steps when it is let; `running` says that a burst is under way."""

    def __init__(self, call=add):
        self.call = call
        self.running = asyncio.Event()
        self.go = asyncio.Event()
        self.go.set()
        self.bursts = []

    async def __call__(self, burst):
        self.running.set()
        await self.go.wait()
        taken = take_steps(burst, self.call)
        self.bursts.append((burst.rows, taken.steps))
        return taken


def batcher(take, rows=4, device=None):
    turns = None if device is None else Turns(device, "test")
    return StepBatcher("test", BatchingParameters(rows, 0, 2), FORM, take, turns)


def row(*numbers):
    return SequenceRow([np.zeros(1, int)], [np.array(numbers)])


async def total(steps, *numbers, **more):
    (result,) = await steps.submit([row(*numbers)], [len(numbers)], **more)
    assert result.every[0].tolist() == np.cumsum(numbers).tolist()
    return int(result.last[0][0])


async def test_sequences_that_come_together_are_stepped_together():
    take = Steps()
    steps = batcher(take)
    totals = await asyncio.gather(total(steps, 1), total(steps, 2, 3), total(steps, 4, 5, 6))
    assert totals == [1, 5, 15]
    assert take.bursts == [(1, 1), (2, 2), (1, 1)]
    counts = steps.counts()
    assert (counts.steps, counts.row_steps, counts.sequences) == (4, 6, 3)
    assert (counts.running, counts.waiting) == (0, 0)


async def test_all_sequences_of_a_request_end_before_it_is_answered():
    steps = batcher(Steps())
    results = await steps.submit([row(1), row(1, 2, 3)], [1, 3])
    assert [result.steps for result in results] == [1, 3]


async def test_a_failure_ends_its_request_and_nobody_elses():
    take = Steps()
    steps = batcher(take)
    take.go.clear()
    good = asyncio.ensure_future(total(steps, 1, 2, 3, 4))
    bad = asyncio.ensure_future(steps.submit([row(1, 1, 1, 1), row(1, -1)], [4, 2]))
    await take.running.wait()
    take.go.set()
    with pytest.raises(InvalidArgument, match="negative"):
        await bad
    assert await good == 10
    await steps.drain()
    assert steps.counts().row_steps < 4 + 4 + 2


async def test_an_error_of_ours_is_logged_and_internal(caplog):
    def crash(values):
        raise ZeroDivisionError("oh")

    with caplog.at_level(logging.ERROR), pytest.raises(Internal, match="ZeroDivisionError: oh"):
        await total(batcher(Steps(crash)), 1)
    assert "a step failed" in caplog.text


@pytest.mark.parametrize("slots", [None, 1])
async def test_a_step_that_is_cancelled_fails_its_sequences_and_no_later_ones(slots):
    gone = asyncio.get_running_loop().create_future()

    async def take(burst):
        if not gone.done():
            gone.cancel()
            await gone
        return take_steps(burst, add)

    steps = batcher(take, device=slots and BatchDevice(slots))
    with pytest.raises(Unavailable, match="was cancelled"):
        await asyncio.wait_for(total(steps, 1, 2), 30)
    assert await total(steps, 3, 4) == 7
    await steps.drain()
    assert steps.is_idle


async def test_a_kept_output_that_changes_its_form_fails_its_sequence_and_no_later_one():
    def alone(values):
        (n,) = values
        if len(n) > 1:
            raise InvalidArgument("one at a time")
        return [n + 1, np.zeros((1, int(n[0])))]

    form = StepForm(1, 0, 0, ("n", "growing"), every=(1,))
    steps = StepBatcher("test", BatchingParameters(4, 0, 2), form, Steps(alone))
    rows = [SequenceRow([np.zeros(1, int)]) for _ in range(3)]
    with pytest.raises(FailedPrecondition, match="'growing'"):
        await asyncio.wait_for(steps.submit(rows[:2], [3, 3]), 5)
    (result,) = await steps.submit(rows[2:], [1])
    assert result.every[0].shape == (1, 0)


async def test_a_request_that_is_cancelled_makes_room_for_the_next():
    take = Steps()
    steps = batcher(take, rows=1)
    take.go.clear()
    gone = asyncio.ensure_future(total(steps, *range(1000)))
    waiting = asyncio.ensure_future(total(steps, 7))
    await take.running.wait()
    gone.cancel()
    take.go.set()
    assert await waiting == 7
    assert gone.cancelled()


async def test_a_request_ends_at_its_deadline_while_its_step_runs():
    take = Steps()
    steps = batcher(take)
    take.go.clear()
    with pytest.raises(DeadlineExceeded):
        await total(steps, 1, deadline=asyncio.get_running_loop().time() + 0.01)
    take.go.set()
    await steps.drain()
    assert steps.is_idle


async def test_a_drain_waits_for_what_was_accepted():
    take = Steps()
    steps = batcher(take)
    take.go.clear()
    asked = asyncio.ensure_future(total(steps, 1, 2))
    await take.running.wait()
    draining = asyncio.ensure_future(steps.drain())
    await asyncio.sleep(0)
    with pytest.raises(Unavailable, match="being unloaded"):
        await total(steps, 1)
    assert not draining.done()
    take.go.set()
    await draining
    assert await asked == 3


async def test_bursts_take_turns_with_the_batches_of_other_stages():
    device = BatchDevice(1)
    take = Steps()
    steps = batcher(take, device=device)
    ran = []

    async def run(batch):
        ran.append(len(take.bursts))
        return [task.payload for task in batch.tasks]

    other = device.batcher("other", BatchingParameters(1, 0, 100), run)
    asked = asyncio.ensure_future(total(steps, *range(1, 101)))
    await take.running.wait()
    assert await asyncio.gather(*[other.submit(None, n, 1) for n in range(3)]) == [0, 1, 2]
    assert not asked.done()
    assert await asked == 5050
