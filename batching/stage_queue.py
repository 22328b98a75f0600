"""The batches of one key and priority that wait for a slot: what joins, what fills, what is cut."""

from __future__ import annotations

import bisect
from collections import deque
from collections.abc import Hashable
from typing import TYPE_CHECKING, Generic, TypeVar

from shardserve.batching.errors import Unavailable
from shardserve.batching.parameters import (
    BatchingParameters,
    BatchPaddingPolicy,
    MixedPriorityPolicy,
)
from shardserve.batching.tasks import Batch, Priority, Task

if TYPE_CHECKING:
    from shardserve.batching.stage import Stage

T = TypeVar("T")

_ISOLATE = MixedPriorityPolicy.ISOLATE
_PAD_TO_MAX = MixedPriorityPolicy.PAD_TO_MAX


class StageQueue(Generic[T]):
    """Batches in the order in which they came. Only the last may be `open`, and take tasks.

    `limit` bounds the rows of a batch, `largest` those of a task, and `timeout` is in seconds.
    `ready` says whether it is among the queues that take turns, `running` counts its batches that
    run.
    """

    def __init__(self, stage: Stage[T], key: Hashable, priority: Priority) -> None:
        self.stage = stage
        self.key = key
        self.priority = priority
        self.batches: deque[Batch[T]] = deque()
        self.open: Batch[T] | None = None
        self.ready = False
        self.running = 0
        self._padding = stage.parameters.batch_padding_policy
        self._mixed = stage.parameters.mixed_priority_policy
        if priority is Priority.HIGH:
            self._take_limits(stage.parameters)
        else:
            self._take_low_limits(stage.parameters)

    @property
    def is_idle(self) -> bool:
        return not self.batches and not self.running

    def is_due(self, now: float) -> bool:
        """Whether it has a batch that may run."""
        return bool(self.batches) and self.batches[0].is_due(now)

    def padded(self, size: int) -> int:
        """The rows with which a batch of `size` runs."""
        allowed = self._allowed
        return allowed[bisect.bisect_left(allowed, size)] if allowed else size

    def gives_way(self, now: float) -> bool:
        """Whether tasks of high priority of the same key are to run first."""
        if self.priority is Priority.HIGH:
            return False
        high = self.stage.sibling(self)
        return high is not None and high.is_due(now)

    def sizes(self, size: int) -> tuple[list[int], bool]:
        """The pieces of a task that does not join whole, and if the first fills the open batch.

        One piece where large ones are not split.
        """
        if not self.stage.parameters.enable_large_batch_splitting:
            return [size], False
        room = 0 if self.open is None else self.limit - self.open.size
        first = [room] if 0 < room < size else []
        full, rest = divmod(size - sum(first), self.limit)
        return [*first, *[self.limit] * full, *([rest] if rest else [])], bool(first)

    def check_room(self, more: int) -> None:
        """Raises Unavailable if `more` batches than there are would be too many."""
        if len(self.batches) + more > self._max_enqueued:
            raise Unavailable(
                "The batch scheduling queue to which this task was submitted is full; currently "
                f"{len(self.batches)} batches enqueued and max_enqueued_batches is "
                f"{self._max_enqueued}"
            )

    def open_batch(self, now: float) -> Batch[T]:
        """A new last batch. The one before takes no more tasks."""
        self.close()
        batch = self.open = Batch(self, now + self.timeout)
        self.batches.append(batch)
        return batch

    def close(self) -> None:
        if self.open is not None:
            self.open.closed = True
            self.open = None

    def remove(self, batch: Batch[T]) -> None:
        """Forget a batch that has lost its last task."""
        self.batches.remove(batch)
        if self.open is batch:
            self.open = None

    def take(self) -> Batch[T]:
        """The first batch, to be run: cut down or filled as the policies say."""
        batch = self.batches.popleft()
        if self.open is batch:
            self.open = None
        if not batch.is_rerun:
            if self._padding is BatchPaddingPolicy.BATCH_DOWN:
                self._cut_down(batch)
            self._fill(batch)
        return batch

    def _take_limits(self, parameters: BatchingParameters) -> None:
        self.limit = self.stage.size
        self.largest = parameters.max_batch_size
        self.timeout = self.stage.timeout
        self._max_enqueued = max(1, parameters.max_enqueued_batches)
        self._allowed = parameters.allowed_batch_sizes

    def _take_low_limits(self, parameters: BatchingParameters) -> None:
        self.limit = parameters.low_priority_max_batch_size or parameters.execution_size
        splits = parameters.enable_large_batch_splitting
        self.largest = parameters.max_batch_size if splits else self.limit
        self.timeout = parameters.low_priority_batch_timeout_micros / 1e6
        self._max_enqueued = parameters.low_priority_max_enqueued_batches or max(
            1, parameters.max_enqueued_batches
        )
        self._allowed = parameters.low_priority_allowed_batch_sizes
        if not self._allowed and self.limit <= max(parameters.allowed_batch_sizes, default=0):
            self._allowed = parameters.allowed_batch_sizes

    def _cut_down(self, batch: Batch[T]) -> None:
        """Leave what is over the last allowed size, if no task lies across it."""
        place = bisect.bisect_right(self._allowed, batch.size) - 1
        if place < 0 or self._allowed[place] == batch.size:
            return
        over = batch.over(self._allowed[place])
        if not over:
            return
        rest: Batch[T] = Batch(self, over[0].queued + self.timeout, closed=batch.closed)
        for task in over:
            batch.remove(task)
            rest.add(task, task.queued)
        self.batches.appendleft(rest)
        if not rest.closed:
            self.open = rest

    def _fill(self, batch: Batch[T]) -> None:
        """Let tasks of low priority have what this batch of high priority leaves free."""
        if self.priority is Priority.LOW or self._mixed is _ISOLATE:
            return
        low = self.stage.sibling(self)
        if low is None:
            return
        full = self.limit if self._mixed is _PAD_TO_MAX else self.padded(batch.size)
        for task in low.give(full - batch.size):
            batch.add(task, task.queued)

    def give(self, room: int) -> list[Task[T]]:
        """Its first tasks, as many as fit."""
        given: list[Task[T]] = []
        while self.batches and self.batches[0].tasks[0].size <= room:
            first = self.batches[0]
            task = first.tasks[0]
            first.remove(task)
            room -= task.size
            given.append(task)
            if not first.tasks:
                self.remove(first)
        return given
