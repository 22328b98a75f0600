"""Stages run on threads, within their deadline, and fail in TensorFlow's words."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Iterator

import ml_dtypes
import numpy as np
import pytest
import tensorflow as tf

from shardserve.batching.errors import DeadlineExceeded, Internal, InvalidArgument, Unavailable
from shardserve.router.servable import RequestContext
from shardserve.router.session import Parallelism, StageThreads, TensorFlowRunner

Contexts = Callable[..., RequestContext]


@pytest.fixture(scope="module")
def runner(threads: StageThreads) -> Iterator[TensorFlowRunner]:
    runner = TensorFlowRunner(threads)
    with runner.graph.as_default():
        x = tf.compat.v1.placeholder(tf.float32, [None, 2], "x")
        inner = tf.multiply(x, 10.0, "inner")
        tf.add(inner, 1.0, "y")
        tf.reduce_sum(x, name="total")
        half = tf.compat.v1.placeholder(tf.bfloat16, [None], "half")
        tf.add(half, half, "double")
        text = tf.compat.v1.placeholder(tf.string, [], "text")
        tf.strings.upper(text, name="upper")
        ids = tf.compat.v1.placeholder(tf.int64, [None], "ids")
        tf.gather(tf.constant([1.0, 2.0]), ids, name="gathered")
    yield runner
    runner.close()


async def test_an_interior_tensor_may_be_fed(runner: TensorFlowRunner, context: Contexts) -> None:
    stage = runner.make_callable(["inner:0"], ["y:0"])
    [y] = await runner.run(stage, [np.array([[1, 2]], np.float32)], context())
    assert y.tolist() == [[2.0, 3.0]]


async def test_a_shape_that_was_not_declared_is_up_to_the_kernel(
    runner: TensorFlowRunner, context: Contexts
) -> None:
    stage = runner.make_callable(["x:0"], ["y:0"])
    [y] = await runner.run(stage, [np.array([1, 2, 3], np.float32)], context())
    assert y.tolist() == [11.0, 21.0, 31.0]


async def test_scalars_come_back_as_arrays(runner: TensorFlowRunner, context: Contexts) -> None:
    stage = runner.make_callable(["x:0", "text:0"], ["total:0", "upper:0"])
    values = [np.ones((2, 2), np.float32), np.array(b"a\0b", object)]
    total, upper = await runner.run(stage, values, context())
    assert (total.dtype, total.shape, total.item()) == (np.float32, (), 4.0)
    assert (upper.dtype, upper.shape, upper.item()) == (object, (), b"A\0B")


async def test_bfloat16_goes_in_and_out(runner: TensorFlowRunner, context: Contexts) -> None:
    stage = runner.make_callable(["half:0"], ["double:0"])
    [double] = await runner.run(stage, [np.array([1.5], ml_dtypes.bfloat16)], context())
    assert double.dtype == ml_dtypes.bfloat16
    assert double.tolist() == [3.0]


async def test_arrays_that_are_not_contiguous_are_read_right(
    runner: TensorFlowRunner, context: Contexts
) -> None:
    stage = runner.make_callable(["x:0"], ["y:0"])
    strided = np.arange(12, dtype=np.float32).reshape(3, 4)[:, ::2]
    [y] = await runner.run(stage, [strided], context())
    np.testing.assert_array_equal(y, strided * 10 + 1)


async def test_a_kernel_s_error_keeps_its_code_and_words(
    runner: TensorFlowRunner, context: Contexts
) -> None:
    stage = runner.make_callable(["ids:0"], ["gathered:0"])
    with pytest.raises(InvalidArgument, match=r"indices\[1\] = 7 is not in \[0, 2\)"):
        await runner.run(stage, [np.array([0, 7])], context())


async def test_a_value_of_the_wrong_type_is_an_invalid_argument(
    runner: TensorFlowRunner, context: Contexts
) -> None:
    stage = runner.make_callable(["x:0"], ["y:0"])
    with pytest.raises(InvalidArgument, match="float"):
        await runner.run(stage, [np.array([1, 2])], context())


@pytest.mark.parametrize(("feeds", "fetches"), [(["no:0"], ["y:0"]), (["x:0"], ["no:0"])])
def test_a_tensor_that_is_not_there_cannot_be_cut_at(
    runner: TensorFlowRunner, feeds: list[str], fetches: list[str]
) -> None:
    with pytest.raises(InvalidArgument, match="no"):
        runner.make_callable(feeds, fetches)


async def test_what_a_run_takes_is_spent_on_its_context(
    runner: TensorFlowRunner, context: Contexts
) -> None:
    stage = runner.make_callable(["x:0"], ["y:0"])
    spending = context()
    await runner.run(stage, [np.ones((1, 2), np.float32)], spending, "ids")
    assert spending.seconds.keys() == {"queue", "ids"}
    assert all(seconds >= 0 for seconds in spending.seconds.values())


async def test_a_deadline_ends_the_wait_and_not_the_work(
    threads: StageThreads, context: Contexts
) -> None:
    release, finished = threading.Event(), threading.Event()

    def work() -> None:
        release.wait(60)
        finished.set()

    late = context(time.monotonic() + 0.01)
    with pytest.raises(DeadlineExceeded, match="Timed out waiting for notification"):
        await threads.run(work, late)
    release.set()
    assert await asyncio.to_thread(finished.wait, 60)


async def test_a_job_that_is_late_or_cancelled_when_its_turn_comes_is_not_run(
    context: Contexts,
) -> None:
    threads = StageThreads(1)
    started, release, ran = threading.Event(), threading.Event(), []

    def hold() -> None:
        started.set()
        release.wait(60)

    held = asyncio.ensure_future(threads.run(hold))
    await asyncio.to_thread(started.wait, 60)
    late = asyncio.ensure_future(threads.run(lambda: ran.append("late"), context(0.0)))
    cancelled = asyncio.ensure_future(threads.run(lambda: ran.append("cancelled")))
    await asyncio.sleep(0)
    cancelled.cancel()
    with pytest.raises(DeadlineExceeded):
        await late
    await asyncio.gather(cancelled, return_exceptions=True)
    release.set()
    await held
    await threads.run(lambda: ran.append("after"))
    threads.close()
    assert ran == ["after"]


@pytest.mark.parametrize("defect", [StopIteration("none"), SystemExit(3), GeneratorExit()])
async def test_work_that_raises_what_no_future_can_have_is_an_internal_error(
    threads: StageThreads, defect: BaseException
) -> None:
    def work() -> None:
        raise defect

    with pytest.raises(Internal, match=type(defect).__name__):
        await asyncio.wait_for(threads.run(work), 5)
    assert await threads.run(lambda: "alive") == "alive"


async def test_closed_threads_finish_what_they_have_and_refuse_more() -> None:
    threads = StageThreads(2)
    assert await threads.run(lambda: 1) == 1
    await asyncio.to_thread(threads.close)
    with pytest.raises(Unavailable, match="shutting down"):
        await threads.run(lambda: 1)


def test_a_loop_that_closed_meanwhile_costs_no_thread() -> None:
    threads = StageThreads(1)
    release = threading.Event()
    abandoned: list[asyncio.Future[object]] = []

    async def abandon() -> None:
        abandoned.append(asyncio.ensure_future(threads.run(lambda: release.wait(60))))
        await asyncio.sleep(0)

    asyncio.run(abandon())
    release.set()
    assert asyncio.run(threads.run(lambda: "alive")) == "alive"
    threads.close()


async def test_many_at_once_each_get_their_own_answer(
    runner: TensorFlowRunner, context: Contexts
) -> None:
    stage = runner.make_callable(["x:0"], ["total:0"])

    async def ask(number: int) -> float:
        [total] = await runner.run(stage, [np.full((1, 2), number, np.float32)], context())
        return float(total)

    answers = await asyncio.gather(*[ask(number) for number in range(200)])
    assert answers == [2.0 * number for number in range(200)]


def test_parallelism_becomes_the_session_s() -> None:
    config = Parallelism(intra_op_threads=3, inter_op_threads=2).config()
    assert config.intra_op_parallelism_threads == 3
    assert config.inter_op_parallelism_threads == 2


def test_the_threads_that_a_process_starts_with_are_as_many_as_asked_for() -> None:
    few, many = threads_started(2, 5)
    assert many - few == 3


def threads_started(*intra_op_threads: int) -> list[int]:
    """Threads of processes after a later session asked for TensorFlow's own choice.

    It is imported once for all: it starts none before its first session.
    """
    code = f"""
        import os
        from pathlib import Path
        import tensorflow as tf
        from shardserve.router.session import Parallelism, start_tensorflow
        for threads in {intra_op_threads}:
            if os.fork():
                assert os.wait()[1] == 0
                continue
            start_tensorflow(Parallelism(threads))
            with tf.Graph().as_default(), tf.compat.v1.Session() as session:
                session.run(tf.matmul(tf.ones([64, 64]), tf.ones([64, 64])))
            print(len(list(Path("/proc/self/task").iterdir())), flush=True)
            os._exit(0)
    """
    ran = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, check=True
    )
    return [int(line) for line in ran.stdout.split()]
