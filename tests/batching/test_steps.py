"""What the step scheduler decides, case by case."""

from __future__ import annotations

import math

import pytest

from shardserve.batching.errors import (
    DeadlineExceeded,
    FailedPrecondition,
    Internal,
    InvalidArgument,
    ResourceExhausted,
    Unavailable,
)
from shardserve.batching.parameters import BatchingParameters
from shardserve.batching.step_tasks import (
    Failed,
    Finish,
    Interrupt,
    Join,
    Leave,
    SequenceTask,
    Step,
)
from shardserve.batching.steps import MAX_BURST, StepScheduler
from shardserve.batching.tasks import WakeAt
from shardserve.batching.tensors import NotBatchable

TWO_ROWS = BatchingParameters(max_batch_size=2, max_enqueued_batches=2)


def sequence(steps=10, deadline=math.inf, **more) -> SequenceTask[None]:
    return SequenceTask(None, steps, deadline, **more)


def step(*tasks, limit=10, rows=None, is_all=True) -> Step[None]:
    return Step(tuple(tasks), limit, rows or len(tasks), is_all)


def test_a_first_sequence_steps_at_once_until_its_end():
    core = StepScheduler(TWO_ROWS)
    a = sequence(3)
    assert core.offer([a], 0.0) == [Join(a), step(a, limit=3)]
    assert core.stepped(3, (), 1.0) == [Finish(a)]
    assert core.is_idle


def test_who_comes_meanwhile_interrupts_the_burst_and_joins():
    core = StepScheduler(TWO_ROWS)
    a, b, c = sequence(9), sequence(5), sequence(7)
    core.offer([a], 0.0)
    assert core.offer([b], 0.0) == [Interrupt()]
    assert core.offer([c], 0.0) == []
    assert core.stepped(1, (), 1.0) == [Join(b), step(a, b, limit=5)]
    assert core.stepped(5, (), 2.0) == [Finish(b), Join(c), step(a, c, limit=3)]


def test_a_long_sequence_is_left_alone_for_so_many_steps_at_most():
    core = StepScheduler(TWO_ROWS)
    a = sequence(1000)
    assert core.offer([a], 0.0) == [Join(a), step(a, limit=MAX_BURST)]


def test_a_sequence_that_stops_makes_room():
    core = StepScheduler(TWO_ROWS)
    a, b, c = sequence(9), sequence(9), sequence(9)
    core.offer([a, b], 0.0)
    core.offer([c], 0.0)
    assert core.stepped(2, {a}, 1.0) == [Finish(a), Join(c), step(b, c, limit=7)]


def test_a_batch_is_padded_to_an_allowed_size():
    core = StepScheduler(BatchingParameters(max_batch_size=4, allowed_batch_sizes=(2, 4)))
    a, b, c = sequence(), sequence(), sequence()
    assert core.offer([a, b, c], 0.0)[-1] == step(a, b, c, rows=4)


def test_halves_of_a_batch_that_failed_step_alone_and_only_the_culprit_fails():
    core = StepScheduler(BatchingParameters(max_batch_size=4))
    a, b, c = sequence(), sequence(), sequence()
    core.offer([a, b, c], 0.0)
    bad = InvalidArgument("bad")
    assert core.failed(bad, 1.0) == [step(a, limit=1, is_all=False)]
    assert core.stepped(1, (), 2.0) == [step(b, c, limit=1, is_all=False)]
    d = sequence()
    assert core.offer([d], 2.0) == [Interrupt()]
    assert core.failed(bad, 3.0) == [step(b, limit=1, is_all=False)]
    assert core.failed(bad, 4.0) == [Failed(b, bad), Leave(b), step(c, limit=1, is_all=False)]
    assert core.stepped(1, (), 5.0) == [Join(d), step(a, c, d, limit=9)]


@pytest.mark.parametrize("error", [Internal("crash"), NotBatchable("no rows"), Unavailable("gone")])
def test_an_error_that_is_nobodys_fault_is_everybodys(error):
    core = StepScheduler(TWO_ROWS)
    a, b, c = sequence(), sequence(), sequence()
    core.offer([a, b], 0.0)
    core.offer([c], 0.0)
    assert core.failed(error, 1.0) == [
        Failed(a, error),
        Failed(b, error),
        Leave(a),
        Leave(b),
        Join(c),
        step(c),
    ]


def test_deadlines_end_who_waits_and_who_runs():
    core = StepScheduler(BatchingParameters(max_batch_size=1))
    a, b = sequence(deadline=5.0), sequence(deadline=3.0)
    assert core.offer([a], 0.0) == [WakeAt(5.0), Join(a), step(a)]
    assert core.offer([b], 0.0) == [WakeAt(3.0)]
    (late, wake) = core.tick(3.0)
    assert late.task is b
    assert isinstance(late.error, ResourceExhausted)
    assert wake == WakeAt(5.0)
    (late, interrupt) = core.tick(5.0)
    assert late.task is a
    assert isinstance(late.error, DeadlineExceeded)
    assert interrupt == Interrupt()
    assert core.stepped(1, (), 6.0) == [Leave(a)]
    assert core.is_idle


def test_a_timer_that_rings_early_is_set_again():
    core = StepScheduler(TWO_ROWS)
    assert core.tick(0.0) == ()
    core.offer([sequence(deadline=5.0)], 1.0)
    assert core.tick(4.9995) == (WakeAt(5.0),)


def test_who_cannot_make_its_deadline_at_the_measured_pace_is_refused_when_offered():
    core = StepScheduler(TWO_ROWS)
    core.offer([sequence(100)], 0.0)
    core.stepped(10, (), 10.0)
    assert core.step_seconds == 1.0
    with pytest.raises(ResourceExhausted):
        core.offer([sequence(20, deadline=29.0)], 10.0)
    core.offer([sequence(20, deadline=31.0)], 10.0)


def test_who_may_stop_early_is_not_refused_for_its_length():
    core = StepScheduler(TWO_ROWS)
    core.offer([sequence(100)], 0.0)
    core.stepped(10, (), 10.0)
    core.offer([sequence(20, deadline=11.0, length_known=False)], 10.0)


def test_more_than_may_wait_is_refused_in_tensorflow_servings_words():
    core = StepScheduler(TWO_ROWS)
    for _ in range(3):
        core.offer([sequence(), sequence()], 0.0)
    with pytest.raises(Unavailable, match="currently 2 batches enqueued and max_enqueued_batches"):
        core.offer([sequence()], 0.0)
    with pytest.raises(InvalidArgument, match=r"Task size 3 is larger than .* size 2"):
        core.offer([sequence(), sequence(), sequence()], 0.0)


def test_bytes_are_bounded_until_a_sequence_ends():
    core = StepScheduler(TWO_ROWS, max_bytes=100)
    a = sequence(1, nbytes=60)
    core.offer([a], 0.0)
    with pytest.raises(Unavailable, match=r"have 60 bytes; .* more than 100"):
        core.offer([sequence(nbytes=50)], 0.0)
    core.stepped(1, (), 1.0)
    core.offer([sequence(nbytes=50)], 1.0)


def test_a_drain_refuses_who_comes_and_finishes_who_was_accepted():
    core = StepScheduler(BatchingParameters(max_batch_size=1))
    a, b = sequence(2), sequence(1)
    core.offer([a], 0.0)
    core.offer([b], 0.0)
    core.drain(0.0)
    with pytest.raises(Unavailable, match="being unloaded"):
        core.offer([sequence()], 0.0)
    assert core.stepped(2, (), 1.0) == [Finish(a), Join(b), step(b, limit=1)]
    assert core.stepped(1, (), 2.0) == [Finish(b)]
    assert core.is_idle


def test_a_state_that_changes_its_form_is_looked_for_in_each_half():
    core = StepScheduler(TWO_ROWS)
    a, b = sequence(), sequence()
    core.offer([a, b], 0.0)
    assert core.failed(FailedPrecondition("other shape"), 1.0) == [step(a, limit=1, is_all=False)]
