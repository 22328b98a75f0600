"""Which tasks run together, and when: decisions only, no clock, no loop.

The rules are those of TensorFlow's SharedBatchScheduler. Tasks of one key share batches. Each key
has a queue of batches, of which the last may be open; all queues share a number of slots and take
turns. An open batch is due when it is full or older than the timeout. With a timeout of 0 it is
due at once, so batches form by themselves while all slots are busy.

Times are seconds on one monotonic clock; `now` never goes back.
"""

from __future__ import annotations

import math
from collections import OrderedDict, deque
from collections.abc import Hashable
from typing import Generic, TypeVar

from shardserve.batching.errors import (
    DeadlineExceeded,
    FailedPrecondition,
    InvalidArgument,
    NotFound,
    OutOfRange,
    ResourceExhausted,
    ServingError,
    Unavailable,
)
from shardserve.batching.parameters import Auto, BatchingParameters
from shardserve.batching.tasks import Action, Actions, Batch, Fail, Run, Stop, Task, WakeAt
from shardserve.batching.tensors import NotBatchable

T = TypeVar("T")

#: Keys with tasks waiting. Clients choose the shapes that make a key, so it is bounded.
MAX_QUEUES = 256

_CLIENT_FAULTS = (InvalidArgument, OutOfRange, FailedPrecondition, NotFound)


class BatchQueues(Generic[T]):
    """Batches for every key. Each event returns what has to be done now, in order.

    An accepted task ends exactly once: with the run of its batch (`finished` without an error),
    with a `Fail`, or with `cancel`.
    """

    def __init__(self, parameters: BatchingParameters) -> None:
        self._max_batch_size = parameters.max_batch_size
        timeout = parameters.batch_timeout_micros
        self._timeout = 0.0 if isinstance(timeout, Auto) else timeout / 1e6
        self._max_enqueued = max(1, parameters.max_enqueued_batches)
        self._free_slots = parameters.num_batch_threads
        # In the order of their turns; none is empty.
        self._queues: OrderedDict[Hashable, deque[Batch[T]]] = OrderedDict()
        self._running: set[Batch[T]] = set()
        self._alarm = math.inf
        self._draining = False

    @property
    def is_idle(self) -> bool:
        """Whether no task waits and no batch runs."""
        return not self._queues and not self._running

    def offer(self, key: Hashable, task: Task[T], now: float) -> Actions[T]:
        """Accept a task, or raise and keep nothing of it.

        Raises Unavailable where too much is waiting or after `drain`, InvalidArgument for a task
        that fits no batch, ResourceExhausted for one that is late already.
        """
        self._check(task, now)
        queue = self._queue_with_room(key, task.size, now)
        batch = queue[-1]
        batch.add(task, now)
        if batch.size >= self._max_batch_size:
            batch.closed = True
        if not self._free_slots:
            return self._wake(task.deadline)
        if queue[0].is_due(now):
            return [*self._wake(task.deadline), *self._advance(now)]
        return self._wake(min(task.deadline, batch.due))

    def finished(
        self, batch: Batch[T], now: float, error: ServingError | None = None
    ) -> Actions[T]:
        """A running batch has ended, well or with `error`.

        An error that may be one task's fault cuts the batch in halves, which run again, so that
        only culprits fail: one among n tasks costs 2 log2(n) runs, over 2 n tasks in all. Every
        other error is everybody's.
        """
        self._running.remove(batch)
        self._free_slots += 1
        left = batch.living()
        # By the tasks it ran with: the culprit may be one that has left since.
        if error is not None and _may_be_one_tasks(error) and len(batch.tasks) > 1:
            self._run_again(batch.key, left, now)
            return self._advance(now)
        for task in left:
            task.batch = None
        if error is None:
            return self._advance(now)
        return [*[Fail(task, error) for task in left], *self._advance(now)]

    def tick(self, now: float) -> Actions[T]:
        """Time has passed. Ticks that no `WakeAt` asked for do no harm."""
        self._alarm = -math.inf
        return self._advance(now)

    def cancel(self, task: Task[T]) -> Actions[T]:
        """The task's caller has gone: it ends, unless it has ended already."""
        return () if task.batch is None else self._leave(task, task.batch)

    def drain(self, now: float) -> Actions[T]:
        """Accept no more; run what was accepted without waiting for more."""
        self._draining = True
        for queue in self._queues.values():
            queue[-1].closed = True
        return self._advance(now)

    def _check(self, task: Task[T], now: float) -> None:
        if self._draining:
            raise Unavailable("The batch scheduling queue is closed: the model is being unloaded")
        if task.size > self._max_batch_size:
            raise InvalidArgument(
                f"Task size {task.size} is larger than maximum input batch size "
                f"{self._max_batch_size}"
            )
        if task.deadline <= now:
            raise _late_in_queue()

    def _queue_with_room(self, key: Hashable, size: int, now: float) -> deque[Batch[T]]:
        """The queue of `key`, whose last batch takes `size` more."""
        queue = self._queues.get(key)
        if queue is None:
            queue = self._new_queue(key)
        else:
            last = queue[-1]
            if not last.closed and last.size + size <= self._max_batch_size:
                return queue
            self._check_length(queue)
            last.closed = True
        queue.append(Batch(key, now + self._timeout))
        return queue

    def _new_queue(self, key: Hashable) -> deque[Batch[T]]:
        if len(self._queues) >= MAX_QUEUES:
            raise Unavailable(f"Tasks of {MAX_QUEUES} different shapes are waiting to be batched")
        queue = self._queues[key] = deque()
        return queue

    def _check_length(self, queue: deque[Batch[T]]) -> None:
        if len(queue) >= self._max_enqueued:
            raise Unavailable(
                "The batch scheduling queue to which this task was submitted is full; currently "
                f"{len(queue)} batches enqueued and max_enqueued_batches is {self._max_enqueued}"
            )

    def _advance(self, now: float) -> list[Action[T]]:
        """Drop what is late, start what is due, and say when to look again."""
        # The alarm is never later than the earliest deadline.
        actions = self._ring(now) if self._alarm <= now else []
        while self._free_slots and self._queues:
            due = self._take_due(now)
            if due is None:
                actions += self._wake(min([queue[0].due for queue in self._queues.values()]))
                break
            actions.append(self._start(due, now))
        return actions

    def _ring(self, now: float) -> list[Action[T]]:
        self._alarm = math.inf
        actions: list[Action[T]] = []
        waiting = [batch for queue in self._queues.values() for batch in queue]
        batches = [*self._running, *waiting]
        for batch in batches:
            if batch.expires <= now:
                actions += self._drop_late(batch, now)
        earliest = min([batch.expires for batch in batches], default=math.inf)
        return [*actions, *self._wake(earliest)]

    def _drop_late(self, batch: Batch[T], now: float) -> list[Action[T]]:
        actions: list[Action[T]] = []
        living = batch.living()
        for task in living:
            if task.deadline <= now:
                late = _late_in_queue() if batch.started is None else _late_in_run()
                actions += [Fail(task, late), *self._leave(task, batch)]
        batch.expires = min([t.deadline for t in living if t.deadline > now], default=math.inf)
        return actions

    def _leave(self, task: Task[T], batch: Batch[T]) -> Actions[T]:
        batch.remove(task)
        if batch.live:
            return ()
        if batch.started is not None:
            return (Stop(batch),)
        queue = self._queues[batch.key]
        queue.remove(batch)
        if not queue:
            del self._queues[batch.key]
        return ()

    def _take_due(self, now: float) -> Batch[T] | None:
        """The next batch of the first queue that has one due; that queue then goes to the end."""
        for key, queue in self._queues.items():
            if queue[0].is_due(now):
                batch = queue.popleft()
                if queue:
                    self._queues.move_to_end(key)
                else:
                    del self._queues[key]
                return batch
        return None

    def _start(self, batch: Batch[T], now: float) -> Run[T]:
        self._free_slots -= 1
        self._running.add(batch)
        batch.started = now
        return Run(batch)

    def _run_again(self, key: Hashable, tasks: list[Task[T]], now: float) -> None:
        """Both halves go before their queue, and it is its turn. New tasks do not join them."""
        half = len(tasks) // 2
        for part in filter(None, (tasks[half:], tasks[:half])):
            batch: Batch[T] = Batch(key, now, closed=True)
            for task in part:
                batch.add(task, now)
            self._queues.setdefault(key, deque()).appendleft(batch)
            self._queues.move_to_end(key, last=False)

    def _wake(self, time: float) -> Actions[T]:
        if time >= self._alarm:
            return ()
        self._alarm = time
        return (WakeAt(time),)


def _may_be_one_tasks(error: ServingError) -> bool:
    return isinstance(error, _CLIENT_FAULTS) and not isinstance(error, NotBatchable)


def _late_in_queue() -> ServingError:
    return ResourceExhausted("Run() timeout exceeded while waiting in batching queue")


def _late_in_run() -> ServingError:
    return DeadlineExceeded("Timed out waiting for notification")
