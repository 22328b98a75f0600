"""Stages run on the event loop only where nothing but their feeds' shapes makes them slow."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from threading import get_ident
from time import monotonic

import numpy as np
import pytest
import tensorflow as tf

from shardserve.batching.errors import DeadlineExceeded, InvalidArgument, Unavailable
from shardserve.router.brief import functions_by_shapes, run_on_caller
from shardserve.router.run_times import BRIEF_SECONDS, ENOUGH_RUNS, LONG_SECONDS
from shardserve.router.servable import RequestContext
from shardserve.router.session import Parallelism, Stage, StageThreads, TensorFlowRunner
from shardserve.router.whole import WholeServable

Contexts = Callable[..., RequestContext]

_X = np.ones(3, np.float32)


@pytest.fixture(scope="module")
def runner(threads: StageThreads) -> Iterator[TensorFlowRunner]:
    runner = TensorFlowRunner(threads)
    with runner.graph.as_default():
        x = tf.compat.v1.placeholder(tf.float32, [None], "x")
        tf.multiply(x, 2.0, "double")
        tf.negative(tf.fill([tf.cast(x[0], tf.int32)], 1.0, "filled"), "negated")
        ids = tf.compat.v1.placeholder(tf.int64, [None], "ids")
        tf.gather(tf.constant([1.0, 2.0]), ids, name="gathered")
        text = tf.compat.v1.placeholder(tf.string, [None], "text")
        tf.identity(text, "same")
    yield runner
    runner.close()


def _known_as_brief(stage: Stage, *values: np.ndarray) -> None:
    assert stage.times is not None
    runs = stage.times.of(values)
    assert runs is not None
    for _ in range(ENOUGH_RUNS):
        runs.on_thread(BRIEF_SECONDS / 2, BRIEF_SECONDS / 2)


def _noting_threads(stage: Stage) -> tuple[Stage, list[int]]:
    seen: list[int] = []

    def call(*values: np.ndarray) -> list[np.ndarray]:
        seen.append(get_ident())
        return stage.call(*values)

    return Stage(stage.feeds, stage.fetches, stage.dtypes, call, stage.times), seen


def _work_long() -> None:
    until = monotonic() + 2 * LONG_SECONDS
    while monotonic() < until:
        pass


def _before(work: Callable[[], None], stage: Stage) -> Stage:
    def call(*values: np.ndarray) -> list[np.ndarray]:
        work()
        return stage.call(*values)

    return Stage(stage.feeds, stage.fetches, stage.dtypes, call, stage.times)


async def test_a_stage_runs_on_the_loop_for_shapes_whose_runs_were_brief(
    runner: TensorFlowRunner, context: Contexts
) -> None:
    stage, seen = _noting_threads(runner.make_callable(["x:0"], ["double:0"]))
    _known_as_brief(stage, _X)
    [y] = await runner.run(stage, [_X], context())
    assert y.tolist() == [2.0, 2.0, 2.0]
    await runner.run(stage, [np.ones(4, np.float32)], context())
    assert seen[0] == get_ident()
    assert seen[1] != get_ident()


async def test_a_run_that_turns_out_long_sends_the_next_to_a_thread(
    runner: TensorFlowRunner, context: Contexts
) -> None:
    stage, seen = _noting_threads(_before(_work_long, runner.make_callable(["x:0"], ["double:0"])))
    _known_as_brief(stage, _X)
    await runner.run(stage, [_X], context())
    await runner.run(stage, [_X], context())
    assert seen[0] == get_ident()
    assert seen[1] != get_ident()


async def test_a_stage_that_waits_for_other_threads_stays_off_the_loop(
    runner: TensorFlowRunner, context: Contexts
) -> None:
    """Its own thread does next to nothing meanwhile."""
    with ThreadPoolExecutor(1) as others:
        waiting = _before(
            lambda: others.submit(_work_long).result(),
            runner.make_callable(["x:0"], ["double:0"]),
        )
        stage, seen = _noting_threads(waiting)
        for _ in range(4 * ENOUGH_RUNS):
            await runner.run(stage, [_X], context())
    assert get_ident() not in seen


def test_what_values_may_make_slow_is_never_brief(runner: TensorFlowRunner) -> None:
    assert runner.make_callable(["x:0"], ["double:0"]).times is not None
    assert runner.make_callable(["x:0"], ["negated:0"]).times is None


def test_what_lies_above_the_feeds_does_not_count(runner: TensorFlowRunner) -> None:
    assert runner.make_callable(["filled:0"], ["negated:0"]).times is not None


def test_nothing_is_brief_where_operations_run_on_other_threads(threads: StageThreads) -> None:
    runner = TensorFlowRunner(threads, parallelism=Parallelism(inter_op_threads=2))
    with runner.graph.as_default():
        x = tf.compat.v1.placeholder(tf.float32, [None], "x")
        tf.multiply(x, 2.0, "double")
    assert runner.make_callable(["x:0"], ["double:0"]).times is None
    runner.close()


@pytest.mark.parametrize(
    ("devices", "expected"), [(["CPU"], True), (["CPU", "GPU"], False), (["CPU", "XLA_CPU"], False)]
)
def test_nothing_is_brief_where_operations_may_run_on_another_device(
    devices: list[str], expected: bool
) -> None:
    assert run_on_caller(devices) is expected


def test_calls_are_looked_into(half_plus_two: WholeServable, mixed: WholeServable) -> None:
    assert half_plus_two.stage_of("serving_default", ["x"], ["y"]).times is not None
    assert mixed.stage_of("look_up", ["ids"], ["rows"]).times is not None
    assert mixed.stage_of("count", ["rounds"], ["done"]).times is None


def test_what_xla_compiles_is_never_brief() -> None:
    def is_brief(*, compiled: bool) -> bool:
        @tf.function(jit_compile=compiled)
        def double(x: tf.Tensor) -> tf.Tensor:
            return x * 2.0

        definition = double.get_concrete_function(tf.TensorSpec([None], tf.float32)).function_def
        return definition.signature.name in functions_by_shapes([definition])

    assert is_brief(compiled=False)
    assert not is_brief(compiled=True)


def test_strings_have_no_time_of_their_own(runner: TensorFlowRunner) -> None:
    stage = runner.make_callable(["text:0"], ["same:0"])
    assert stage.times is not None
    assert stage.times.of([np.array([b"a"], object)]) is None


async def test_a_brief_run_fails_as_any_other_does(
    runner: TensorFlowRunner, context: Contexts
) -> None:
    stage = runner.make_callable(["ids:0"], ["gathered:0"])
    ids = np.array([0, 7])
    _known_as_brief(stage, ids)
    with pytest.raises(InvalidArgument, match=r"indices\[1\] = 7 is not in \[0, 2\)"):
        await runner.run(stage, [ids], context())
    with pytest.raises(DeadlineExceeded, match="Timed out waiting for notification"):
        await runner.run(stage, [ids], context(0.0))


async def test_nothing_runs_once_the_threads_are_closed(context: Contexts) -> None:
    threads = StageThreads(1)
    runner = TensorFlowRunner(threads)
    with runner.graph.as_default():
        x = tf.compat.v1.placeholder(tf.float32, [None], "x")
        tf.multiply(x, 2.0, "double")
    stage = runner.make_callable(["x:0"], ["double:0"])
    _known_as_brief(stage, _X)
    threads.close()
    with pytest.raises(Unavailable, match="shutting down"):
        await runner.run(stage, [_X], context())
    runner.close()
