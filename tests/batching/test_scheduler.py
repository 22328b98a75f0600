"""What the scheduler of a device decides, event by event."""

from __future__ import annotations

import math
from typing import Any

import pytest

from shardserve.batching.errors import (
    DeadlineExceeded,
    FailedPrecondition,
    Internal,
    InvalidArgument,
    ResourceExhausted,
    ServingError,
    Unavailable,
)
from shardserve.batching.pace import InFlight
from shardserve.batching.parameters import (
    BatchingParameters,
    BatchPaddingPolicy,
    MixedPriorityPolicy,
)
from shardserve.batching.scheduler import BatchScheduler
from shardserve.batching.stage import MAX_QUEUES
from shardserve.batching.tasks import (
    Action,
    Actions,
    Batch,
    Fail,
    Priority,
    Run,
    Stop,
    Task,
    WakeAt,
)
from shardserve.batching.tensors import NotBatchable
from shardserve.batching.waiting import DeviceLimits


class Device:
    """A scheduler with one stage, unless more are added."""

    def __init__(self, parameters: BatchingParameters, slots: int, max_bytes: int) -> None:
        limits = DeviceLimits(max_enqueued_bytes=max_bytes)
        self.core: BatchScheduler[str] = BatchScheduler(InFlight(slots, slots), limits)
        self.stages = {"stage": self.core.add_stage("stage", parameters)}

    def offer(
        self,
        key: str,
        task: Task[str],
        now: float = 0.0,
        priority: Priority = Priority.HIGH,
        stage: str = "stage",
    ) -> list[Action]:
        """What follows from an offer, a tick included if it asks for one now."""
        actions = self.core.offer(self.stages[stage].queue(key, priority), task, now)
        if WakeAt(now) in actions:
            return [a for a in actions if a != WakeAt(now)] + list(self.core.tick(now))
        return list(actions)

    def finished(
        self, batch: Batch[str], now: float, error: ServingError | None = None
    ) -> list[Action]:
        return list(self.core.finished(batch, now, error))


def device(
    size: int = 4,
    timeout: int = 0,
    slots: int = 1,
    enqueued: int = 10,
    max_bytes: int = 1000,
    **others: Any,
) -> Device:
    parameters = BatchingParameters(
        max_batch_size=size, batch_timeout_micros=timeout, max_enqueued_batches=enqueued, **others
    )
    return Device(parameters, slots, max_bytes)


def task(name: str, size: int = 1, deadline: float = math.inf, nbytes: int = 0) -> Task[str]:
    return Task(name, size, deadline, nbytes)


def offered(
    core: Device,
    names: str,
    key: str = "k",
    now: float = 0.0,
    priority: Priority = Priority.HIGH,
    stage: str = "stage",
) -> list[Task[str]]:
    tasks = [task(name) for name in names]
    for one in tasks:
        core.offer(key, one, now, priority, stage)
    return tasks


def busy(core: Device, key: str = "first") -> Batch[str]:
    """Take a slot."""
    return started(core.offer(key, task("first"), 0.0))[0]


def started(actions: Actions[str]) -> list[Batch[str]]:
    return [action.batch for action in actions if isinstance(action, Run)]


def names(batches: list[Batch[str]]) -> list[str]:
    return ["".join(task.payload for task in batch.tasks) for batch in batches]


def failed(actions: Actions[str]) -> list[tuple[str, str]]:
    return [(a.task.payload, a.error.message) for a in actions if isinstance(a, Fail)]


def run_all(core: Device, running: list[Batch[str]], now: float = 1.0) -> list[str]:
    """What runs until nothing is left, in order."""
    ran = list(running)
    for batch in ran:
        ran += started(core.finished(batch, now))
    return names(ran)


def test_without_a_timeout_a_task_runs_at_once_while_a_slot_is_free():
    core = device(slots=2)
    assert names(started(core.offer("k", task("a"), 0.0))) == ["a"]
    assert names(started(core.offer("k", task("b"), 0.0))) == ["b"]
    assert core.offer("k", task("c"), 0.0) == []


def test_tasks_gather_while_all_slots_are_busy_and_run_together():
    core = device()
    first = busy(core)
    offered(core, "abcdef")
    (batch,) = started(core.finished(first, 1.0))
    assert names([batch]) == ["abcd"]
    assert batch.started == 1.0
    assert names(started(core.finished(batch, 2.0))) == ["ef"]


def test_an_open_batch_waits_for_its_timeout_or_until_it_is_full():
    core = device(timeout=1_000_000, slots=2)
    assert core.offer("k", task("a"), 5.0) == [WakeAt(6.0)]
    assert core.offer("k", task("b"), 5.5) == []
    assert names(started(core.core.tick(6.0))) == ["ab"]
    offered(core, "cde", now=6.5)
    assert names(started(core.offer("k", task("f"), 6.6))) == ["cdef"]


def test_a_tick_that_comes_early_asks_to_be_called_again():
    core = device(timeout=1_000_000)
    core.offer("k", task("a"), 0.0)
    assert core.core.tick(0.9) == [WakeAt(1.0)]


def test_a_task_that_does_not_fit_closes_the_open_batch():
    core = device(timeout=1_000_000, slots=2)
    core.offer("k", task("a", 3), 0.0)
    assert names(started(core.offer("k", task("b", 2), 0.0))) == ["a"]
    assert names(started(core.core.tick(0.0))) == []


def test_a_task_larger_than_a_batch_is_refused():
    with pytest.raises(InvalidArgument) as raised:
        device(size=4).offer("k", task("a", 5), 0.0)
    assert raised.value.message == "Task size 5 is larger than maximum input batch size 4"


def test_a_full_queue_refuses_at_once_and_keeps_what_it_has():
    core = device(size=2, enqueued=3)
    first = busy(core)
    offered(core, "abcdef")
    with pytest.raises(Unavailable) as raised:
        core.offer("k", task("g"), 0.0)
    assert raised.value.message == (
        "The batch scheduling queue to which this task was submitted is full; currently 3 batches "
        "enqueued and max_enqueued_batches is 3"
    )
    core.offer("other", task("h"), 0.0)
    ran = [first]
    for batch in ran:
        ran += started(core.finished(batch, 1.0))
    assert names(ran) == ["first", "ab", "h", "cd", "ef"]
    assert core.core.is_idle


def test_queues_take_turns():
    core = device(size=1)
    ran = [busy(core)]
    offered(core, "aaa", "a")
    offered(core, "b", "b")
    offered(core, "cc", "c")
    for batch in ran:
        ran += started(core.finished(batch, 1.0))
    assert "".join(names(ran)) == "firstabcaca"


def test_the_number_of_queues_is_bounded():
    core = device()
    busy(core)
    for key in range(MAX_QUEUES - 1):
        offered(core, "x", str(key))
    with pytest.raises(Unavailable, match="256 different shapes"):
        core.offer("one more", task("x"), 0.0)
    core.offer("0", task("x"), 0.0)


def test_a_cancelled_task_gives_its_room_back_and_does_not_run():
    core = device(enqueued=1)
    first = busy(core)
    tasks = offered(core, "abc")
    assert core.core.cancel(tasks[1]) == ()
    assert core.core.cancel(tasks[1]) == ()
    offered(core, "de")
    assert names(started(core.finished(first, 1.0))) == ["acde"]


def test_a_running_batch_is_stopped_when_all_its_tasks_have_been_cancelled():
    core = device()
    first = busy(core)
    a, b = offered(core, "ab")
    (batch,) = started(core.finished(first, 1.0))
    assert core.core.cancel(a) == ()
    assert core.core.cancel(b) == (Stop(batch),)
    assert not core.core.is_idle
    assert core.finished(batch, 2.0, Unavailable("stopped")) == []
    assert core.core.is_idle


def test_late_tasks_are_dropped_before_their_batch_runs():
    core = device()
    first = busy(core)
    core.offer("k", task("a", deadline=2.0), 0.0)
    core.offer("k", task("b", deadline=9.0), 0.0)
    actions = core.finished(first, 2.0)
    assert failed(actions) == [("a", "Run() timeout exceeded while waiting in batching queue")]
    assert isinstance(actions[0].error, ResourceExhausted)
    assert names(started(actions)) == ["b"]
    with pytest.raises(ResourceExhausted):
        core.offer("k", task("c", deadline=2.0), 2.0)


def test_a_task_fails_at_its_deadline_wherever_it_is():
    core = device()
    assert core.offer("k", task("a", deadline=5.0), 0.0)[-1] == WakeAt(5.0)
    assert core.offer("k", task("b", deadline=3.0), 0.0) == [WakeAt(3.0)]
    late = core.core.tick(3.0)
    assert [name for name, _ in failed(late)] == ["b"]
    assert late[-1] == WakeAt(5.0)
    fail, stop = core.core.tick(5.0)
    assert isinstance(fail.error, DeadlineExceeded)
    assert isinstance(stop, Stop)


@pytest.mark.parametrize("culprits", ["a", "d", "ch", "abcdefgh", ""])
def test_only_culprits_get_a_clients_error_and_their_mates_their_answers(culprits):
    core = device(size=8)
    answered, errors, runs = "", {}, 0
    running = [busy(core)]
    offered(core, "abcdefgh")
    while running:
        batch = running.pop()
        runs += 1
        bad = [t.payload for t in batch.tasks if t.payload in culprits]
        error = FailedPrecondition(f"{bad[0]} is bad") if bad else None
        if error is None:
            answered += "".join(t.payload for t in batch.living())
        actions = core.finished(batch, 1.0, error)
        errors |= dict(failed(actions))
        running += started(actions)
    assert errors == {name: f"{name} is bad" for name in culprits}
    assert answered == "first" + "".join(name for name in "abcdefgh" if name not in culprits)
    assert core.core.is_idle
    if len(culprits) == 1:
        assert runs == 2 + 2 * 3


def test_a_culprit_that_left_while_it_ran_does_not_pass_its_error_on():
    core = device()
    first = busy(core)
    culprit, _ = offered(core, "ab")
    (batch,) = started(core.finished(first, 1.0))
    core.core.cancel(culprit)
    again = core.finished(batch, 2.0, InvalidArgument("a is bad"))
    assert (names(started(again)), failed(again)) == (["b"], [])


def test_new_tasks_do_not_join_what_is_run_again_and_wait_behind_it():
    core = device()
    first = busy(core)
    offered(core, "ab")
    (batch,) = started(core.finished(first, 1.0))
    offered(core, "c", "other")
    ran = started(core.finished(batch, 2.0, InvalidArgument("bad")))
    offered(core, "d")
    for batch in ran:
        ran += started(core.finished(batch, 3.0))
    assert names(ran) == ["a", "c", "b", "d"]
    assert ran[0].tasks[0].queued == 2.0


@pytest.mark.parametrize(
    "error", [Unavailable("away"), DeadlineExceeded("late"), NotBatchable("scalar output")]
)
def test_an_error_that_is_nobodys_own_is_everybodys(error: ServingError):
    core = device()
    first = busy(core)
    offered(core, "abc")
    (batch,) = started(core.finished(first, 1.0))
    actions = core.finished(batch, 2.0, error)
    assert actions == [Fail(task, error) for task in batch.tasks]
    assert core.core.is_idle


def test_a_drain_runs_what_was_accepted_at_once_and_accepts_no_more():
    core = device(size=2, timeout=1_000_000, slots=1)
    offered(core, "x", "j")
    offered(core, "a")
    ran = started(core.core.drain(0.5))
    with pytest.raises(Unavailable, match="closed"):
        core.offer("k", task("d"), 0.5)
    for batch in ran:
        assert not core.core.is_idle
        ran += started(core.finished(batch, 0.6))
    assert names(ran) == ["x", "a"]
    assert core.core.is_idle


def test_stages_take_turns_on_the_slots_and_have_parameters_of_their_own():
    core = device(size=1)
    core.stages["other"] = core.core.add_stage("other", BatchingParameters(max_batch_size=2))
    ran = [busy(core)]
    offered(core, "aaa")
    offered(core, "bbbb", stage="other")
    assert run_all(core, ran) == ["first", "a", "bb", "a", "bb", "a"]


def test_a_stage_is_drained_alone_and_then_forgotten():
    core = device(size=4, timeout=1_000_000, slots=2)
    core.stages["other"] = core.core.add_stage("other", BatchingParameters())
    offered(core, "a")
    stage = core.stages["stage"]
    (batch,) = started(core.core.drain(0.1, stage))
    with pytest.raises(Unavailable, match="closed"):
        core.offer("k", task("b"), 0.1)
    assert started(core.offer("k", task("c"), 0.1, stage="other"))
    core.finished(batch, 0.2)
    assert stage.is_idle
    core.core.remove_stage(stage)
    assert not core.core.is_idle


def test_what_waits_is_bounded_in_bytes_over_all_stages():
    core = device(max_bytes=100)
    core.stages["other"] = core.core.add_stage("other", BatchingParameters())
    first = busy(core)
    core.offer("k", task("a", nbytes=60))
    with pytest.raises(Unavailable, match="60 bytes enqueued and max_enqueued_bytes is 100"):
        core.offer("k", task("b", nbytes=41), stage="other")
    with pytest.raises(ResourceExhausted, match="101 bytes"):
        core.offer("k", task("c", nbytes=101))
    core.offer("k", task("d", nbytes=40), stage="other")
    core.finished(first, 1.0)
    assert core.core.enqueued_bytes == 40


@pytest.mark.parametrize(
    ("policy", "expected"),
    [
        ("low_priority_padding_with_max_batch_size", ["first", "abABCDE", "F"]),
        ("low_priority_padding_with_next_allowed_batch_size", ["first", "abAB", "CDEF"]),
        ("priority_isolation", ["first", "ab", "ABCDEF"]),
    ],
)
def test_low_priority_fills_what_high_leaves_free_or_waits_for_its_turn(policy, expected):
    core = device(
        size=7, allowed_batch_sizes=(4, 7), mixed_priority_policy=MixedPriorityPolicy(policy)
    )
    ran = [busy(core)]
    offered(core, "ABCDEF", priority=Priority.LOW)
    offered(core, "ab")
    assert run_all(core, ran) == expected


def test_low_priority_has_bounds_of_its_own():
    core = device(
        size=8,
        low_priority_max_batch_size=2,
        low_priority_max_enqueued_batches=1,
        low_priority_batch_timeout_micros=5_000_000,
    )
    offered(core, "A", priority=Priority.LOW)
    assert names(started(core.offer("k", task("B"), 0.0, Priority.LOW))) == ["AB"]
    offered(core, "CD", priority=Priority.LOW)
    with pytest.raises(Unavailable, match="currently 1 batches enqueued"):
        core.offer("k", task("E"), 0.0, Priority.LOW)


def test_a_task_larger_than_a_batch_of_low_priority_is_refused_there():
    core = device(size=8, low_priority_max_batch_size=4, low_priority_allowed_batch_sizes=(2, 4))
    with pytest.raises(InvalidArgument, match="6 is larger than maximum input batch size 4"):
        core.offer("k", task("A", 6), 0.0, Priority.LOW)
    assert names(started(core.offer("k", task("a", 6), 0.0))) == ["a"]


def test_a_batch_between_two_allowed_sizes_is_cut_down_if_it_is_asked_for():
    core = device(
        size=8, allowed_batch_sizes=(2, 4, 8), batch_padding_policy=BatchPaddingPolicy.BATCH_DOWN
    )
    ran = [busy(core)]
    offered(core, "abcdefg")
    assert run_all(core, ran) == ["first", "abcd", "ef", "g"]


def test_what_is_left_of_a_batch_is_due_in_time_for_who_is_in_it_and_for_who_joins():
    core = device(
        size=8,
        timeout=10_000_000,
        slots=2,
        allowed_batch_sizes=(2, 8),
        batch_padding_policy=BatchPaddingPolicy.BATCH_DOWN,
    )
    offered(core, "ab")
    core.offer("k", task("c", deadline=15.0), 9.0)
    run, wake = core.core.tick(10.0)
    assert names(started([run])) == ["ab"]
    assert wake == WakeAt(12.5)
    assert core.offer("k", task("d", deadline=12.0), 10.0) == [WakeAt(11.0)]
    assert names(started(core.core.tick(11.0))) == ["cd"]


def test_a_large_task_fills_the_open_batch_and_the_rest_of_it_is_cut():
    core = device(size=20, enable_large_batch_splitting=True, max_execution_batch_size=4)
    first = busy(core)
    core.offer("k", task("a", 3))
    core.offer("k", whole := task("b", 10))
    assert whole.cut is not None
    assert [(piece.start, piece.size) for piece in whole.cut.pieces] == [
        (0, 1),
        (1, 4),
        (5, 4),
        (9, 1),
    ]
    core.offer("k", task("c", 1))
    assert run_all(core, [first]) == ["first", "ab", "b", "b", "bc"]


def test_a_large_task_joins_whole_or_not_at_all():
    core = device(
        size=20, enqueued=2, enable_large_batch_splitting=True, max_execution_batch_size=4
    )
    first = busy(core)
    core.offer("k", task("a", 3))
    with pytest.raises(Unavailable, match="currently 1 batches enqueued"):
        core.offer("k", task("b", 6))
    core.offer("k", task("c", 5))
    assert run_all(core, [first]) == ["first", "ac", "c"]


def test_a_piece_that_fails_ends_the_task_and_its_other_pieces_do_not_run():
    core = device(size=20, enable_large_batch_splitting=True, max_execution_batch_size=4)
    first = busy(core)
    core.offer("k", task("b", 12))
    (piece,) = started(core.finished(first, 1.0))
    actions = core.finished(piece, 2.0, InvalidArgument("bad"))
    assert failed(actions) == [("b", "bad")]
    assert core.core.is_idle


def with_a_task_in_it_thrice() -> tuple[Device, Batch[str]]:
    """A device that runs a batch of high priority, which pieces of low priority fill."""
    core = device(
        size=8,
        enable_large_batch_splitting=True,
        max_execution_batch_size=4,
        low_priority_max_batch_size=1,
    )
    first = busy(core)
    core.offer("k", task("A", 3, deadline=5.0), 0.0, Priority.LOW)
    core.offer("k", task("a"))
    (batch,) = started(core.finished(first, 1.0))
    assert names([batch]) == ["aAAA"]
    return core, batch


def test_a_task_that_is_in_a_batch_more_than_once_is_late_once():
    core, _ = with_a_task_in_it_thrice()
    assert failed(core.core.tick(5.0)) == [("A", "Timed out waiting for notification")]
    assert core.stages["stage"].counts().expired == 1


def test_a_task_that_is_in_a_batch_more_than_once_fails_with_it_once():
    core, batch = with_a_task_in_it_thrice()
    assert failed(core.finished(batch, 2.0, Internal("no"))) == [("a", "no"), ("A", "no")]
    assert core.core.is_idle


def paced(seconds: float = 1.0) -> tuple[Device, Batch[str]]:
    """A device with a batch under way, whose pace is known."""
    core = device(size=4)
    first = busy(core)
    core.finished(first, seconds)
    (second,) = started(core.offer("k", task("second"), seconds))
    return core, second


def test_a_task_that_cannot_make_its_deadline_is_refused_when_it_is_offered():
    core, _ = paced()
    with pytest.raises(Unavailable) as raised:
        core.offer("k", task("a", deadline=2.9), 1.0)
    assert raised.value.message.endswith(
        "is expected to answer it in 2.000 s, and its deadline is in 1.900 s"
    )
    core.offer("k", task("b", deadline=3.1), 1.0)
    assert core.stages["stage"].counts().refused == 1


def test_a_queue_with_nothing_in_it_takes_what_looks_hopeless_and_measures_again():
    core, second = paced()
    core.finished(second, 2.0)
    (third,) = started(core.offer("k", task("a", deadline=2.5), 2.0))
    core.finished(third, 2.01)
    assert started(core.offer("k", task("b", deadline=2.7), 2.02))


def test_a_batch_is_closed_before_one_more_task_would_make_those_in_it_late():
    core = device(size=8)
    first = busy(core)
    core.finished(first, 1.0)
    (second,) = started(core.offer("k", Task("second", 8), 1.0))
    core.finished(second, 9.0)
    (third,) = started(core.offer("k", task("third"), 9.0))
    core.offer("k", task("a", deadline=12.5), 9.0)
    core.offer("k", task("b", 6), 9.0)
    assert run_all(core, [third], now=10.0) == ["third", "a", "b"]


def test_a_batch_is_due_in_time_for_a_task_in_a_hurry():
    core = device(timeout=60_000_000)
    assert core.offer("k", task("a", deadline=10.0), 0.0) == [WakeAt(5.0)]
    assert names(started(core.core.tick(5.0))) == ["a"]
