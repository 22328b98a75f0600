"""Under any program of events every task ends exactly once, checked against a naive ledger."""

from __future__ import annotations

import itertools
import math
from collections import Counter

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
from shardserve.batching.pace import InFlight
from shardserve.batching.parameters import (
    BatchingParameters,
    BatchPaddingPolicy,
    MixedPriorityPolicy,
)
from shardserve.batching.scheduler import BatchScheduler
from shardserve.batching.tasks import Actions, Batch, Fail, Priority, Run, Stop, Task, WakeAt
from shardserve.batching.waiting import DeviceLimits

SLOTS, BYTES = 2, 60
TIMEOUT = 2

#: Stages of one device, as different as they can be.
PARAMETERS = {
    "plain": BatchingParameters(4, TIMEOUT * 10**6, 3, low_priority_max_batch_size=3),
    "at once": BatchingParameters(
        4,
        0,
        2,
        allowed_batch_sizes=(2, 4),
        batch_padding_policy=BatchPaddingPolicy.BATCH_DOWN,
        mixed_priority_policy=MixedPriorityPolicy.PAD_TO_NEXT_ALLOWED,
    ),
    "cuts": BatchingParameters(
        7,
        TIMEOUT * 10**6,
        4,
        enable_large_batch_splitting=True,
        max_execution_batch_size=3,
        mixed_priority_policy=MixedPriorityPolicy.ISOLATE,
        low_priority_batch_timeout_micros=10**6,
    ),
    "cuts and fills": BatchingParameters(
        7,
        TIMEOUT * 10**6,
        4,
        enable_large_batch_splitting=True,
        max_execution_batch_size=5,
        low_priority_max_batch_size=2,
    ),
}


class Program(RuleBasedStateMachine):
    """A task's payload says its stage and whether it makes a batch fail. The clock counts seconds.

    The ledger knows for each task where its parts are: how much of it waits, and in what batches it
    runs or has run.
    """

    tasks = Bundle("tasks")

    def __init__(self) -> None:
        super().__init__()
        self.core: BatchScheduler[tuple[str, bool]] = BatchScheduler(
            InFlight(SLOTS, SLOTS), DeviceLimits(BYTES)
        )
        self.stages = {name: self.core.add_stage(name, p) for name, p in PARAMETERS.items()}
        self.now = 0.0
        self.alarm = math.inf
        self.closed: set[str] = set()
        #: Tasks that have not ended, in the order of their offers, and the rows of each to run.
        self.left: dict[Task[tuple[str, bool]], int] = {}
        self.running: list[Batch[tuple[str, bool]]] = []
        self.stopped: set[Batch[tuple[str, bool]]] = set()
        self.ended: Counter[Task[tuple[str, bool]]] = Counter()
        self.offered: list[Task[tuple[str, bool]]] = []
        #: Those that were in a batch that failed, and run again.
        self.again: set[Task[tuple[str, bool]]] = set()

    # What happens.

    @rule(
        target=tasks,
        stage=st.sampled_from(sorted(PARAMETERS)),
        key=st.sampled_from("ab"),
        size=st.integers(1, 7),
        bad=st.sampled_from([False, False, True]),
        patience=st.sampled_from([1, 5, math.inf]),
        nbytes=st.sampled_from([1, 10]),
        priority=st.sampled_from([Priority.HIGH, Priority.HIGH, Priority.LOW]),
    )
    def offer(self, stage, key, size, bad, patience, nbytes, priority):
        task = Task((stage, bad), size, self.now + patience, nbytes, (key, priority))
        queue = self.stages[stage].queue(key, priority)
        before = (len(queue.batches), self.core.enqueued_bytes)
        try:
            actions = self.core.offer(queue, task, self.now)
        except (Unavailable, InvalidArgument) as error:
            self.check_refusal(task, error)
            assert (len(queue.batches), self.core.enqueued_bytes) == before, "nothing was kept"
            return multiple()
        assert stage not in self.closed
        assert size <= queue.largest <= PARAMETERS[stage].max_batch_size
        self.left[task] = size
        self.offered.append(task)
        self.carry_out(actions)
        return task

    @rule(task=tasks)
    def cancel(self, task):
        ended = task not in self.left
        if not ended:
            self.end(task)
        actions = self.core.cancel(task)
        assert not (ended and actions)
        self.carry_out(actions)

    @precondition(lambda self: self.running)
    @rule(which=st.integers(0, SLOTS - 1), crash=st.sampled_from([False] * 4 + [True]))
    def finish(self, which, crash):
        batch = self.running.pop(which % len(self.running))
        living = batch.living()
        error = _outcome(batch, crash)
        if error is None:
            for whole in dict.fromkeys(map(_whole, living)):
                self.ran(whole)
        elif isinstance(error, InvalidArgument) and len(batch.tasks) > 1:
            for task in living:
                self.left[_whole(task)] += task.size
                self.again.add(_whole(task))
        self.carry_out(self.core.finished(batch, self.now, error))
        if crash:
            assert not any(_whole(task) in self.left for task in living)

    @rule(seconds=st.integers(1, 3))
    def pass_time(self, seconds):
        self.now += seconds

    @rule()
    def ring(self):
        """Possibly early, possibly after other events."""
        self.alarm = math.inf
        self.carry_out(self.core.tick(self.now))

    @rule(stage=st.sampled_from(sorted(PARAMETERS)), really=st.sampled_from([False] * 9 + [True]))
    def drain_a_stage(self, stage, really):
        if really:
            self.closed.add(stage)
            self.carry_out(self.core.drain(self.now, self.stages[stage]))

    def teardown(self):
        self.closed = set(PARAMETERS)
        self.carry_out(self.core.drain(self.now))
        while self.running:
            self.finish(0, crash=False)
        assert not self.left
        assert self.core.is_idle
        assert self.core.enqueued_bytes == 0
        assert all(self.ended[task] == 1 for task in self.offered)

    # What it decides.

    def carry_out(self, actions: Actions[tuple[str, bool]]) -> None:
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

    def start(self, batch: Batch[tuple[str, bool]]) -> None:
        parameters = batch.queue.stage.parameters
        assert batch.tasks
        assert batch.started == self.now
        assert sum(task.size for task in batch.tasks) == batch.size <= parameters.execution_size
        assert all(task.queued <= self.now < task.deadline for task in batch.tasks)
        for task in batch.tasks:
            whole = _whole(task)
            assert whole.payload[0] == batch.queue.stage.name
            assert whole.context[0] == batch.key
            self.check_turn(whole)
            self.left[whole] -= task.size
            assert self.left[whole] >= 0
        self.running.append(batch)
        assert len(self.running) <= SLOTS
        high = [task for task in batch.tasks if task.context[1] is Priority.HIGH]
        low = [task for task in batch.tasks if task.context[1] is Priority.LOW]
        assert batch.tasks == [*high, *low]
        if batch.queue.priority is Priority.LOW:
            sibling = batch.queue.stage.sibling(batch.queue)
            assert sibling is None or not sibling.is_due(self.now)
        if high and low:
            assert parameters.mixed_priority_policy is not MixedPriorityPolicy.ISOLATE

    def check_turn(self, task: Task[tuple[str, bool]]) -> None:
        """First come, first served, but for parts of what has failed and runs again."""
        for other, waiting in self.left.items():
            if other is task or task in self.again:
                return
            if (other.payload[0], other.context) == (task.payload[0], task.context):
                assert not waiting or other in self.again

    def check_refusal(self, task: Task[tuple[str, bool]], error: ServingError) -> None:
        stage = task.payload[0]
        if isinstance(error, InvalidArgument):
            assert task.size > self.stages[stage].queue(*task.context).largest
            return
        same = [
            other
            for other, waiting in self.left.items()
            if waiting and (other.payload[0], other.context) == (stage, task.context)
        ]
        assert (
            stage in self.closed
            or "bytes enqueued" in error.message
            or ("expected to answer" in error.message and task.deadline < math.inf)
            or ("is full" in error.message and same)
        )

    def check_failure(self, task: Task[tuple[str, bool]], error: ServingError) -> None:
        if isinstance(error, ResourceExhausted | DeadlineExceeded):
            assert task.deadline <= self.now
        else:
            assert task.payload[1] or isinstance(error, Internal)
        self.end(task)

    def ran(self, whole: Task[tuple[str, bool]]) -> None:
        running = itertools.chain(*[batch.living() for batch in self.running])
        if self.left[whole] == 0 and all(_whole(other) is not whole for other in running):
            self.end(whole)

    def end(self, task: Task[tuple[str, bool]]) -> None:
        del self.left[task]
        self.ended[task] += 1
        assert self.ended[task] == 1

    # What always holds.

    @property
    def overslept(self) -> bool:
        return self.alarm <= self.now

    @invariant()
    def nothing_due_waits_beside_a_free_slot(self):
        if len(self.running) < SLOTS and not self.overslept:
            for task, waiting in self.left.items():
                if waiting:
                    assert task.payload[0] not in self.closed
                    assert self.now < task.queued + TIMEOUT or task.cut is not None
                    assert self.alarm < math.inf

    @invariant()
    def nobody_waits_past_a_deadline(self):
        for task in self.left:
            assert self.now < task.deadline or self.overslept
            assert task.deadline == math.inf or self.alarm <= task.deadline

    @invariant()
    def exactly_the_runs_that_nobody_waits_for_are_stopped(self):
        left = {batch for batch in self.running if not batch.living()}
        assert left == self.stopped & set(self.running)

    @invariant()
    def bytes_are_bounded_and_counted(self):
        assert self.core.enqueued_bytes <= BYTES
        waiting = [task for task, rows in self.left.items() if rows]
        assert bool(waiting) == bool(self.core.enqueued_bytes) or any(t.cut for t in waiting)

    @invariant()
    def it_is_idle_when_all_tasks_have_ended(self):
        assert self.core.is_idle == (not self.left and not self.running)


def _whole(task: Task[tuple[str, bool]]) -> Task[tuple[str, bool]]:
    return task if task.cut is None else task.cut.task


def _outcome(batch: Batch[tuple[str, bool]], crash: bool) -> ServingError | None:
    if crash:
        return Internal("crashed")
    bad = any(task.payload[1] for task in batch.tasks)
    return InvalidArgument("bad") if bad else None


Program.TestCase.settings = settings(max_examples=200, stateful_step_count=40, deadline=None)
test_every_task_ends_exactly_once = Program.TestCase
