"""Carries out what a step scheduler decides, on one event loop."""

from __future__ import annotations

import asyncio
import functools
import logging
import math
import time
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias, cast

from shardserve.batching.driver import StageCounts
from shardserve.batching.errors import Internal, ServingError, Unavailable, error_of
from shardserve.batching.parameters import BatchingParameters
from shardserve.batching.slots import RunningBatch
from shardserve.batching.step_bounds import MAX_BYTES
from shardserve.batching.step_form import RowResult, SequenceRow, StepForm
from shardserve.batching.step_tasks import (
    Failed,
    Finish,
    Interrupt,
    Join,
    Leave,
    SequenceTask,
    Step,
    StepActions,
)
from shardserve.batching.step_turns import Turns
from shardserve.batching.steps import StepScheduler
from shardserve.batching.tasks import WakeAt

_log = logging.getLogger(__name__)


@dataclass(slots=True, eq=False)
class _Call(SequenceTask[SequenceRow]):
    """A sequence whose caller waits for `reply`."""

    reply: asyncio.Future[RowResult] = field(kw_only=True)


@dataclass(slots=True, eq=False)
class Burst:
    """A step to take up to `limit` times, unless it is `interrupted` meanwhile.

    `rows` is what the inputs are padded to; `part` are the sequences that step, None for all.
    """

    batch: RunningBatch
    rows: int
    limit: int
    part: Sequence[SequenceRow] | None = None
    interrupted: bool = False


@dataclass(frozen=True, slots=True)
class Taken:
    """How often a burst's step was taken, at least once, and who stopped with the last one."""

    steps: int
    stopped: Sequence[SequenceRow]


#: Takes the steps of a burst, anywhere but on two threads at once. It raises if the first step
#: failed; a later one that failed is not counted, and asked for again.
TakeSteps: TypeAlias = Callable[[Burst], Coroutine[Any, Any, Taken]]


@dataclass(frozen=True)
class StepCounts:
    """What a running batch has done: `row_steps` are the sequences of all its steps together."""

    steps: int = 0
    row_steps: int = 0
    padding_row_steps: int = 0
    sequences: int = 0
    refused: int = 0
    running: int = 0
    waiting: int = 0
    step_seconds: float = 0.0

    def as_stage(self) -> StageCounts:
        """As of a stage, whose batches are the steps, and whose tasks the sequences."""
        return StageCounts(
            batches=self.steps,
            tasks=self.sequences,
            rows=self.row_steps,
            padding_rows=self.padding_row_steps,
            refused=self.refused,
            waiting_tasks=self.waiting,
            running_batches=int(self.running > 0),
        )


_COUNTED = ("steps", "row_steps", "padding_row_steps", "sequences", "refused")


def take_steps(burst: Burst, call: Callable[[list[Any]], Sequence[Any]]) -> Taken:
    """Take a burst's steps on this thread: `call` gets the inputs and returns the outputs."""
    batch, taken = burst.batch, 0
    stopped: list[SequenceRow] = []
    while taken < burst.limit and not stopped and not (taken and burst.interrupted):
        try:
            stopped = batch.commit(call(batch.prepare(burst.rows, burst.part)))
        except ServingError:
            if not taken:
                raise
            break
        taken += 1
    return Taken(taken, stopped)


class StepBatcher:
    """Steps sequences together, each from when there is a row for it until it ends.

    With `turns` each burst of steps has one, otherwise it begins at once. All calls come from one
    event loop.
    """

    def __init__(
        self,
        name: str,
        parameters: BatchingParameters,
        form: StepForm,
        take: TakeSteps,
        turns: Turns | None = None,
        max_bytes: int = MAX_BYTES,
    ) -> None:
        self._name = name
        self._scheduler: StepScheduler[SequenceRow] = StepScheduler(parameters, max_bytes)
        self._batch = RunningBatch(form)
        self._take = take
        self._turns = turns
        self._burst: Burst | None = None
        self._stepping: asyncio.Task[None] | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._counted = dict.fromkeys(_COUNTED, 0)

    @property
    def is_idle(self) -> bool:
        """Whether no sequence waits or runs."""
        return self._scheduler.is_idle

    async def submit(
        self,
        rows: Sequence[SequenceRow],
        steps: Sequence[int],
        deadline: float = math.inf,
        *,
        length_known: bool = True,
        nbytes: int = 0,
    ) -> list[RowResult]:
        """What the sequences of one request return, when the last of them has ended.

        Sequence i takes `steps[i]` steps, or at most so many. Raises as `StepScheduler.offer`
        does, and the error of the first sequence that fails, with which the others end.
        """
        loop = asyncio.get_running_loop()
        share = nbytes // max(1, len(rows))
        calls = [
            _Call(row, count, deadline, share, length_known, reply=loop.create_future())
            for row, count in zip(rows, steps, strict=True)
        ]
        try:
            self._perform(self._scheduler.offer(calls, time.monotonic()))
        except ServingError:
            self._count(refused=len(calls))
            raise
        try:
            return await asyncio.gather(*[call.reply for call in calls])
        except (ServingError, asyncio.CancelledError):
            self._withdraw(calls)
            # The error's traceback has this frame, which would be in a cycle with what has it.
            del calls
            raise

    def _withdraw(self, calls: Sequence[_Call]) -> None:
        for call in calls:
            self._perform(self._scheduler.cancel(call, time.monotonic()))
            call.reply.cancel()

    def counts(self) -> StepCounts:
        """What this running batch has done, and what it holds now."""
        return StepCounts(
            **self._counted,
            running=self._scheduler.running,
            waiting=self._scheduler.waiting,
            step_seconds=self._scheduler.step_seconds,
        )

    async def drain(self) -> None:
        """Accept no more; return when all that was accepted has ended."""
        self._perform(self._scheduler.drain(time.monotonic()))
        while self._stepping is not None:
            await asyncio.wait([self._stepping])
        self._set_timer(None)

    def _perform(self, actions: StepActions[SequenceRow]) -> None:
        for action in actions:
            match action:
                case Join(task):
                    self._batch.join(task.payload)
                case Leave(task):
                    self._batch.leave(task.payload)
                case Finish(task):
                    self._finish(cast(_Call, task))
                case Failed(task, error):
                    self._fail(cast(_Call, task), error)
                case Step():
                    self._start(action)
                case Interrupt():
                    assert self._burst is not None
                    self._burst.interrupted = True
                case WakeAt(when):
                    self._set_timer(when)

    def _finish(self, call: _Call) -> None:
        result = self._batch.finish(call.payload)
        self._count(sequences=1)
        if not call.reply.done():
            call.reply.set_result(result)

    def _fail(self, call: _Call, error: ServingError) -> None:
        if not call.reply.done():
            # An error of its own for each: they gather tracebacks where they are raised.
            call.reply.set_exception(error_of(error.code, error.message))

    def _start(self, step: Step[SequenceRow]) -> None:
        part = None if step.is_all else [task.payload for task in step.tasks]
        self._burst = Burst(self._batch, step.rows, step.limit, part)
        carrying_out = self._carry_out(step, self._burst)
        self._stepping = asyncio.create_task(carrying_out, name=self._name)
        self._stepping.add_done_callback(self._ended)

    def _ended(self, stepping: asyncio.Task[None]) -> None:
        """Let a step fail that was cancelled, by something that it waited for."""
        if self._stepping is stepping:
            self._stepping = None
            error = Unavailable("The run of this batch was cancelled")
            self._perform(self._scheduler.failed(error, time.monotonic()))

    async def _carry_out(self, step: Step[SequenceRow], burst: Burst) -> None:
        outcome = await self._turn(burst)
        self._stepping = None
        now = time.monotonic()
        if isinstance(outcome, ServingError):
            self._perform(self._scheduler.failed(outcome, now))
            return
        self._count(
            steps=outcome.steps,
            row_steps=outcome.steps * len(step.tasks),
            padding_row_steps=outcome.steps * (step.rows - len(step.tasks)),
        )
        rows = set(outcome.stopped)
        stopped = {task for task in step.tasks if task.payload in rows} if rows else set()
        self._perform(self._scheduler.stepped(outcome.steps, stopped, now))

    async def _turn(self, burst: Burst) -> Taken | ServingError:
        if self._turns is None:
            return await self._outcome(burst)
        try:
            return await self._turns.take(functools.partial(self._outcome, burst))
        except ServingError as error:
            return error

    async def _outcome(self, burst: Burst) -> Taken | ServingError:
        try:
            return await self._take(burst)
        except ServingError as error:
            # The traceback has this frame and its callers', which would be in a cycle with it.
            return error.with_traceback(None)
        except Exception as error:  # noqa: BLE001 (logged, and raised where results are awaited)
            _log.error("a step failed", exc_info=error)
            return Internal(f"{type(error).__name__}: {error}")

    def _count(self, **more: int) -> None:
        for name, number in more.items():
            self._counted[name] += number

    def _set_timer(self, when: float | None) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if when is not None:
            # uvloop rounds to milliseconds, and a timer set too early would spin until it is time.
            delay = math.ceil(max(0.0, when - time.monotonic()) * 1000) / 1000
            self._timer = asyncio.get_running_loop().call_later(delay, self._tick)

    def _tick(self) -> None:
        self._timer = None
        self._perform(self._scheduler.tick(time.monotonic()))
