"""Sequences that are stepped together, and what a scheduler decides to do with them."""

from __future__ import annotations

import enum
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Generic, TypeAlias, TypeVar

from shardserve.batching.errors import ServingError
from shardserve.batching.tasks import WakeAt

T = TypeVar("T")


class Place(enum.Enum):
    """Where a sequence is."""

    WAITING = enum.auto()
    RUNNING = enum.auto()
    ENDED = enum.auto()


@dataclass(slots=True, eq=False)
class SequenceTask(Generic[T]):
    """One sequence: what `payload` says, for at most `steps` >= 1 steps, wanted by `deadline`.

    `length_known` where it takes exactly so many. `nbytes` count towards the scheduler's bound
    until it has ended. The scheduler's: `taken` steps so far, `place`, `in_batch` while its state
    has a row of the running batch.
    """

    payload: T
    steps: int
    deadline: float = math.inf
    nbytes: int = 0
    length_known: bool = True
    taken: int = 0
    place: Place = Place.ENDED
    in_batch: bool = False


@dataclass(frozen=True, slots=True)
class Join(Generic[T]):
    """Give the sequence a row of the running batch. No step is under way."""

    task: SequenceTask[T]


@dataclass(frozen=True, slots=True)
class Leave(Generic[T]):
    """Free the row of a sequence that has failed. No step is under way."""

    task: SequenceTask[T]


@dataclass(frozen=True, slots=True)
class Finish(Generic[T]):
    """The sequence has ended well: free its row, and answer. No step is under way."""

    task: SequenceTask[T]


@dataclass(frozen=True, slots=True)
class Failed(Generic[T]):
    """The sequence has ended with this error. A row that it has is freed by a `Leave`, later."""

    task: SequenceTask[T]
    error: ServingError


@dataclass(frozen=True, slots=True)
class Step(Generic[T]):
    """Step these sequences together, 1 to `limit` times, then say `stepped` or `failed`.

    `is_all` where they are the whole running batch. It is time to come back, after any step, when
    one of them has stopped, or after an `Interrupt`. `rows` is their number, padded up to an
    allowed batch size.
    """

    tasks: tuple[SequenceTask[T], ...]
    limit: int
    rows: int
    is_all: bool


@dataclass(frozen=True, slots=True)
class Interrupt:
    """Somebody may join, or leaves: the step under way is the last one of its burst."""


StepAction: TypeAlias = Join[T] | Leave[T] | Finish[T] | Failed[T] | Step[T] | Interrupt | WakeAt
StepActions: TypeAlias = Sequence[StepAction[T]]
