"""Runs stages of one TensorFlow graph on threads that leave the event loop free."""

from __future__ import annotations

import asyncio
import logging
import math
import os
import queue
import sys
import threading
import time
import weakref
from collections.abc import Callable, Sequence, Set
from dataclasses import dataclass
from typing import Any

import numpy as np
import tensorflow as tf
from tensorflow.core.protobuf import config_pb2

from shardserve.batching.errors import (
    DeadlineExceeded,
    Internal,
    InvalidArgument,
    Unavailable,
    error_of,
)
from shardserve.router.brief import run_on_caller, takes_time_by_shapes
from shardserve.router.rewrites import limit_rewrites
from shardserve.router.run_times import Runs, RunTimes
from shardserve.router.servable import Array, RequestContext
from shardserve.router.stopwatch import Stopwatch

#: How long a thread may keep the others from running Python. A stage that is done otherwise waits
#: up to 5 ms for an event loop that is busy decoding requests.
SWITCH_SECONDS = 0.0005

#: TensorFlow Serving's words for a run that took longer than the request's deadline.
TIMED_OUT = "Timed out waiting for notification"

_log = logging.getLogger(__name__)

_UNLOADED = "the model has been unloaded"


@dataclass(frozen=True)
class Parallelism:
    """TensorFlow's own threads. 0 lets TensorFlow choose.

    `inter_op_threads` of -1 runs a stage's operations one after the other on the thread that
    calls: a stage of a few small operations then costs 5 us instead of 28 us, and requests run
    beside each other on the threads of `StageThreads`. All else is as `session_config`, a
    serialised `tensorflow.ConfigProto`, says.
    """

    intra_op_threads: int = 0
    inter_op_threads: int = -1
    session_config: bytes = b""

    def config(self) -> config_pb2.ConfigProto:
        config = config_pb2.ConfigProto.FromString(self.session_config)
        config.intra_op_parallelism_threads = self.intra_op_threads
        config.inter_op_parallelism_threads = self.inter_op_threads
        config.allow_soft_placement = True
        return config


def start_tensorflow(parallelism: Parallelism) -> None:
    """Give this process's TensorFlow its threads. Call it before anything else of TensorFlow runs.

    The threads within operations belong to the process: the first session that is made decides
    how many there are, and what later ones ask for is ignored. Sets the interpreter's switch
    interval besides.
    """
    sys.setswitchinterval(SWITCH_SECONDS)
    # Its warnings are for who writes programs of it: what is deprecated, and what it rewrites.
    tf.get_logger().setLevel("ERROR")
    tf.compat.v1.Session(graph=tf.Graph(), config=parallelism.config()).close()


@dataclass(frozen=True, eq=False)
class Stage:
    """A part of a graph, compiled: values for `feeds` in, values of `fetches` out, in order.

    `times` is there where its time may be foreseen.
    """

    feeds: tuple[str, ...]
    fetches: tuple[str, ...]
    dtypes: tuple[np.dtype[Any], ...]
    call: Callable[..., list[Any]]
    times: RunTimes | None = None

    def __call__(self, *values: Array) -> list[Array]:
        """Run on this very thread. Raises a `ServingError` with TensorFlow's code and words."""
        try:
            results = self.call(*values)
        except tf.errors.OpError as error:
            raise error_of(error.error_code, error.message) from None
        except (TypeError, ValueError) as error:
            raise InvalidArgument(str(error)) from None
        # A scalar comes back as a numpy scalar, a scalar string as bytes.
        return [np.asarray(r, d) for r, d in zip(results, self.dtypes, strict=True)]


def _closed(*values: Array) -> list[Any]:
    raise Unavailable(_UNLOADED)


class StageThreads:
    """A fixed number of daemon threads that run jobs for event loops, first come, first served.

    Handing over costs about half of what `loop.run_in_executor` does. One instance serves all the
    models of a process. A job whose request was cancelled or is late when its turn comes is
    not run.
    """

    def __init__(self, count: int | None = None) -> None:
        self.count = count or len(os.sched_getaffinity(0))
        self._jobs: queue.SimpleQueue[_Job | None] = queue.SimpleQueue()
        self._closed = False
        self._threads = [
            threading.Thread(target=_work, args=(self._jobs,), name=f"stage-{i}", daemon=True)
            for i in range(self.count)
        ]
        for thread in self._threads:
            thread.start()

    async def run(
        self,
        work: Callable[[], Any],
        context: RequestContext | None = None,
        spend: str | None = "dense",
    ) -> Any:
        """What `work` returns or raises; Internal for what ends a program, or an iteration.

        With a context: DeadlineExceeded at its deadline, even while the thread is still at work,
        whose result is then dropped; the waiting is spent on "queue" and the work on `spend`, or,
        where that is None, on what `work` itself says.
        """
        self.check_open()
        loop = asyncio.get_running_loop()
        job = _Job(work, loop, context.deadline if context else math.inf)
        self._jobs.put(job)
        timer = _expiry(loop, job)
        try:
            return await job.future
        finally:
            if timer is not None:
                timer.cancel()
            if context is not None and job.finished:
                context.spend("queue", job.started - job.queued)
                if spend is not None:
                    context.spend(spend, job.finished - job.started)
            # An error's traceback has this frame, which would be in a cycle with what has it.
            del job

    def check_open(self) -> None:
        """Raises Unavailable after `close`."""
        if self._closed:
            raise Unavailable("the server is shutting down")

    def close(self) -> None:
        """Finish what is queued, then end the threads. Later jobs are refused."""
        self._closed = True
        for _ in self._threads:
            self._jobs.put(None)
        for thread in self._threads:
            thread.join()


class _Job:
    __slots__ = ("deadline", "finished", "future", "loop", "queued", "started", "work")

    def __init__(
        self, work: Callable[[], Any], loop: asyncio.AbstractEventLoop, deadline: float
    ) -> None:
        self.work = work
        self.loop = loop
        self.deadline = deadline
        self.future: asyncio.Future[Any] = loop.create_future()
        self.queued = time.monotonic()
        self.started = 0.0
        self.finished = 0.0

    def perform(self) -> None:
        """On a stage thread."""
        if self.future.done():
            return
        self.started = time.monotonic()
        if self.started >= self.deadline:
            return
        result, error = None, None
        try:
            result = self.work()
        except BaseException as failure:  # noqa: BLE001 (it is raised where the result is awaited)
            error = _to_raise(failure)
        self.finished = time.monotonic()
        try:
            self.loop.call_soon_threadsafe(self.finish, result, error)
        except RuntimeError:
            # The loop was closed meanwhile, so nobody awaits the result.
            return
        finally:
            # As in `StageThreads.run`.
            del self, error

    def finish(self, result: Any, error: BaseException | None) -> None:
        """On the event loop."""
        if self.future.done():
            return
        if error is None:
            self.future.set_result(result)
        else:
            self.future.set_exception(error)

    def expire(self) -> None:
        self.finish(None, DeadlineExceeded(TIMED_OUT))


def _to_raise(failure: BaseException) -> Exception:
    """What a future takes, and an event loop survives, as it does not a SystemExit."""
    if isinstance(failure, Exception) and not isinstance(failure, StopIteration):
        return failure
    _log.error("work on a stage thread failed", exc_info=failure)
    return Internal(f"{type(failure).__name__}: {failure}")


def _expiry(loop: asyncio.AbstractEventLoop, job: _Job) -> asyncio.TimerHandle | None:
    if job.deadline == math.inf:
        return None
    return loop.call_later(max(0.0, job.deadline - job.queued), job.expire)


def _work(jobs: queue.SimpleQueue[_Job | None]) -> None:
    while (job := jobs.get()) is not None:
        job.perform()
        del job  # An idle thread must not keep the last request's arrays alive.


class TensorFlowRunner:
    """One session over one graph, and the stages compiled from it."""

    def __init__(
        self,
        threads: StageThreads,
        graph: tf.Graph | None = None,
        parallelism: Parallelism = Parallelism(),
    ) -> None:
        self.threads = threads
        self.graph = graph if graph is not None else tf.Graph()
        #: Functions of the graph whose time is known to depend on shapes alone; see `brief`.
        self.functions_by_shapes: Set[str] = frozenset()
        config = parallelism.config()
        limit_rewrites(config, self.graph.num_operations())
        self.session = tf.compat.v1.Session(graph=self.graph, config=config)
        #: Whether a stage runs on the thread that calls, so that its time is that thread's.
        self._runs_on_caller = parallelism.inter_op_threads < 0 and run_on_caller(
            device.device_type for device in self.session.list_devices()
        )
        self._stages: weakref.WeakSet[Stage] = weakref.WeakSet()

    def make_callable(
        self, feeds: Sequence[str], fetches: Sequence[str], targets: Sequence[str] = ()
    ) -> Stage:
        """Compile the part of the graph between `feeds` and `fetches`; it may take seconds.

        Both are tensor names ("x:0"); a feed may be any tensor of the graph, and what is only
        needed above it is not run. `targets` are operations to run besides. Raises the
        `ServingError` that TensorFlow's own error translates to.
        """
        if self.session is None:
            raise Unavailable(_UNLOADED)
        options = config_pb2.CallableOptions(feed=feeds, fetch=fetches, target=targets)
        try:
            dtypes = tuple(
                np.dtype(self.graph.get_tensor_by_name(name).dtype.as_numpy_dtype)
                for name in fetches
            )
            call = self.session._make_callable_from_options(options)  # noqa: SLF001 (10x cheaper)
        except tf.errors.OpError as error:
            raise error_of(error.error_code, error.message) from None
        except (KeyError, ValueError, TypeError) as error:
            where = f"{', '.join(feeds)} -> {', '.join(fetches)}"
            raise InvalidArgument(f"cannot compile {where}: {error}") from error
        foreseen = self._runs_on_caller and takes_time_by_shapes(
            self.graph, self.functions_by_shapes, feeds, fetches, targets
        )
        times = RunTimes() if foreseen else None
        stage = Stage(tuple(feeds), tuple(fetches), dtypes, call, times)
        self._stages.add(stage)
        return stage

    async def run(
        self, stage: Stage, values: Sequence[Array], context: RequestContext, spend: str = "dense"
    ) -> list[Array]:
        """`stage` on `values`, in the order of its feeds, each of its feed's dtype exactly.

        On a stage thread, or here where that is quicker. Strings are object arrays of bytes. Arrays
        must not change until this returns, nor after it raised for a deadline or a cancellation.
        Raises as `Stage` and `StageThreads.run` do.
        """
        runs = None if stage.times is None else stage.times.of(values)
        if runs is None:
            result: list[Array] = await self.threads.run(lambda: stage(*values), context, spend)
            return result
        if runs.is_brief:
            return self._run_here(stage, values, context, spend, runs)
        result, own, held = await self.threads.run(lambda: _timed(stage, values), context, spend)
        runs.on_thread(own, held)
        return result

    def _run_here(
        self,
        stage: Stage,
        values: Sequence[Array],
        context: RequestContext,
        spend: str,
        runs: Runs,
    ) -> list[Array]:
        self.threads.check_open()
        stopwatch = Stopwatch()
        if stopwatch.started >= context.deadline:
            raise DeadlineExceeded(TIMED_OUT)
        try:
            return stage(*values)
        finally:
            runs.on_loop(stopwatch.held())
            context.spend(spend, stopwatch.passed())

    def close(self) -> None:
        """Free the session, and what it holds with it; closing it again does nothing.

        Stages that nobody waits for any more may still run: they are cancelled, and the session
        goes with the last of them. It is known by its stages alone, which may be known to cycles
        of objects that nothing collects; so they let go of it. A stage that is called after all
        raises Unavailable.
        """
        if self.session is None:
            return
        self.session.close()
        for stage in self._stages:
            object.__setattr__(stage, "call", _closed)
        self.session = None


def _timed(stage: Stage, values: Sequence[Array]) -> tuple[list[Array], float, float]:
    """What the stage returns, what it took of this thread, and for how long it held it up."""
    stopwatch = Stopwatch()
    results = stage(*values)
    return results, stopwatch.own(), stopwatch.held()
