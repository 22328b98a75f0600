"""Running batches of one step function: one for each likeness of rows, and not too many."""

from __future__ import annotations

import asyncio

import numpy as np
import pytest

from shardserve.batching.driver import BatchDevice
from shardserve.batching.errors import InvalidArgument, Unavailable
from shardserve.batching.parameters import BatchingParameters
from shardserve.batching.step_form import SequenceRow, StepForm
from shardserve.router.stepped import MAX_RUNNING_BATCHES, SteppedRows, on_loop

FORM = StepForm(1, 0, 0, ("s",), last=(0,))


class Doubling:
    """Doubles states, when it is let."""

    def __init__(self):
        self.go = asyncio.Event()
        self.go.set()
        self.calls = 0

    async def __call__(self, values):
        await self.go.wait()
        self.calls += 1
        if self.calls == 3 and len(values[0]) == 1 and values[0].max() > 1000:
            raise InvalidArgument("too large")
        return [values[0] * 2]


def stepped(call, device=None):
    return SteppedRows("test", BatchingParameters(4, 0, 2), FORM, on_loop(call), device)


async def doubled(rows, width, steps=1, start=1):
    row = SequenceRow([np.full((1, width), start)])
    (result,) = await rows.run([row], [steps], width)
    return result.last[0].tolist()


async def test_rows_of_many_shapes_are_stepped_one_after_the_other():
    rows = stepped(Doubling(), BatchDevice(1))
    for width in range(1, 3 * MAX_RUNNING_BATCHES):
        assert await doubled(rows, width, 3) == [[8] * width]
    assert rows.counts().sequences == 3 * MAX_RUNNING_BATCHES - 1
    assert rows.counts().steps == 3 * (3 * MAX_RUNNING_BATCHES - 1)


async def test_more_shapes_at_once_than_there_are_running_batches_are_refused():
    call = Doubling()
    call.go.clear()
    rows = stepped(call, BatchDevice(1))
    asked = [asyncio.ensure_future(doubled(rows, w)) for w in range(1, MAX_RUNNING_BATCHES + 1)]
    await asyncio.sleep(0)
    with pytest.raises(Unavailable, match="16 different shapes"):
        await doubled(rows, 99)
    call.go.set()
    assert await asyncio.gather(*asked) == [[[2] * w] for w in range(1, MAX_RUNNING_BATCHES + 1)]
    assert await doubled(rows, 99) == [[2] * 99]


async def test_a_later_step_of_a_burst_that_fails_is_asked_for_again():
    call = Doubling()
    assert await doubled(stepped(call), 1, 5, start=500) == [[16000]]
    assert call.calls == 6


async def test_after_a_drain_nothing_is_accepted():
    rows = stepped(Doubling())
    await doubled(rows, 1)
    await rows.drain()
    for width in (1, 2):
        with pytest.raises(Unavailable, match="being unloaded"):
            await doubled(rows, width)
