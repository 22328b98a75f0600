"""Which tasks run together on a device, and when: decisions only, no clock, no loop.

The rules are those of TensorFlow's SharedBatchScheduler. Tasks of one stage, key and priority share
batches. Each such queue has a row of batches, of which the last may be open; all queues of a device
share its slots and take turns. An open batch is due when it is full or older than the timeout. With
a timeout of 0 it is due at once, and batches form by themselves while all slots are busy.

Times are seconds on one monotonic clock; `now` never goes back.
"""

from __future__ import annotations

import math
from typing import Generic, TypeVar

from shardserve.batching.errors import (
    DeadlineExceeded,
    FailedPrecondition,
    InvalidArgument,
    NotFound,
    OutOfRange,
    ResourceExhausted,
    ServingError,
)
from shardserve.batching.forecast import seconds
from shardserve.batching.pace import InFlight
from shardserve.batching.parameters import BatchingParameters
from shardserve.batching.stage import Stage
from shardserve.batching.stage_queue import StageQueue
from shardserve.batching.tasks import Action, Actions, Batch, Fail, Run, Stop, Task, WakeAt
from shardserve.batching.tensors import NotBatchable
from shardserve.batching.waiting import DEFAULT_LIMITS, DeviceLimits, Waiting

T = TypeVar("T")

_CLIENT_FAULTS = (InvalidArgument, OutOfRange, FailedPrecondition, NotFound)


class BatchScheduler(Generic[T]):
    """The queues of all stages on one device. Each event returns what to do now, in order.

    An accepted task ends exactly once: with the run of its batch, or of the batches of all its
    pieces (`finished` without an error), with a `Fail`, or with `cancel`.
    """

    def __init__(self, slots: InFlight, limits: DeviceLimits = DEFAULT_LIMITS) -> None:
        # How many ran when each started, it included.
        self._running: dict[Batch[T], int] = {}
        self._slots = slots
        self._waiting: Waiting[T] = Waiting(limits, self._running.keys(), slots)
        # No later than the earliest deadline of all tasks.
        self._expiry = math.inf
        self._alarm = math.inf

    @property
    def is_idle(self) -> bool:
        """Whether no task waits and no batch runs."""
        return all(stage.is_idle for stage in self._waiting.stages)

    @property
    def enqueued_bytes(self) -> int:
        """What the waiting tasks hold."""
        return self._waiting.nbytes

    def add_stage(self, name: str, parameters: BatchingParameters) -> Stage[T]:
        """A new stage. Its tasks batch with no other stage's."""
        stage: Stage[T] = Stage(name, parameters)
        self._waiting.stages.append(stage)
        return stage

    def remove_stage(self, stage: Stage[T]) -> None:
        """Forget a stage that has been drained."""
        assert stage.closed
        assert stage.is_idle
        self._waiting.stages.remove(stage)

    def offer(self, queue: StageQueue[T], task: Task[T], now: float) -> Actions[T]:
        """Accept a task, or raise and keep nothing of it.

        Raises Unavailable where too much is waiting, where the deadline is too close for what is
        waiting, or after a drain; InvalidArgument for a task that fits no batch, ResourceExhausted
        for one that is late already, or larger than all that may wait.
        """
        batch = queue.open
        waiting = self._waiting
        deadline, nbytes = task.deadline, task.nbytes
        # What almost all tasks meet: an open batch with room, time and memory to spare.
        if (
            batch is not None
            and (size := batch.size + task.size) < queue.limit
            and now < deadline > batch.expected_end
            and (enqueued := waiting.nbytes + nbytes) <= waiting.max_bytes
        ):
            # As `batch.add`, which is a call more for each request.
            task.queued = now
            task.batch = batch
            batch.tasks.append(task)
            batch.size = size
            batch.nbytes += nbytes
            waiting.nbytes = enqueued
            if deadline < batch.expires:
                batch.expires = deadline
            if deadline >= self._expiry:
                return ()
            self._expiry = deadline
            return self._wake(deadline)
        try:
            return self._offer_carefully(queue, task, now)
        except ServingError:
            queue.stage.refused += 1
            raise

    def finished(
        self, batch: Batch[T], now: float, error: ServingError | None = None
    ) -> Actions[T]:
        """A running batch has ended, well or with `error`.

        An error that may be one task's fault cuts the batch in halves, which run again, so that
        only culprits fail: one among n tasks costs 2 log2(n) runs, over 2 n tasks in all. Every
        other error is everybody's.
        """
        assert batch.started is not None
        in_flight = self._running.pop(batch)
        batch.ended = True
        batch.queue.running -= 1
        if error is not None:
            return [*self._failed(batch, now, error), *self._advance(now)]
        least = batch.queue.stage.ended(batch, self._slots.limit, now)
        self._slots.observe(least, now - batch.started, in_flight)
        return self._advance(now)

    def tick(self, now: float) -> Actions[T]:
        """Time has passed. Ticks that no `WakeAt` asked for do no harm."""
        self._alarm = math.inf
        return self._advance(now)

    def cancel(self, task: Task[T]) -> Actions[T]:
        """The task's caller has gone: it ends, unless it has ended already."""
        if task.cut is None:
            return self._leave(task)
        actions = [action for piece in task.cut.pieces for action in self._leave(piece)]
        task.cut.end()
        return actions

    def drain(self, now: float, stage: Stage[T] | None = None) -> Actions[T]:
        """Accept no more, in one stage or all; run what was accepted without waiting for more."""
        for closing in self._waiting.stages if stage is None else [stage]:
            closing.close()
            for queue in closing.queues():
                self._waiting.consider(queue, now)
        return self._advance(now)

    def _offer_carefully(self, queue: StageQueue[T], task: Task[T], now: float) -> Actions[T]:
        if task.deadline <= now:
            raise _late_in_queue()
        self._waiting.accept(queue, task, now)
        self._expiry = min(self._expiry, task.deadline)
        return self._wake(self._next_event(now))

    def _failed(self, batch: Batch[T], now: float, error: ServingError) -> list[Action[T]]:
        left = batch.living()
        # By the tasks it ran with: the culprit may be one that has left since.
        if not _may_be_one_tasks(error) or len(batch.tasks) == 1:
            return [action for task in left for action in self._fail(task, error)]
        half = len(left) // 2
        for part in filter(None, (left[half:], left[:half])):
            self._waiting.put_first(batch.queue, part, now)
        return []

    def _fail(self, task: Task[T], error: ServingError) -> list[Action[T]]:
        if task.cut is None:
            return [Fail(task, error), *self._leave(task)]
        if task.cut.has_ended:
            # With another piece of it in the same batch.
            return []
        whole = task.cut.task
        return [Fail(whole, error), *self.cancel(whole)]

    def _leave(self, task: Task[T]) -> Actions[T]:
        batch = task.batch
        if batch is None or batch.ended:
            return ()
        if batch.started is None:
            self._waiting.remove(task, batch)
            return ()
        batch.remove(task)
        return (Stop(batch),) if batch.gone == len(batch.tasks) else ()

    def _advance(self, now: float) -> list[Action[T]]:
        """Drop what is late, start what is due, and say when to look again."""
        actions = self._drop_late(now) if self._expiry <= now else []
        self._waiting.advance(now)
        while len(self._running) < self._slots.limit:
            batch = self._waiting.take(now)
            if batch is None:
                break
            actions.append(self._start(batch, now))
        actions += self._wake(self._next_event(now))
        return actions

    def _start(self, batch: Batch[T], now: float) -> Run[T]:
        self._running[batch] = len(self._running) + 1
        batch.started = now
        batch.expected_end = now + seconds(batch.queue, batch.size, now)
        batch.queue.running += 1
        batch.queue.stage.started(batch, now)
        return Run(batch)

    def _drop_late(self, now: float) -> list[Action[T]]:
        batches = [*self._running, *self._waiting.batches()]
        actions: list[Action[T]] = []
        for batch in batches:
            if batch.expires <= now:
                actions += self._drop_late_of(batch, now)
        self._expiry = min([batch.expires for batch in batches], default=math.inf)
        return actions

    def _drop_late_of(self, batch: Batch[T], now: float) -> list[Action[T]]:
        actions: list[Action[T]] = []
        for task in batch.living():
            if task.deadline <= now:
                late = _late_in_queue() if batch.started is None else _late_in_run()
                failed = self._fail(task, late)
                batch.queue.stage.expired += bool(failed)
                actions += failed
        batch.expires = min([task.deadline for task in batch.living()], default=math.inf)
        return actions

    def _next_event(self, now: float) -> float:
        if len(self._running) >= self._slots.limit:
            return self._expiry
        return min(self._expiry, self._waiting.next_due(now))

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
