"""Which sequences take the next step together: decisions only, no clock, no loop.

Iteration-level scheduling (Yu et al., "Orca", OSDI 2022): a running batch of at most
`max_batch_size` sequences; between two steps those that have ended leave and waiting ones join,
first come, first served. How long a sequence is need not be known: it may stop at any step.

Times are seconds on one monotonic clock; `now` never goes back.
"""

from __future__ import annotations

import itertools
import math
from collections import deque
from collections.abc import Collection, Iterator, Sequence
from typing import Generic, TypeVar

from shardserve.batching.errors import ServingError, Unavailable
from shardserve.batching.parameters import BatchingParameters
from shardserve.batching.step_bounds import (
    MAX_BYTES,
    Bounds,
    is_late,
    late_in_queue,
    late_in_run,
    may_be_ones,
)
from shardserve.batching.step_tasks import (
    Failed,
    Finish,
    Interrupt,
    Join,
    Leave,
    Place,
    SequenceTask,
    Step,
    StepAction,
    StepActions,
)
from shardserve.batching.tasks import WakeAt

T = TypeVar("T")

#: Steps that may be taken without asking again who joins and leaves.
MAX_BURST = 16

#: How much the newest measurement counts in the seconds that a step takes.
_NEWEST = 0.2


class StepScheduler(Generic[T]):
    """One running batch, and the sequences that wait for it.

    Each event returns what has to be done now, in order. An accepted sequence ends exactly once:
    with `Finish`, with `Failed`, or with `cancel`. At most one `Step` is under way at any time.
    Of the parameters, `max_batch_size` rows run, as many as `max_enqueued_batches` times that may
    wait, and `allowed_batch_sizes` pad the step; a running batch waits for nobody, so the timeout
    means nothing.
    """

    def __init__(self, parameters: BatchingParameters, max_bytes: int = MAX_BYTES) -> None:
        self._parameters = parameters
        self._bounds = Bounds(parameters, max_bytes)
        self._waiting: deque[SequenceTask[T]] = deque()
        # All whose state has a row; those that have ended meanwhile leave after the step.
        self._batch: list[SequenceTask[T]] = []
        self._step: Step[T] | None = None
        self._started = 0.0
        self._interrupted = False
        # What is left of a batch that failed, in the parts that are to be tried.
        self._parts: list[tuple[SequenceTask[T], ...]] = []
        self._step_seconds = 0.0
        self._alarm = math.inf
        self._draining = False

    @property
    def is_idle(self) -> bool:
        """Whether no sequence waits or runs, and no step is under way."""
        return not self._waiting and not self._batch and self._step is None

    @property
    def _has_room(self) -> bool:
        return len(self._batch) < self._parameters.max_batch_size

    @property
    def running(self) -> int:
        """The rows of the running batch."""
        return len(self._batch)

    @property
    def waiting(self) -> int:
        """The sequences that wait for a row."""
        return len(self._waiting)

    @property
    def step_seconds(self) -> float:
        """What a step takes, measured; 0 before the first."""
        return self._step_seconds

    def offer(self, tasks: Sequence[SequenceTask[T]], now: float) -> StepActions[T]:
        """Accept all these sequences, which are one request's, or raise and keep none of them.

        Raises Unavailable where too much is waiting or after `drain`, InvalidArgument for more
        sequences than a batch has rows, ResourceExhausted for those that are late already, or
        cannot but be: their steps at the measured pace take longer than there is time.
        """
        self._check(tasks, now)
        for task in tasks:
            task.place = Place.WAITING
            self._bounds.nbytes += task.nbytes
        self._waiting.extend(tasks)
        wake = self._wake(min(task.deadline for task in tasks))
        if self._step is None:
            return [*wake, *self._advance(now)]
        return [*wake, *(self._interrupt() if self._has_room else ())]

    def stepped(
        self, steps: int, stopped: Collection[SequenceTask[T]], now: float
    ) -> StepActions[T]:
        """The step under way was taken `steps` times; after the last of them some have stopped."""
        step = self._ended_step(now, steps)
        actions: list[StepAction[T]] = []
        for task in step.tasks:
            task.taken += steps
            if task.taken >= task.steps or task in stopped:
                actions += self._finish(task)
        return [*actions, *self._advance(now)]

    def failed(self, error: ServingError, now: float) -> StepActions[T]:
        """The step under way failed; all its sequences have the state that they had before it.

        An error that may be one sequence's fault has the halves step one after the other, so that
        only culprits fail. Every other error is everybody's.
        """
        step = self._ended_step(now, 0)
        left = [task for task in step.tasks if task.place is Place.RUNNING]
        if may_be_ones(error) and len(step.tasks) > 1:
            half = len(step.tasks) // 2
            self._parts[:0] = [step.tasks[:half], step.tasks[half:]]
            return self._advance(now)
        for task in left:
            self._end(task)
        return [*[Failed(task, error) for task in left], *self._advance(now)]

    def tick(self, now: float) -> StepActions[T]:
        """Time has passed. Ticks that no `WakeAt` asked for do no harm."""
        if now < self._alarm:
            # The timer that was asked for may be this one, a little early.
            return () if self._alarm == math.inf else (WakeAt(self._alarm),)
        actions = self._ring(now)
        if self._step is None:
            return [*actions, *self._advance(now)]
        return [*actions, *self._interrupt_for_leavers()]

    def cancel(self, task: SequenceTask[T], now: float) -> StepActions[T]:
        """The sequence's caller has gone: it ends, unless it has ended already."""
        if task.place is Place.ENDED:
            return ()
        if task.place is Place.WAITING:
            self._waiting.remove(task)
        self._end(task)
        return self._advance(now) if self._step is None else self._interrupt_for_leavers()

    def drain(self, now: float) -> StepActions[T]:
        """Accept no more; what was accepted runs to its end."""
        self._draining = True
        return () if self._step is not None else self._advance(now)

    def _check(self, tasks: Sequence[SequenceTask[T]], now: float) -> None:
        if self._draining:
            raise Unavailable("The batch scheduling queue is closed: the model is being unloaded")
        self._bounds.check(tasks, len(self._waiting))
        # While nothing runs nothing is measured: an old figure must not refuse for ever.
        pace = self._step_seconds if self._batch else 0.0
        if any(is_late(task, pace, now) for task in tasks):
            raise late_in_queue()

    def _ended_step(self, now: float, steps: int) -> Step[T]:
        assert self._step is not None, "no step is under way"
        step, self._step = self._step, None
        self._interrupted = False
        if steps:
            measured = (now - self._started) / steps
            weight = _NEWEST if self._step_seconds else 1.0
            self._step_seconds += weight * (measured - self._step_seconds)
        return step

    def _advance(self, now: float) -> list[StepAction[T]]:
        """Between two steps: drop what is late, let the ended leave and the first join; step."""
        actions = self._ring(now) if self._alarm <= now else []
        actions += self._leavers()
        if not any(self._parts):
            actions += self._joiners()
        tasks, is_all = self._next()
        if tasks:
            rows = self._parameters.padded(len(tasks))
            self._step = Step(tasks, self._burst(tasks, is_all), rows, is_all)
            self._started = now
            actions.append(self._step)
        return actions

    def _leavers(self) -> Iterator[StepAction[T]]:
        gone = [task for task in self._batch if task.place is Place.ENDED]
        for task in gone:
            self._batch.remove(task)
            task.in_batch = False
            yield Leave(task)
        if gone and self._parts:
            self._parts = [tuple(t for t in part if t.in_batch) for part in self._parts]

    def _joiners(self) -> Iterator[StepAction[T]]:
        while self._waiting and self._has_room:
            task = self._waiting.popleft()
            task.place = Place.RUNNING
            task.in_batch = True
            self._batch.append(task)
            yield Join(task)

    def _next(self) -> tuple[tuple[SequenceTask[T], ...], bool]:
        while self._parts:
            # Those that finished in the part before are not in it.
            if part := tuple(task for task in self._parts.pop(0) if task.in_batch):
                return part, len(part) == len(self._batch)
        return tuple(self._batch), True

    def _burst(self, tasks: tuple[SequenceTask[T], ...], is_all: bool) -> int:
        if not is_all or (self._waiting and self._has_room):
            return 1
        return min(MAX_BURST, *[task.steps - task.taken for task in tasks])

    def _finish(self, task: SequenceTask[T]) -> StepActions[T]:
        if task.place is not Place.RUNNING:
            return ()
        self._end(task)
        self._batch.remove(task)
        task.in_batch = False
        return (Finish(task),)

    def _end(self, task: SequenceTask[T]) -> None:
        task.place = Place.ENDED
        self._bounds.nbytes -= task.nbytes

    def _ring(self, now: float) -> list[StepAction[T]]:
        """Fail what is late, and set the alarm anew."""
        self._alarm = math.inf
        actions: list[StepAction[T]] = []
        late = [t for t in itertools.chain(self._waiting, self._batch) if t.deadline <= now]
        for task in late:
            if task.place is Place.WAITING:
                self._waiting.remove(task)
                actions.append(Failed(task, late_in_queue()))
                self._end(task)
            elif task.place is Place.RUNNING:
                actions.append(Failed(task, late_in_run()))
                self._end(task)
        left = [t for t in itertools.chain(self._waiting, self._batch) if t.deadline > now]
        return [*actions, *self._wake(min([t.deadline for t in left], default=math.inf))]

    def _interrupt_for_leavers(self) -> StepActions[T]:
        return self._interrupt() if any(t.place is Place.ENDED for t in self._batch) else ()

    def _interrupt(self) -> StepActions[T]:
        if self._interrupted:
            return ()
        self._interrupted = True
        return (Interrupt(),)

    def _wake(self, time: float) -> StepActions[T]:
        if time >= self._alarm:
            return ()
        self._alarm = time
        return (WakeAt(time),)
