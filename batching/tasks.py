"""What batching is about, tasks and batches of them, and what a queue decides to do with them."""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Any, Generic, TypeAlias, TypeVar

from shardserve.batching.errors import ServingError

T = TypeVar("T")


class Priority(IntEnum):
    """Who goes first. Tasks of low priority may fill what is left free in others' batches."""

    HIGH = 0
    LOW = 1


@dataclass(slots=True, eq=False)
class Task(Generic[T]):
    """What a caller offers: `payload`, that takes the room of `size` >= 1, wanted by `deadline`.

    `context` is for whom the run is to be told about, and no concern of the batching.

    The queue's: `queued`, since when it has been waiting for a run, and `batch`, None once it has
    ended.
    """

    payload: T
    size: int
    deadline: float = math.inf
    context: Any = None
    queued: float = 0.0
    batch: Batch[T] | None = None


@dataclass(slots=True, eq=False)
class Batch(Generic[T]):
    """Tasks of one key. Once it has `started`, `tasks` stays as it is, even if some of them end.

    The queue's: `size` is the room taken, `live` counts the tasks that have not ended, `due` is
    when an open batch may start, a `closed` one takes no more tasks, `expires` is no later than
    its tasks' earliest deadline.
    """

    key: Hashable
    due: float
    tasks: list[Task[T]] = field(default_factory=list)
    size: int = 0
    live: int = 0
    expires: float = math.inf
    closed: bool = False
    started: float | None = None

    def add(self, task: Task[T], now: float) -> None:
        task.queued = now
        task.batch = self
        self.tasks.append(task)
        self.size += task.size
        self.live += 1
        if task.deadline < self.expires:
            self.expires = task.deadline

    def remove(self, task: Task[T]) -> None:
        task.batch = None
        self.live -= 1
        if self.started is None:
            self.size -= task.size
            self.tasks.remove(task)

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
    """Call `tick` at `time`. It is sooner than what was asked for before, and replaces it."""

    time: float


Action: TypeAlias = Run[T] | Stop[T] | Fail[T] | WakeAt
Actions: TypeAlias = Sequence[Action[T]]
