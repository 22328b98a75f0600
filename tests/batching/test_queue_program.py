"""Under any program of events every task ends exactly once, checked against a naive ledger."""

from __future__ import annotations

import itertools
import math

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    invariant,
    multiple,
    precondition,
    rule,
)

from shardserve.batching.errors import (
    DeadlineExceeded,
    Internal,
    InvalidArgument,
    ResourceExhausted,
    ServingError,
    Unavailable,
)
from shardserve.batching.parameters import BatchingParameters
from shardserve.batching.queue import BatchQueues
from shardserve.batching.tasks import Actions, Batch, Fail, Run, Stop, Task, WakeAt

SIZE, TIMEOUT, ENQUEUED, SLOTS = 4, 2, 3, 2


class Program(RuleBasedStateMachine):
    """A task's payload is whether it makes its batch fail. The clock counts whole seconds."""

    tasks = Bundle("tasks")

    def __init__(self) -> None:
        super().__init__()
        self.core: BatchQueues[bool] = BatchQueues(
            BatchingParameters(SIZE, TIMEOUT * 10**6, ENQUEUED, SLOTS)
        )
        self.now = 0.0
        self.alarm = math.inf
        self.draining = False
        self.waiting: dict[str, list[Task[bool]]] = {"a": [], "b": []}
        self.running: dict[Batch[bool], list[Task[bool]]] = {}
        self.finishing: list[Task[bool]] = []
        self.stopped: set[Batch[bool]] = set()

    # What happens.

    @rule(
        target=tasks,
        key=st.sampled_from("ab"),
        size=st.integers(1, SIZE),
        bad=st.booleans(),
        patience=st.sampled_from([1, 5, math.inf]),
    )
    def offer(self, key, size, bad, patience):
        task = Task(bad, size, self.now + patience)
        try:
            actions = self.core.offer(key, task, self.now)
        except Unavailable:
            waiting = self.waiting[key]
            assert self.draining or len(waiting) >= ENQUEUED
            assert self.draining or size + sum(t.size for t in waiting[-SIZE:]) > SIZE
            return multiple()
        assert not self.draining
        self.waiting[key].append(task)
        self.carry_out(actions)
        return task

    @rule(task=tasks)
    def cancel(self, task):
        self.forget(task)
        self.carry_out(self.core.cancel(task))

    @precondition(lambda self: self.running)
    @rule(which=st.integers(0, SLOTS - 1), crash=st.sampled_from([False, False, False, True]))
    def finish(self, which, crash):
        batch = list(self.running)[which % len(self.running)]
        living = self.running.pop(batch)
        error = _outcome(batch, crash)
        if error is None:
            assert not any(task.payload for task in living)
        elif isinstance(error, InvalidArgument) and len(batch.tasks) > 1:
            self.waiting[batch.key][:0] = living
        else:
            self.finishing = living
        self.carry_out(self.core.finished(batch, self.now, error))
        assert not self.finishing

    @rule(seconds=st.integers(1, 3))
    def pass_time(self, seconds):
        self.now += seconds

    @rule()
    def ring(self):
        """Possibly early, possibly after other events."""
        self.alarm = math.inf
        self.carry_out(self.core.tick(self.now))

    @precondition(lambda self: not self.draining)
    @rule(really=st.sampled_from([False] * 9 + [True]))
    def drain(self, really):
        if really:
            self.draining = True
            self.carry_out(self.core.drain(self.now))

    def teardown(self):
        self.draining = True
        self.carry_out(self.core.drain(self.now))
        while self.running:
            self.finish(0, crash=False)
        assert not any(self.waiting.values())
        assert self.core.is_idle

    # What it decides.

    def carry_out(self, actions: Actions[bool]) -> None:
        for action in actions:
            match action:
                case Run(batch):
                    self.start(batch)
                case Fail(task, error):
                    self.check_failure(task, error)
                case Stop(batch):
                    assert batch in self.running
                    assert batch not in self.stopped
                    self.stopped.add(batch)
                case WakeAt(time):
                    assert time < self.alarm or self.alarm <= self.now
                    self.alarm = time

    def start(self, batch: Batch[bool]) -> None:
        waiting = self.waiting[str(batch.key)]
        assert batch.tasks
        assert batch.tasks == waiting[: len(batch.tasks)], "first come, first served"
        del waiting[: len(batch.tasks)]
        self.running[batch] = list(batch.tasks)
        assert batch.started == self.now
        assert sum(task.size for task in batch.tasks) <= SIZE
        assert all(task.queued <= self.now < task.deadline for task in batch.tasks)
        assert len(self.running) <= SLOTS

    def check_failure(self, task: Task[bool], error: ServingError) -> None:
        if isinstance(error, ResourceExhausted):
            assert task.deadline <= self.now
            assert self.forget(task) == "waiting"
        elif isinstance(error, DeadlineExceeded):
            assert task.deadline <= self.now
            assert self.forget(task) == "running"
        else:
            assert task.payload or isinstance(error, Internal)
            self.finishing.remove(task)

    def forget(self, task: Task[bool]) -> str:
        for waiting in self.waiting.values():
            if task in waiting:
                waiting.remove(task)
                return "waiting"
        for living in self.running.values():
            if task in living:
                living.remove(task)
                return "running"
        return "ended"

    # What always holds.

    @property
    def overslept(self) -> bool:
        return self.alarm <= self.now

    @invariant()
    def nothing_due_waits_beside_a_free_slot(self):
        if len(self.running) < SLOTS and not self.overslept:
            for waiting in self.waiting.values():
                assert sum(task.size for task in waiting) < SIZE
                assert not waiting or not self.draining
                for task in waiting:
                    assert self.now < task.queued + TIMEOUT
                    assert self.alarm <= task.queued + TIMEOUT

    @invariant()
    def nobody_waits_past_a_deadline(self):
        for task in itertools.chain(*self.waiting.values(), *self.running.values()):
            assert self.now < task.deadline or self.overslept
            assert task.deadline == math.inf or self.alarm <= task.deadline

    @invariant()
    def exactly_the_runs_that_nobody_waits_for_are_stopped(self):
        left = {batch for batch, living in self.running.items() if not living}
        assert left == self.stopped & self.running.keys()

    @invariant()
    def it_is_idle_when_all_tasks_have_ended(self):
        assert self.core.is_idle == (not any(self.waiting.values()) and not self.running)


def _outcome(batch: Batch[bool], crash: bool) -> ServingError | None:
    if crash:
        return Internal("crashed")
    return InvalidArgument("bad") if any(task.payload for task in batch.tasks) else None


Program.TestCase.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)
test_every_task_ends_exactly_once = Program.TestCase
