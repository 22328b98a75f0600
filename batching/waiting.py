"""What waits for the slots of a device: who may join, and whose turn is next."""

from __future__ import annotations

import heapq
import itertools
import math
from collections import deque
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

from shardserve.batching.errors import (
    InvalidArgument,
    ResourceExhausted,
    Unavailable,
)
from shardserve.batching.forecast import expect, expected_start, hurry, refused, seconds
from shardserve.batching.pace import InFlight
from shardserve.batching.stage import Stage
from shardserve.batching.stage_queue import StageQueue
from shardserve.batching.tasks import Batch, Task, cut

T = TypeVar("T")


@dataclass(frozen=True)
class DeviceLimits:
    """What the queues of a device may hold together."""

    max_enqueued_bytes: int = 1 << 30


DEFAULT_LIMITS = DeviceLimits()


class Waiting(Generic[T]):
    """The queues of all stages on a device. Those with a batch that is due take turns.

    `nbytes` is what the waiting tasks hold. `running` and `slots` are the scheduler's.
    """

    def __init__(
        self, limits: DeviceLimits, running: Collection[Batch[T]], slots: InFlight
    ) -> None:
        self.max_bytes = limits.max_enqueued_bytes
        self.nbytes = 0
        self.stages: list[Stage[T]] = []
        self._running = running
        self._slots = slots
        self._ready: deque[StageQueue[T]] = deque()
        # When open batches will be due. Some of these may have run meanwhile.
        self._timers: list[tuple[float, int, Batch[T]]] = []
        self._numbers = itertools.count()

    def batches(self) -> list[Batch[T]]:
        """All that wait."""
        queues = [queue for stage in self.stages for queue in stage.queues()]
        return [batch for queue in queues for batch in queue.batches]

    def accept(self, queue: StageQueue[T], task: Task[T], now: float) -> None:
        """Let the task join, as `BatchScheduler.offer` says, or raise and keep nothing of it."""
        self._check(queue, task)
        batch = queue.open
        if batch is not None and self._may_join(batch, task, now):
            self._join(batch, task, now)
        else:
            self._join_new_batches(queue, task, now)
        self.consider(queue, now)

    def consider(self, queue: StageQueue[T], now: float) -> None:
        """Let a queue take turns if it has a batch that is due."""
        if not queue.ready and queue.is_due(now):
            queue.ready = True
            self._ready.append(queue)

    def advance(self, now: float) -> None:
        """Time has passed: more batches may be due."""
        while self._timers and self._timers[0][0] <= now:
            self.consider(heapq.heappop(self._timers)[2].queue, now)

    def next_due(self, now: float) -> float:
        """When a batch is due: `now` if one is, infinity if none will be."""
        if self._ready:
            return now
        return self._timers[0][0] if self._timers else float("inf")

    def take(self, now: float) -> Batch[T] | None:
        """The batch whose turn it is, or None. Its queue goes to the end."""
        queue = self._next_queue(now)
        if queue is None:
            return None
        batch = queue.take()
        self.nbytes -= batch.nbytes
        rest = queue.open
        if rest is not None and rest.expected_start == -math.inf:
            self._expect_rest(rest, now)
        queue.ready = False
        self.consider(queue, now)
        if rest is not None and not queue.ready:
            self._set_timer(rest)
        return batch

    def remove(self, task: Task[T], batch: Batch[T]) -> None:
        """Forget a task that has ended, and its batch if it was the last."""
        batch.remove(task)
        self.nbytes -= task.nbytes
        if not batch.tasks:
            batch.queue.remove(batch)

    def put_first(self, queue: StageQueue[T], tasks: Sequence[Task[T]], now: float) -> None:
        """Tasks that are to run again, before others and with no others."""
        batch: Batch[T] = Batch(queue, now, closed=True, is_rerun=True)
        for task in tasks:
            batch.add(task, now)
        self.nbytes += batch.nbytes
        queue.batches.appendleft(batch)
        if queue.ready:
            self._ready.remove(queue)
        queue.ready = True
        self._ready.appendleft(queue)

    def _expect_rest(self, rest: Batch[T], now: float) -> None:
        """What was left of a batch waits for others again, but no longer than its tasks can."""
        expect(rest, now, now)
        for task in rest.tasks:
            if task.deadline < rest.expected_end:
                hurry(rest, task, now)

    def _next_queue(self, now: float) -> StageQueue[T] | None:
        for _ in range(len(self._ready)):
            queue = self._ready.popleft()
            if not queue.is_due(now):
                queue.ready = False
            elif queue.gives_way(now):
                self._ready.append(queue)
            else:
                return queue
        return None

    def _check(self, queue: StageQueue[T], task: Task[T]) -> None:
        if queue.stage.closed:
            raise Unavailable("The batch scheduling queue is closed: the model is being unloaded")
        if task.size > queue.largest:
            raise InvalidArgument(
                f"Task size {task.size} is larger than maximum input batch size {queue.largest}"
            )
        if task.nbytes > self.max_bytes:
            raise ResourceExhausted(
                f"A task of {task.nbytes} bytes is more than max_enqueued_bytes, {self.max_bytes}"
            )
        if self.nbytes + task.nbytes > self.max_bytes:
            raise Unavailable(
                "The batch scheduling queues of this device are full; currently "
                f"{self.nbytes} bytes enqueued and max_enqueued_bytes is {self.max_bytes}"
            )

    def _may_join(self, batch: Batch[T], task: Task[T], now: float) -> bool:
        """Whether there is room and, with it, time enough for those in the batch.

        Raises Unavailable if the task would be late itself.
        """
        size = batch.size + task.size
        if size > batch.queue.limit:
            return False
        end = max(batch.expected_start, now) + seconds(batch.queue, size, now)
        if end > task.deadline:
            raise refused(task, end, now)
        return end <= batch.expires

    def _join_new_batches(self, queue: StageQueue[T], task: Task[T], now: float) -> None:
        """Put the task into a new batch, or cut it up: the first piece fills the open one."""
        sizes, fills = queue.sizes(task.size)
        starts = self._starts(queue, task, sizes[fills:], now)
        pieces = [task] if len(sizes) == 1 else cut(task, sizes)
        if fills:
            assert queue.open is not None
            self._join(queue.open, pieces[0], now)
        for piece, start in zip(pieces[fills:], starts, strict=True):
            batch = queue.open_batch(now)
            expect(batch, start, now)
            self._join(batch, piece, now)

    def _starts(
        self, queue: StageQueue[T], task: Task[T], sizes: Sequence[int], now: float
    ) -> list[float]:
        """When new batches of these sizes would start. Raises Unavailable for too many, too late.

        A queue with nothing in it takes even what looks hopeless: so its pace is measured again.
        """
        queue.check_room(len(sizes))
        starts = [expected_start(queue, self._ready, self._running, self._slots.limit, now)]
        for size in sizes:
            starts.append(starts[-1] + seconds(queue, size, now))
        end = starts.pop()
        if end > task.deadline and not queue.is_idle:
            raise refused(task, end, now)
        return starts

    def _join(self, batch: Batch[T], task: Task[T], now: float) -> None:
        batch.add(task, now)
        self.nbytes += task.nbytes
        if task.deadline < batch.expected_end:
            hurry(batch, task, now)
        if batch.size >= batch.queue.limit:
            batch.queue.close()
        elif batch.due > now:
            self._set_timer(batch)

    def _set_timer(self, batch: Batch[T]) -> None:
        if batch.due < batch.timer:
            batch.timer = batch.due
            heapq.heappush(self._timers, (batch.due, next(self._numbers), batch))
