"""Carries out what the scheduler of a device decides, on one event loop."""

from __future__ import annotations

import asyncio
import functools
import logging
import math
import os
import time
from collections.abc import Callable, Coroutine, Hashable, Sequence
from typing import Any, Generic, TypeVar, cast

from shardserve.batching.errors import Internal, ServingError, Unavailable, error_of
from shardserve.batching.pace import InFlight
from shardserve.batching.parameters import BatchingParameters
from shardserve.batching.scheduler import BatchScheduler
from shardserve.batching.stage import Stage, StageCounts
from shardserve.batching.tasks import (
    Actions,
    Batch,
    Cut,
    Fail,
    Priority,
    Run,
    Stop,
    Task,
    WakeAt,
)
from shardserve.batching.waiting import DEFAULT_LIMITS, DeviceLimits

__all__ = ["BatchDevice", "Batcher", "Call", "DeviceLimits", "StageCounts"]

T = TypeVar("T")
R = TypeVar("R")

_log = logging.getLogger(__name__)


class Call(Task[T], Generic[T, R]):
    """A task whose caller waits for `reply`."""

    __slots__ = ("reply",)

    def __init__(
        self,
        reply: asyncio.Future[R],
        payload: T,
        size: int,
        deadline: float,
        nbytes: int,
        context: Any,
    ) -> None:
        # Not by super(): there is one for each request.
        self.reply = reply
        self.payload = payload
        self.size = size
        self.deadline = deadline
        self.nbytes = nbytes
        self.context = context
        self.cut = None


class BatchDevice:
    """What runs the batches of many stages, at most `slots` at once. The stages take turns.

    Without `slots` as many run as keep the device busy, by what is measured. Timeouts and deadlines
    are noticed up to about 1 ms late. All calls come from one event loop.
    """

    def __init__(self, slots: int | None, limits: DeviceLimits = DEFAULT_LIMITS) -> None:
        #: The most batches that run at once.
        self.slots = 2 * (os.cpu_count() or 1) if slots is None else slots
        in_flight = InFlight(slots or 1, self.slots)
        self.scheduler: BatchScheduler[Any] = BatchScheduler(in_flight, limits)
        self._batchers: dict[Stage[Any], Batcher[Any, Any]] = {}
        self._runs: dict[Batch[Any], asyncio.Task[None]] = {}
        self._timer: asyncio.Handle | None = None
        # Set once they are idle, be it by a run or by the last one that waited.
        self._draining: dict[Stage[Any], asyncio.Event] = {}
        #: Makes a future of the loop. There is one for each request.
        self.new_future: Callable[[], asyncio.Future[Any]] = self._first_future

    def batcher(
        self,
        name: str,
        parameters: BatchingParameters,
        run: Callable[[Batch[T]], Coroutine[Any, Any, Sequence[R]]],
        join: Callable[[list[R]], R] | None = None,
    ) -> Batcher[T, R]:
        """A new stage of this name. See `Batcher`."""
        stage: Stage[T] = self.scheduler.add_stage(name, parameters)
        batcher = self._batchers[stage] = Batcher(self, stage, run, join)
        return batcher

    async def drain(self) -> None:
        """Accept no more in any stage; return when all that was accepted has ended."""
        self.perform(self.scheduler.drain(time.monotonic()))
        for batcher in list(self._batchers.values()):
            await batcher.drain()

    async def drain_stage(self, stage: Stage[Any]) -> None:
        """As `drain`, of one stage, which is forgotten then."""
        self.perform(self.scheduler.drain(time.monotonic(), stage))
        if not stage.is_idle:
            await self._draining.setdefault(stage, asyncio.Event()).wait()
        if self._batchers.pop(stage, None) is not None:
            self.scheduler.remove_stage(stage)

    def perform(self, actions: Actions[Any]) -> None:
        """Do what the scheduler has decided."""
        for action in actions:
            match action:
                case Run(batch):
                    self._start(batch)
                case Fail(task, error):
                    _fail(cast(Call[Any, Any], task), error)
                case Stop(batch):
                    self._runs[batch].cancel()
                case WakeAt(when):
                    self._set_timer(when)
        if self._draining:
            self._look_who_is_drained()

    def finished(self, batch: Batch[Any], error: ServingError | None = None) -> None:
        """A run has ended."""
        del self._runs[batch]
        self.perform(self.scheduler.finished(batch, time.monotonic(), error))

    def _look_who_is_drained(self) -> None:
        for stage in [stage for stage in self._draining if stage.is_idle]:
            self._draining.pop(stage).set()

    def _first_future(self) -> asyncio.Future[Any]:
        self.new_future = asyncio.get_running_loop().create_future
        return self.new_future()

    def _start(self, batch: Batch[Any]) -> None:
        stage = batch.queue.stage
        run = asyncio.create_task(self._batchers[stage].carry_out(batch), name=stage.name)
        run.add_done_callback(functools.partial(self._ended, batch))
        self._runs[batch] = run

    def _ended(self, batch: Batch[Any], run: asyncio.Task[None]) -> None:
        """Finish the run if it was cancelled; that may have been before its first step."""
        if batch in self._runs:
            self.finished(batch, Unavailable("The run of this batch was cancelled"))

    def _set_timer(self, when: float) -> None:
        if self._timer is not None:
            self._timer.cancel()
        loop = asyncio.get_running_loop()
        delay = when - time.monotonic()
        if delay <= 0:
            self._timer = loop.call_soon(self._tick)
        else:
            # uvloop rounds to milliseconds, and a timer set too early would spin until it is time.
            self._timer = loop.call_later(math.ceil(delay * 1000) / 1000, self._tick)

    def _tick(self) -> None:
        self._timer = None
        self.perform(self.scheduler.tick(time.monotonic()))


class Batcher(Generic[T, R]):
    """One stage of a device: runs tasks in batches.

    `run` gets a batch, and returns its tasks' results in their order. The batch says when it
    started and since when each task had been waiting. A `ServingError` of `run` goes to the
    callers of the tasks; if it may be the fault of one of them, `run` is called again with parts of
    the batch. Any other exception is logged, and reaches them as Internal. A run that no caller
    waits for any more is cancelled. With `enable_large_batch_splitting` some of the tasks are
    `Piece`s, and `join` makes one result of a task's pieces', in order.
    """

    def __init__(
        self,
        device: BatchDevice,
        stage: Stage[T],
        run: Callable[[Batch[T]], Coroutine[Any, Any, Sequence[R]]],
        join: Callable[[list[R]], R] | None,
    ) -> None:
        assert join is not None or not stage.parameters.enable_large_batch_splitting
        self.device = device
        self.stage = stage
        self._run = run
        self._join = join

    async def submit(
        self,
        key: Hashable,
        payload: T,
        size: int,
        deadline: float = math.inf,
        *,
        nbytes: int = 0,
        priority: Priority = Priority.HIGH,
        context: Any = None,
    ) -> R:
        """The result of `payload`, run with others of the same key and priority.

        `size` is at least 1, `deadline` on `time.monotonic`, `nbytes` what the payload holds while
        it waits. Raises as `BatchScheduler.offer` does, the error of the run, and at the deadline
        ResourceExhausted if it is still waiting then, DeadlineExceeded if it is running.
        """
        device = self.device
        call: Call[T, R] = Call(device.new_future(), payload, size, deadline, nbytes, context)
        queue = self.stage.queue(key, priority)
        device.perform(device.scheduler.offer(queue, call, time.monotonic()))
        try:
            return await call.reply
        except asyncio.CancelledError:
            self.cancel(call)
            raise
        finally:
            # An error's traceback has this frame, which would be in a cycle with what has it.
            del call

    def cancel(self, call: Call[T, R]) -> None:
        """Nobody waits for the reply any more."""
        self.device.perform(self.device.scheduler.cancel(call))

    def counts(self) -> StageCounts:
        """What this stage has done."""
        return self.stage.counts()

    async def drain(self) -> None:
        """Accept no more; return when all that was accepted has ended."""
        await self.device.drain_stage(self.stage)

    async def carry_out(self, batch: Batch[T]) -> None:
        """Run a batch and answer its callers."""
        try:
            results = await self._run(batch)
            if len(results) != len(batch.tasks):
                raise Internal(f"{len(results)} results for {len(batch.tasks)} tasks")
        except Exception as error:  # noqa: BLE001 (raised where the results are awaited)
            self.device.finished(batch, _serving_error(error))
            batch.tasks.clear()
        else:
            # The next batch first: it has waited for this one's place.
            self.device.finished(batch)
            if batch.has_pieces:
                self._answer_pieces(batch, results)
            else:
                _answer(cast(list[Call[T, R]], batch.tasks), results)
            # Tasks and batches know each other. Freed at once they cost no garbage collection, and
            # the next ones find their memory in the cache.
            batch.tasks.clear()

    def _answer_pieces(self, batch: Batch[T], results: Sequence[R]) -> None:
        for task, result in zip(batch.tasks, results, strict=True):
            if task.cut is None:
                _answer([cast(Call[T, R], task)], [result])
            else:
                self._answer_piece(task.cut, task.start, result)

    def _answer_piece(self, whole: Cut[T], start: int, result: R) -> None:
        """Answer the call if this was its last piece to run."""
        call = cast(Call[T, R], whole.task)
        whole.results[start] = result
        if len(whole.results) == len(whole.pieces) and not call.reply.done():
            assert self._join is not None
            try:
                call.reply.set_result(self._join([whole.results[p.start] for p in whole.pieces]))
            except Exception as error:  # noqa: BLE001 (raised where the result is awaited)
                call.reply.set_exception(_serving_error(error))
            whole.end()


def _answer(calls: Sequence[Call[T, R]], results: Sequence[R]) -> None:
    for call, result in zip(calls, results, strict=True):
        # Cheaper than asking each.
        try:
            call.reply.set_result(result)
        except asyncio.InvalidStateError:
            # A caller that was cancelled, or that failed at its deadline, is gone.
            continue


def _serving_error(error: Exception) -> ServingError:
    if isinstance(error, ServingError):
        return error
    _log.error("the run of a batch failed", exc_info=error)
    return Internal(f"{type(error).__name__}: {error}")


def _fail(call: Call[T, R], error: ServingError) -> None:
    if not call.reply.done():
        # An error of its own for each: they gather tracebacks where they are raised.
        call.reply.set_exception(error_of(error.code, error.message))
