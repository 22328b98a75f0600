"""How requests are batched, and TensorFlow Serving's file that says so."""

from __future__ import annotations

import bisect
import itertools
import os
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

from shardserve.batching.errors import InvalidArgument
from shardserve.batching.text_messages import message_classes, parse_message, read_text


class MixedPriorityPolicy(StrEnum):
    """Whether tasks of low priority fill what a batch of high priority leaves free.

    Up to `max_batch_size`, up to the next of `allowed_batch_sizes`, or not at all.
    """

    PAD_TO_MAX = "low_priority_padding_with_max_batch_size"
    PAD_TO_NEXT_ALLOWED = "low_priority_padding_with_next_allowed_batch_size"
    ISOLATE = "priority_isolation"


class BatchPaddingPolicy(StrEnum):
    """What is done with a batch that is due between two of `allowed_batch_sizes`.

    It is padded up to the next one, or it runs cut down to the one before, and the rest waits on.
    """

    PAD_UP = "PAD_UP"
    BATCH_DOWN = "BATCH_DOWN"


@dataclass(frozen=True)
class Auto:
    """A timeout and a size that are found, so that 99 of 100 tasks take at most the target."""

    p99_target_micros: int

    def __post_init__(self) -> None:
        _at_least(1, "p99_target_micros", self.p99_target_micros)


@dataclass(frozen=True)
class BatchingParameters:
    """TensorFlow Serving's BatchingParameters and BatchFunction's attributes, and some of ours.

    `max_batch_size` bounds the rows of a task. A batch has at most as many, or, where
    `enable_large_batch_splitting` cuts larger tasks up, at most `max_execution_batch_size`
    (0 counts as `max_batch_size`). A batch that is not full waits until it is
    `batch_timeout_micros` old; `Auto` finds the timeout and the size that hold a target. Besides
    the batches that run, `max_enqueued_batches` may wait (0 counts as 1). `num_batch_threads`
    batches run at once on a device made for these parameters; None leaves it to who makes one.

    A batch is padded up to the next of `allowed_batch_sizes`, if there are any, or cut down, as
    `batch_padding_policy` says. `pad_variable_length_inputs` lets tasks share a batch whose
    tensors differ beyond dimension 0: they are padded to the longest. `thread_pool_name` names the
    tasks that run the batches.

    Tasks of low priority wait in batches of their own, bounded by the `low_priority_` fields (0 and
    () count as the field without the prefix), and run when no batch of high priority is due, or as
    `mixed_priority_policy` says in what batches of high priority leave free.

    Raises InvalidArgument for what makes no sense.
    """

    max_batch_size: int = 1000
    batch_timeout_micros: int | Auto = 0
    max_enqueued_batches: int = 10
    num_batch_threads: int | None = None
    allowed_batch_sizes: tuple[int, ...] = ()
    pad_variable_length_inputs: bool = False
    thread_pool_name: str = "batch_threads"
    enable_large_batch_splitting: bool = False
    max_execution_batch_size: int = 0
    batch_padding_policy: BatchPaddingPolicy = BatchPaddingPolicy.PAD_UP
    low_priority_max_batch_size: int = 0
    low_priority_batch_timeout_micros: int = 0
    low_priority_max_enqueued_batches: int = 0
    low_priority_allowed_batch_sizes: tuple[int, ...] = ()
    mixed_priority_policy: MixedPriorityPolicy = MixedPriorityPolicy.PAD_TO_MAX

    def __post_init__(self) -> None:
        _at_least(1, "max_batch_size", self.max_batch_size)
        if not isinstance(self.batch_timeout_micros, Auto):
            _at_least(0, "batch_timeout_micros", self.batch_timeout_micros)
        if self.num_batch_threads is not None:
            _at_least(1, "num_batch_threads", self.num_batch_threads)
        for name in _NOT_NEGATIVE:
            _at_least(0, name, getattr(self, name))
        self._check_execution_size()
        if self.allowed_batch_sizes:
            _check_allowed("", self.allowed_batch_sizes, self._largest())
        if self.low_priority_allowed_batch_sizes:
            largest = {self.low_priority_max_batch_size or self.execution_size}
            _check_allowed("low_priority_", self.low_priority_allowed_batch_sizes, largest)

    @property
    def slots(self) -> int:
        """Batches that run at once: as many as there are cores, if nothing is said."""
        return self.num_batch_threads or len(os.sched_getaffinity(0))

    @property
    def execution_size(self) -> int:
        """The most rows that a batch runs with."""
        if not self.enable_large_batch_splitting:
            return self.max_batch_size
        return self.max_execution_batch_size or self.max_batch_size

    def padded(self, rows: int) -> int:
        """The rows with which a batch of `rows` runs. No rows stay none: there is none to repeat.

        `rows` is at most `execution_size`.
        """
        if not self.allowed_batch_sizes or rows == 0:
            return rows
        return self.allowed_batch_sizes[bisect.bisect_left(self.allowed_batch_sizes, rows)]

    def _check_execution_size(self) -> None:
        if self.max_execution_batch_size > self.max_batch_size:
            raise InvalidArgument(
                f"max_execution_batch_size must be at most max_batch_size, {self.max_batch_size}; "
                f"was {self.max_execution_batch_size}"
            )

    def _largest(self) -> set[int]:
        return {self.max_batch_size, self.execution_size}


def read_batching_parameters(path: Path) -> BatchingParameters:
    """The file of --batching_parameters_file.

    Raises NotFound where it cannot be read, and as `parse_batching_parameters` does.
    """
    return parse_batching_parameters(read_text(path), str(path))


def parse_batching_parameters(text: str, source: str) -> BatchingParameters:
    """A text-format `tensorflow.serving.BatchingParameters`; `source` is named in errors.

    Raises InvalidArgument, with line and column for what does not parse, and for values that make
    no sense.
    """
    return parameters_of(parse_message(text, _MESSAGE, source), source)


def parameters_of(message: Any, source: str) -> BatchingParameters:
    """What a `BatchingParameters` message says; raises InvalidArgument as the class does."""
    values = {descriptor.name: _plain(value) for descriptor, value in message.ListFields()}
    try:
        return BatchingParameters(**values)
    except InvalidArgument as error:
        raise InvalidArgument(f"{source}: {error.message}") from None


def _at_least(least: int, name: str, value: int) -> None:
    if value < least:
        kind = "positive" if least else "non-negative"
        raise InvalidArgument(f"{name} must be {kind}; was {value}")


def _check_allowed(prefix: str, sizes: tuple[int, ...], largest: set[int]) -> None:
    name = f"{prefix}allowed_batch_sizes"
    _at_least(1, f"{name}' first entry", sizes[0])
    if any(a >= b for a, b in itertools.pairwise(sizes)):
        raise InvalidArgument(f"{name} entries must be monotonically increasing")
    if sizes[-1] not in largest:
        raise InvalidArgument(
            f"Last entry in {name} must match {prefix}max_batch_size; last entry was {sizes[-1]}; "
            f"expected {' or '.join(map(str, sorted(largest)))}"
        )


def _plain(value: Any) -> Any:
    """A field's value without its wrapper message."""
    if isinstance(value, bool):
        return value
    return value.value if hasattr(value, "value") else tuple(value)


_NOT_NEGATIVE = (
    "max_enqueued_batches",
    "max_execution_batch_size",
    "low_priority_max_batch_size",
    "low_priority_batch_timeout_micros",
    "low_priority_max_enqueued_batches",
)

#: The message's, for files that hold it.
FIELDS = {
    "max_batch_size": "Int64Value",
    "batch_timeout_micros": "Int64Value",
    "max_enqueued_batches": "Int64Value",
    "num_batch_threads": "Int64Value",
    "thread_pool_name": "StringValue",
    "allowed_batch_sizes": "repeated int64",
    "pad_variable_length_inputs": "bool",
    "enable_large_batch_splitting": "BoolValue",
    "max_execution_batch_size": "Int64Value",
}

_MESSAGE = message_classes("tensorflow.serving", {"BatchingParameters": FIELDS})[
    "BatchingParameters"
]
