"""When a batch is expected to start and to end, from what waits before it and the stages' paces."""

from __future__ import annotations

import math
from collections.abc import Collection
from typing import Any, TypeVar

from shardserve.batching.errors import Unavailable
from shardserve.batching.stage_queue import StageQueue
from shardserve.batching.tasks import Batch, Task

T = TypeVar("T")


def seconds(queue: StageQueue[T], size: int, now: float) -> float:
    """What a batch of `size` of this queue is expected to take, 0 if that is not known."""
    return queue.stage.pace.seconds(queue.padded(size), now)


def expected_start(
    queue: StageQueue[T],
    ready: Collection[StageQueue[Any]],
    running: Collection[Batch[Any]],
    slots: int,
    now: float,
) -> float:
    """When one more batch of `queue` would get a slot.

    Queues take turns, so each other one puts at most as many before it as wait in its own.
    """
    if len(running) + len(ready) < slots and not queue.batches:
        return now
    turns = len(queue.batches)
    ahead = sum([max(0.0, batch.expected_end - now) for batch in running])
    for other in ready:
        count = turns if other is queue else min(len(other.batches), turns + 1)
        if count:
            ahead += count * seconds(other, other.batches[0].size, now)
    return now + ahead / slots


def expect(batch: Batch[T], start: float, now: float) -> None:
    """Note when the batch is expected to run, however full it gets."""
    batch.expected_start = start
    batch.expected_end = max(start, batch.due) + seconds(batch.queue, batch.queue.limit, now)


def hurry(batch: Batch[T], task: Task[T], now: float) -> None:
    """Let a batch that waits for more tasks be due early enough for this one of it."""
    left = task.deadline - now - seconds(batch.queue, batch.size, now)
    batch.due = min(batch.due, now + max(0.0, left / 2))
    batch.expected_end = math.inf


def refused(task: Task[T], end: float, now: float) -> Unavailable:
    """What a task is told that cannot make its deadline."""
    return Unavailable(
        "The batch scheduling queue to which this task was submitted is expected to answer it in "
        f"{end - now:.3f} s, and its deadline is in {task.deadline - now:.3f} s"
    )
