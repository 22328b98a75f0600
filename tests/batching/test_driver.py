"""The batcher on a real event loop: results, errors, cancellations, drains."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shardserve.batching.driver import BatchDevice, Batcher
from shardserve.batching.errors import (
    DeadlineExceeded,
    Internal,
    InvalidArgument,
    ResourceExhausted,
    Unavailable,
)
from shardserve.batching.parameters import BatchingParameters
from shardserve.batching.tasks import Batch

ONE_AT_A_TIME = BatchingParameters(max_batch_size=8, num_batch_threads=1)


def batcher_of(
    run: Callable[[Batch[int]], Any], parameters: BatchingParameters
) -> Batcher[int, int]:
    """A stage that has a device for itself."""
    return BatchDevice(parameters.num_batch_threads).batcher("stage", parameters, run)


class Runs:
    """Doubles numbers. Each run is written down, and waits until it is let through.

    Negative numbers are refused, zero makes it crash.
    """

    def __init__(self) -> None:
        self.seen: list[list[int]] = []
        self.cancelled: list[list[int]] = []
        self._changed = asyncio.Condition()
        self._allowed = 0

    async def __call__(self, batch: Batch[int]) -> Sequence[int]:
        numbers = [task.payload for task in batch.tasks]
        async with self._changed:
            self.seen.append(numbers)
            self._changed.notify_all()
            turn = len(self.seen)
            try:
                await self._changed.wait_for(lambda: self._allowed >= turn)
            except asyncio.CancelledError:
                self.cancelled.append(numbers)
                raise
        if min(numbers) < 0:
            raise InvalidArgument(f"{min(numbers)} is negative")
        return [2 * 100 // number for number in numbers]

    async def started(self, count: int) -> None:
        async with self._changed:
            await self._changed.wait_for(lambda: len(self.seen) >= count)

    async def let_through(self, count: int = 1000) -> None:
        async with self._changed:
            self._allowed += count
            self._changed.notify_all()


async def ran_alone(batcher: Batcher[int, int], runs: Runs) -> asyncio.Task[int]:
    """A task that holds the only slot until it is let through."""
    first = asyncio.create_task(batcher.submit("k", 100, 1))
    await runs.started(1)
    return first


def submitted(batcher: Batcher[int, int], *numbers: int) -> list[asyncio.Task[int]]:
    return [asyncio.create_task(batcher.submit("k", number, 1)) for number in numbers]


async def accepted() -> None:
    """Let tasks that were just created run as far as they can."""
    await asyncio.sleep(0)


async def test_each_caller_gets_its_own_result_of_a_run_in_common():
    runs = Runs()
    batcher = batcher_of(runs, ONE_AT_A_TIME)
    first = await ran_alone(batcher, runs)
    others = submitted(batcher, 1, 2, 4)
    await accepted()
    await runs.let_through()
    assert await asyncio.gather(first, *others) == [2, 200, 100, 50]
    assert runs.seen == [[100], [1, 2, 4]]


async def test_a_bad_task_fails_alone():
    runs = Runs()
    batcher = batcher_of(runs, ONE_AT_A_TIME)
    first = await ran_alone(batcher, runs)
    others = submitted(batcher, 1, 2, -3, 4, 5)
    await accepted()
    await runs.let_through()
    await first
    results = await asyncio.gather(*others, return_exceptions=True)
    assert [r for r in results if isinstance(r, int)] == [200, 100, 50, 40]
    assert isinstance(results[2], InvalidArgument)
    assert results[2].message == "-3 is negative"


async def test_a_crash_is_everybodys_and_is_logged(caplog):
    runs = Runs()
    batcher = batcher_of(runs, ONE_AT_A_TIME)
    first = await ran_alone(batcher, runs)
    others = submitted(batcher, 1, 0)
    await accepted()
    await runs.let_through()
    await first
    errors = await asyncio.gather(*others, return_exceptions=True)
    assert [type(error) for error in errors] == [Internal, Internal]
    assert "ZeroDivisionError" in errors[0].message
    assert errors[0] is not errors[1]
    assert [record.message for record in caplog.records] == ["the run of a batch failed"]
    assert await batcher.submit("k", 10, 1) == 20


async def test_too_few_results_are_an_internal_error():
    async def nothing(batch: Batch[int]) -> Sequence[int]:
        return []

    with pytest.raises(Internal, match="0 results for 1 tasks"):
        await batcher_of(nothing, ONE_AT_A_TIME).submit("k", 1, 1)


async def test_a_cancelled_caller_takes_its_waiting_task_along():
    runs = Runs()
    batcher = batcher_of(runs, ONE_AT_A_TIME)
    first = await ran_alone(batcher, runs)
    one, two, four = submitted(batcher, 1, 2, 4)
    await accepted()
    two.cancel()
    await asyncio.wait([two])
    await runs.let_through()
    assert await asyncio.gather(first, one, four) == [2, 200, 50]
    assert two.cancelled()
    assert runs.seen == [[100], [1, 4]]


async def test_a_cancelled_caller_does_not_disturb_a_running_batch():
    runs = Runs()
    batcher = batcher_of(runs, ONE_AT_A_TIME)
    first = await ran_alone(batcher, runs)
    one, two = submitted(batcher, 1, 2)
    await accepted()
    await runs.let_through(1)
    await runs.started(2)
    one.cancel()
    await runs.let_through()
    assert await asyncio.gather(first, two) == [2, 100]
    assert one.cancelled()
    assert runs.cancelled == []


async def test_a_run_is_cancelled_with_its_last_caller_and_frees_its_slot():
    runs = Runs()
    batcher = batcher_of(runs, ONE_AT_A_TIME)
    first = await ran_alone(batcher, runs)
    (other,) = submitted(batcher, 4)
    await accepted()
    first.cancel()
    await runs.started(2)
    assert runs.cancelled == [[100]]
    await runs.let_through()
    assert await other == 50


async def test_a_run_cancelled_before_its_first_step_frees_its_slot():
    gate = asyncio.get_running_loop().create_future()
    seen = []

    async def run(batch: Batch[int]) -> Sequence[int]:
        seen.append([task.payload for task in batch.tasks])
        await gate
        return [0] * len(batch.tasks)

    batcher = batcher_of(run, ONE_AT_A_TIME)
    (first,) = submitted(batcher, 1)
    while not seen:
        await accepted()
    (other,) = submitted(batcher, 2)
    await accepted()
    # The first run ends and starts the next one just before that one's caller hears that it is
    # cancelled.
    gate.set_result(None)
    other.cancel()
    await asyncio.wait([first, other])
    assert other.cancelled()
    await batcher.drain()
    assert seen == [[1]]


async def test_callers_fail_at_their_deadline_waiting_or_running():
    runs = Runs()
    batcher = batcher_of(runs, ONE_AT_A_TIME)
    soon = time.monotonic() + 0.02
    running = asyncio.create_task(batcher.submit("k", 1, 1, soon))
    await runs.started(1)
    with pytest.raises(ResourceExhausted, match="while waiting in batching queue"):
        await batcher.submit("k", 2, 1, soon)
    with pytest.raises(DeadlineExceeded, match="Timed out"):
        await running
    await batcher.drain()
    assert runs.cancelled == [[1]]


async def test_an_open_batch_runs_at_its_timeout():
    runs = Runs()
    await runs.let_through()
    parameters = BatchingParameters(
        max_batch_size=8, batch_timeout_micros=1500, num_batch_threads=4
    )
    batcher = batcher_of(runs, parameters)
    assert await asyncio.gather(*submitted(batcher, 1, 2)) == [200, 100]
    assert runs.seen == [[1, 2]]


async def test_a_drain_finishes_what_was_accepted_and_accepts_no_more():
    runs = Runs()
    parameters = BatchingParameters(
        max_batch_size=8, batch_timeout_micros=10**9, num_batch_threads=1
    )
    batcher = batcher_of(runs, parameters)
    callers = submitted(batcher, 1, -2, 4)
    await accepted()
    draining = asyncio.create_task(batcher.drain())
    await runs.started(1)
    with pytest.raises(Unavailable, match="closed"):
        await batcher.submit("k", 5, 1)
    assert not draining.done()
    await runs.let_through()
    await draining
    one, two, four = await asyncio.gather(*callers, return_exceptions=True)
    assert (one, four) == (200, 50)
    assert isinstance(two, InvalidArgument)
    await batcher.drain()


async def test_a_drain_ends_with_the_last_that_waited_whoever_else_has_the_slot():
    device, runs = BatchDevice(1), Runs()
    first = await ran_alone(device.batcher("other", ONE_AT_A_TIME, runs), runs)
    batcher = device.batcher("stage", ONE_AT_A_TIME, runs)
    (waiting,) = submitted(batcher, 1)
    draining = asyncio.create_task(batcher.drain())
    await accepted()
    waiting.cancel()
    for _ in range(4):
        await accepted()
    assert draining.done()
    await runs.let_through()
    assert await first == 2


@given(
    numbers=st.lists(st.sampled_from([1, 2, 4, 5, -1, -2]), max_size=12),
    gone=st.sets(st.integers(0, 11)),
    passes=st.integers(0, 6),
    slots=st.integers(1, 3),
)
@settings(deadline=None)
def test_every_caller_ends_with_its_own_result_error_or_cancellation(numbers, gone, passes, slots):
    async def run(batch: Batch[int]) -> Sequence[int]:
        await asyncio.sleep(0)
        worst = min(task.payload for task in batch.tasks)
        if worst < 0:
            raise InvalidArgument(str(worst))
        return [task.payload * 10 for task in batch.tasks]

    async def program() -> None:
        parameters = BatchingParameters(max_batch_size=4, num_batch_threads=slots)
        batcher = batcher_of(run, parameters)
        callers = submitted(batcher, *numbers)
        for _ in range(passes):
            await accepted()
        cancelled = {place for place in gone if place < len(callers) and callers[place].cancel()}
        results = await asyncio.gather(*callers, return_exceptions=True)
        await batcher.drain()
        for place, (number, result) in enumerate(zip(numbers, results, strict=True)):
            if place in cancelled:
                assert isinstance(result, asyncio.CancelledError)
            elif number < 0:
                assert isinstance(result, InvalidArgument)
                assert result.message == str(number)
            else:
                assert result == number * 10

    asyncio.run(program())


@pytest.mark.parametrize("fails", [False, True])
async def test_a_caller_that_goes_when_its_last_piece_has_ended_is_cancelled_and_no_more(fails):
    pieces = BatchingParameters(
        max_batch_size=8,
        enable_large_batch_splitting=True,
        max_execution_batch_size=2,
        num_batch_threads=1,
    )
    ended = 0

    async def run(batch: Batch[int]) -> Sequence[int]:
        nonlocal ended
        ended += len(batch.tasks)
        if fails or ended == 2:
            asyncio.get_running_loop().call_soon(caller.cancel)
        if fails:
            raise Internal("a defect")
        return [task.start for task in batch.tasks]

    batcher = BatchDevice(1).batcher("stage", pieces, run, sum)
    caller = asyncio.create_task(batcher.submit("key", 0, 4))
    with pytest.raises(asyncio.CancelledError):
        await caller
    await batcher.drain()
