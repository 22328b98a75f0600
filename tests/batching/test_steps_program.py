"""Under any program of events every sequence ends once, after its own steps: a naive ledger."""

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
    StepActions,
)
from shardserve.batching.steps import StepScheduler
from shardserve.batching.tasks import WakeAt

ROWS, ENQUEUED, MAX_BYTES, ALLOWED = 4, 2, 60, (1, 2, 4)


class Payload:
    """What a sequence is like: it stops after `length` steps, and fails at step `bad_at`."""

    def __init__(self, length, bad_at):
        self.length = length
        self.bad_at = bad_at
        self.state = 0


class Program(RuleBasedStateMachine):
    """The clock counts whole seconds, a step takes none or some of them."""

    requests = Bundle("requests")

    def __init__(self) -> None:
        super().__init__()
        parameters = BatchingParameters(ROWS, 0, ENQUEUED, 1, ALLOWED)
        self.core: StepScheduler[Payload] = StepScheduler(parameters, MAX_BYTES)
        self.now = 0.0
        self.alarm = math.inf
        self.draining = False
        self.waiting: list[SequenceTask[Payload]] = []
        self.rows: list[SequenceTask[Payload]] = []
        self.living: set[SequenceTask[Payload]] = set()
        self.step: Step[Payload] | None = None
        self.interrupted = False
        self.failure: object = None

    # What happens.

    @rule(
        target=requests,
        lengths=st.lists(st.integers(1, 20), min_size=1, max_size=ROWS),
        known=st.booleans(),
        bad_at=st.sampled_from([None, None, None, 0, 2]),
        patience=st.sampled_from([1, 5, 40, math.inf]),
        nbytes=st.sampled_from([1, 10]),
    )
    def offer(self, lengths, known, bad_at, patience, nbytes):
        tasks = [
            SequenceTask(Payload(n, bad_at), n if known else 30, self.now + patience, nbytes, known)
            for n in lengths
        ]
        try:
            actions = self.core.offer(tasks, self.now)
        except Unavailable:
            too_many = len(self.waiting) + len(tasks) > ROWS * ENQUEUED
            held = sum(task.nbytes for task in self.living)
            assert self.draining or too_many or held + nbytes * len(tasks) > MAX_BYTES
            return multiple()
        except ResourceExhausted:
            assert known
            assert self.core.step_seconds > 0
            assert self.rows
            return multiple()
        assert not self.draining
        self.waiting += tasks
        self.living |= set(tasks)
        self.carry_out(actions)
        return tasks

    @rule(request=requests)
    def cancel(self, request):
        for task in request:
            self.living.discard(task)
            if task in self.waiting:
                self.waiting.remove(task)
            self.carry_out(self.core.cancel(task, self.now))

    @precondition(lambda self: self.step)
    @rule(most=st.integers(1, 16), crash=st.sampled_from([False] * 5 + [True]))
    def finish_step(self, most, crash):
        step, self.step = self.step, None
        assert step is not None
        culprits = [t for t in step.tasks if t.payload.bad_at == t.payload.state]
        if crash or culprits:
            error = Internal("crashed") if crash else InvalidArgument("bad")
            self.failure = (step, error)
            self.carry_out(self.core.failed(error, self.now))
            self.failure = None
            return
        taken = 0
        stopped: list[SequenceTask[Payload]] = []
        while taken < min(most, step.limit) and not stopped:
            if taken and any(t.payload.bad_at == t.payload.state for t in step.tasks):
                break
            taken += 1
            for task in step.tasks:
                task.payload.state += 1
            stopped = [t for t in step.tasks if t.payload.state == t.payload.length]
        self.carry_out(self.core.stepped(taken, stopped, self.now))

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
        while self.step:
            self.finish_step(16, crash=False)
        assert not self.living
        assert not self.rows
        assert not self.waiting
        assert self.core.is_idle

    # What it decides.

    def carry_out(self, actions: StepActions[Payload]) -> None:
        for action in actions:
            match action:
                case Join(task):
                    assert self.step is None
                    assert self.waiting.pop(0) is task, "first come, first served"
                    assert task in self.living
                    self.rows.append(task)
                case Leave(task):
                    assert self.step is None
                    assert task not in self.living
                    self.rows.remove(task)
                case Finish(task):
                    assert self.step is None
                    assert task.taken == task.payload.state == task.payload.length
                    self.rows.remove(task)
                    self.living.remove(task)
                case Failed(task, error):
                    self.check_failure(task, error)
                case Step():
                    self.start(action)
                case Interrupt():
                    assert self.step is not None
                    assert not self.interrupted
                    self.interrupted = True
                case WakeAt(time):
                    assert time < self.alarm or self.alarm <= self.now
                    self.alarm = time

    def start(self, step: Step[Payload]) -> None:
        assert self.step is None
        assert step.tasks
        assert len(set(step.tasks)) == len(step.tasks)
        assert step.is_all == (set(step.tasks) == set(self.rows))
        assert set(step.tasks) <= set(self.rows)
        assert all(task in self.living for task in step.tasks)
        assert step.rows == min(size for size in ALLOWED if size >= len(step.tasks))
        assert 1 <= step.limit <= min(t.steps - t.payload.state for t in step.tasks)
        assert all(task.taken == task.payload.state for task in step.tasks)
        self.step = step
        self.interrupted = False

    def check_failure(self, task, error) -> None:
        self.living.remove(task)
        if isinstance(error, ResourceExhausted):
            assert task.deadline <= self.now
            self.waiting.remove(task)
        elif isinstance(error, DeadlineExceeded):
            assert task.deadline <= self.now
            assert task in self.rows
        else:
            step, failure = self.failure
            assert error is failure
            assert task in step.tasks
            is_culprit = task.payload.bad_at == task.payload.state
            assert isinstance(error, Internal) or (is_culprit and len(step.tasks) == 1)

    # What always holds.

    @invariant()
    def rows_are_bounded(self):
        assert len(self.rows) <= ROWS
        assert self.core.running == len(self.rows)
        assert self.core.waiting == len(self.waiting)

    @invariant()
    def while_anybody_lives_a_step_is_under_way(self):
        assert bool(self.step) >= bool(self.living)
        assert self.core.is_idle == (self.step is None)

    @invariant()
    def whoever_could_join_or_leave_has_the_burst_cut_short(self):
        if self.step is not None and self.step.limit > 1 and not self.interrupted:
            assert all(task in self.living for task in self.rows)
            assert not self.waiting or len(self.rows) == ROWS

    @invariant()
    def nobody_waits_past_a_deadline(self):
        overslept = self.alarm <= self.now
        for task in itertools.chain(self.waiting, self.rows):
            if task in self.living:
                assert self.now < task.deadline or overslept
                assert task.deadline == math.inf or self.alarm <= task.deadline


Program.TestCase.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)
test_every_sequence_ends_exactly_once = Program.TestCase
