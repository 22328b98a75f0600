"""What batching is about, tasks and batches, and what a scheduler decides to do with them."""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field
from enum import IntEnum
from typing import TYPE_CHECKING, Any, Generic, TypeAlias, TypeVar

from shardserve.batching.errors import ServingError

if TYPE_CHECKING:
    from shardserve.batching.stage_queue import StageQueue

T = TypeVar("T")


class Priority(IntEnum):
    """Who goes first. Tasks of low priority may fill what is left free in others' batches."""

    HIGH = 0
    LOW = 1


@dataclass(slots=True, eq=False)
class Task(Generic[T]):
    """What a caller offers: `payload`, that takes the room of `size` >= 1, wanted by `deadline`.

    `nbytes` is what it holds in memory while it waits. `context` is for whom the run is to be told
    about, and no concern of the batching.

    The scheduler's: `queued`, since when it has been waiting for a run, and `batch`, None once it
    has left it. A task too large for one batch has a `cut` instead, whose pieces stand for it:
    tasks with its payload, for `size` of its places from `start` on.
    """

    payload: T
    size: int
    deadline: float = math.inf
    nbytes: int = 0
    context: Any = None
    queued: float = 0.0
    batch: Batch[T] | None = None
    cut: Cut[T] | None = None
    start: int = 0


@dataclass(slots=True, eq=False)
class Cut(Generic[T]):
    """A task, the pieces that stand for it, in order, and the results so far, by their starts."""

    task: Task[T]
    pieces: list[Task[T]] = field(default_factory=list)
    results: dict[int, Any] = field(default_factory=dict)

    @property
    def has_ended(self) -> bool:
        return self.task.cut is not self

    def end(self) -> None:
        """The task has ended: it and the pieces are let go of, or they would be in cycles.

        It was in no batch itself, so nothing is left for a cancellation that comes now to do.
        """
        self.task.batch = None
        self.task.cut = None
        self.pieces.clear()


def cut(task: Task[T], sizes: Sequence[int]) -> list[Task[T]]:
    """Pieces of these sizes, which are the task's in all, to stand for it."""
    task.cut = Cut(task)
    start = 0
    for size in sizes:
        nbytes = task.nbytes * size // task.size
        piece = Task(task.payload, size, task.deadline, nbytes, task.context, start=start)
        piece.cut = task.cut
        task.cut.pieces.append(piece)
        start += size
    return task.cut.pieces


@dataclass(slots=True, eq=False)
class Batch(Generic[T]):
    """Tasks of one queue. Once it has `started`, `tasks` stays as it is, even if some of them end.

    The scheduler's: `size` and `nbytes` are the tasks' sums, `due` is when an open batch may start,
    and `timer` when it has asked for that to be noticed; a `closed` one takes no more tasks;
    `expires` is no later than its tasks' earliest deadline. It is expected to start at
    `expected_start` and to have ended by `expected_end`, however full it gets, unless a task of it
    is in a hurry. One that `is_rerun` is part of one that failed, and stays as it is. `gone` counts
    the tasks that ended while it ran.
    """

    queue: StageQueue[T]
    due: float
    tasks: list[Task[T]] = field(default_factory=list)
    size: int = 0
    nbytes: int = 0
    expires: float = math.inf
    expected_start: float = -math.inf
    expected_end: float = -math.inf
    closed: bool = False
    is_rerun: bool = False
    has_pieces: bool = False
    started: float | None = None
    ended: bool = False
    gone: int = 0
    timer: float = math.inf

    @property
    def padded_size(self) -> int:
        """The rows with which it runs: its own, and those that pad it to an allowed size."""
        return self.queue.padded(self.size)

    @property
    def key(self) -> Hashable:
        """What its tasks have in common."""
        return self.queue.key

    def add(self, task: Task[T], now: float) -> None:
        task.queued = now
        task.batch = self
        self.tasks.append(task)
        self.size += task.size
        self.nbytes += task.nbytes
        if task.deadline < self.expires:
            self.expires = task.deadline
        if task.cut is not None:
            self.has_pieces = True

    def remove(self, task: Task[T]) -> None:
        task.batch = None
        if self.started is not None:
            self.gone += 1
            return
        self.tasks.remove(task)
        self.size -= task.size
        self.nbytes -= task.nbytes

    def over(self, size: int) -> list[Task[T]]:
        """Its tasks from place `size` on, none if one lies across."""
        room = size
        for place, task in enumerate(self.tasks):
            if room == 0:
                return self.tasks[place:]
            room -= task.size
            if room < 0:
                break
        return []

    def is_due(self, now: float) -> bool:
        return self.closed or self.due <= now

    def living(self) -> list[Task[T]]:
        """Those of its tasks that have not ended."""
        return [task for task in self.tasks if task.batch is self]


@dataclass(frozen=True, slots=True)
class Run(Generic[T]):
    """Run the batch, and say when it has `finished`."""

    batch: Batch[T]


@dataclass(frozen=True, slots=True)
class Stop(Generic[T]):
    """Nobody waits for this running batch any more. It keeps its slot until it has `finished`."""

    batch: Batch[T]


@dataclass(frozen=True, slots=True)
class Fail(Generic[T]):
    """The task has ended, with this error."""

    task: Task[T]
    error: ServingError


@dataclass(frozen=True, slots=True)
class WakeAt:
    """Call `tick` at `time`, which may be now: then after what else happens now.

    It is sooner than what was asked for before, and replaces it.
    """

    time: float


Action: TypeAlias = Run[T] | Stop[T] | Fail[T] | WakeAt
Actions: TypeAlias = Sequence[Action[T]]
