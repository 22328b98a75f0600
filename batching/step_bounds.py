"""Which sequences are refused when they are offered, and how they end that do not end well."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from shardserve.batching.errors import (
    DeadlineExceeded,
    FailedPrecondition,
    InvalidArgument,
    NotFound,
    OutOfRange,
    ResourceExhausted,
    ServingError,
    Unavailable,
)
from shardserve.batching.parameters import BatchingParameters
from shardserve.batching.step_tasks import SequenceTask
from shardserve.batching.tensors import NotBatchable

#: Bytes of waiting and running sequences, unless the owner says otherwise.
MAX_BYTES = 1 << 30

_CLIENT_FAULTS = (InvalidArgument, OutOfRange, FailedPrecondition, NotFound)


class Bounds:
    """How many sequences may wait, and how many bytes all may have; `nbytes` is what they have."""

    def __init__(self, parameters: BatchingParameters, max_bytes: int) -> None:
        self.nbytes = 0
        self._rows = parameters.max_batch_size
        self._max_batches = max(1, parameters.max_enqueued_batches)
        self._max_bytes = max_bytes

    def check(self, tasks: Sequence[SequenceTask[Any]], waiting: int) -> None:
        """Raise InvalidArgument for more than a batch, Unavailable for what passes a bound."""
        if len(tasks) > self._rows:
            raise InvalidArgument(
                f"Task size {len(tasks)} is larger than maximum input batch size {self._rows}"
            )
        if waiting + len(tasks) > self._rows * self._max_batches:
            raise Unavailable(
                "The batch scheduling queue to which this task was submitted is full; currently "
                f"{math.ceil(waiting / self._rows)} batches enqueued and max_enqueued_batches is "
                f"{self._max_batches}"
            )
        if self.nbytes + sum([task.nbytes for task in tasks]) > self._max_bytes:
            raise Unavailable(
                f"The sequences that wait and run have {self.nbytes} bytes; with this request "
                f"they would have more than {self._max_bytes}"
            )


def is_late(task: SequenceTask[Any], pace: float, now: float) -> bool:
    """Whether a sequence cannot but miss its deadline, if a step takes `pace` seconds."""
    least = task.steps * pace if task.length_known else 0.0
    return task.deadline <= now + least


def may_be_ones(error: ServingError) -> bool:
    """Whether an error may be the fault of one sequence of a batch."""
    return isinstance(error, _CLIENT_FAULTS) and not isinstance(error, NotBatchable)


def late_in_queue() -> ServingError:
    """What ends a sequence whose deadline passes before it has a row."""
    return ResourceExhausted("Run() timeout exceeded while waiting in batching queue")


def late_in_run() -> ServingError:
    """What ends a sequence whose deadline passes while it is stepped."""
    return DeadlineExceeded("Timed out waiting for notification")
