"""Carries out what the batch queues decide, on one event loop."""

from __future__ import annotations

import asyncio
import dataclasses
import functools
import logging
import math
import time
from collections.abc import Callable, Coroutine, Hashable, Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar, cast

from shardserve.batching.errors import Internal, ServingError, Unavailable, error_of
from shardserve.batching.parameters import BatchingParameters
from shardserve.batching.queue import BatchQueues
from shardserve.batching.tasks import Actions, Batch, Fail, Priority, Run, Stop, Task, WakeAt

T = TypeVar("T")
R = TypeVar("R")

_log = logging.getLogger(__name__)


@dataclass(slots=True, eq=False)
class _Call(Task[T], Generic[T, R]):
    """A task whose caller waits for `reply`."""

    reply: asyncio.Future[R] = field(kw_only=True)


@dataclass(frozen=True)
class DeviceLimits:
    """What the queues of a device may hold together."""

    max_enqueued_bytes: int = 1 << 30


@dataclass(frozen=True)
class StageCounts:
    """What a stage has done since it was made, and the timeout and size it runs with now."""

    batches: int = 0
    tasks: int = 0
    rows: int = 0
    padding_rows: int = 0
    refused: int = 0
    expired: int = 0
    queue_seconds: float = 0.0
    run_seconds: float = 0.0
    timeout_micros: int = 0
    batch_size: int = 0


class BatchDevice:
    """What runs the batches of many stages. They take turns on its slots.

    All calls come from one event loop.
    """

    def __init__(self, slots: int, limits: DeviceLimits = DeviceLimits()) -> None:
        self._slots = slots
        self._limits = limits
        self._batchers: list[Batcher[Any, Any]] = []

    def batcher(
        self,
        name: str,
        parameters: BatchingParameters,
        run: Callable[[Batch[T]], Coroutine[Any, Any, Sequence[R]]],
    ) -> Batcher[T, R]:
        """A new stage of this name, with a queue for each key that is submitted to it."""
        batcher = Batcher(dataclasses.replace(parameters, num_batch_threads=self._slots), run)
        self._batchers.append(batcher)
        return batcher

    async def drain(self) -> None:
        """Accept no more in any stage; return when all that was accepted has ended."""
        for batcher in self._batchers:
            await batcher.drain()


class Batcher(Generic[T, R]):
    """Runs tasks in batches: `run` gets a batch, and returns its tasks' results in their order.

    At most `num_batch_threads` runs are under way at once. The batch says when it started and
    since when each task had been waiting. A `ServingError` of `run` goes to the callers of the
    tasks; if it may be the fault of one of them, `run` is called again with parts of the batch.
    Any other exception is logged, and reaches them as Internal. A run that no caller waits for any
    more is cancelled. Timeouts and deadlines are noticed up to about 1 ms late. All calls come from
    one event loop.
    """

    def __init__(
        self,
        parameters: BatchingParameters,
        run: Callable[[Batch[T]], Coroutine[Any, Any, Sequence[R]]],
    ) -> None:
        self._queues: BatchQueues[T] = BatchQueues(parameters)
        self._run = run
        self._name = parameters.thread_pool_name
        self._runs: dict[Batch[T], asyncio.Task[None]] = {}
        self._timer: asyncio.TimerHandle | None = None

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
        """The result of `payload`, run with others of the same key.

        `size` is at least 1, `deadline` on `time.monotonic`. Raises as `BatchQueues.offer` does,
        the error of the run, and at the deadline ResourceExhausted if it is still waiting then,
        DeadlineExceeded if it is running.
        """
        reply: asyncio.Future[R] = asyncio.get_running_loop().create_future()
        call: _Call[T, R] = _Call(payload, size, deadline, context, reply=reply)
        self._perform(self._queues.offer(key, call, time.monotonic()))
        try:
            return await reply
        except asyncio.CancelledError:
            self._perform(self._queues.cancel(call))
            raise

    def counts(self) -> StageCounts:
        """What this stage has done."""
        return StageCounts()

    async def drain(self) -> None:
        """Accept no more; return when all that was accepted has ended."""
        self._perform(self._queues.drain(time.monotonic()))
        while self._runs:
            await asyncio.wait(self._runs.values())
        self._set_timer(None)

    def _perform(self, actions: Actions[T]) -> None:
        for action in actions:
            match action:
                case Run(batch):
                    self._start(batch)
                case Fail(task, error):
                    self._fail(cast(_Call[T, R], task), error)
                case Stop(batch):
                    self._runs[batch].cancel()
                case WakeAt(when):
                    self._set_timer(when)

    def _start(self, batch: Batch[T]) -> None:
        run = asyncio.create_task(self._carry_out(batch), name=self._name)
        run.add_done_callback(functools.partial(self._ended, batch))
        self._runs[batch] = run

    async def _carry_out(self, batch: Batch[T]) -> None:
        try:
            results = await self._run(batch)
            if len(results) != len(batch.tasks):
                raise Internal(f"{len(results)} results for {len(batch.tasks)} tasks")
        except ServingError as error:
            self._finish(batch, error)
        except Exception as error:  # noqa: BLE001 (logged, and raised where the result is awaited)
            _log.error("the run of a batch failed", exc_info=error)
            self._finish(batch, Internal(f"{type(error).__name__}: {error}"))
        else:
            # The next batch first: it has waited for this one's place.
            self._finish(batch)
            _answer(cast(list[_Call[T, R]], batch.tasks), results)

    def _ended(self, batch: Batch[T], run: asyncio.Task[None]) -> None:
        """Finish the run if it was cancelled; that may have been before its first step."""
        if batch in self._runs:
            self._finish(batch, Unavailable("The run of this batch was cancelled"))

    def _finish(self, batch: Batch[T], error: ServingError | None = None) -> None:
        del self._runs[batch]
        self._perform(self._queues.finished(batch, time.monotonic(), error))

    def _fail(self, call: _Call[T, R], error: ServingError) -> None:
        if not call.reply.done():
            # An error of its own for each: they gather tracebacks where they are raised.
            call.reply.set_exception(error_of(error.code, error.message))

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
        self._perform(self._queues.tick(time.monotonic()))


def _answer(calls: Sequence[_Call[T, R]], results: Sequence[R]) -> None:
    for call, result in zip(calls, results, strict=True):
        # A caller that was cancelled, or that failed at its deadline, is gone.
        if not call.reply.done():
            call.reply.set_result(result)
