"""How requests are batched, and TensorFlow Serving's file that says so."""

from __future__ import annotations

import bisect
import itertools
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from google.protobuf import (
    descriptor_pb2,
    descriptor_pool,
    message_factory,
    text_format,
    wrappers_pb2,
)

from shardserve.batching.errors import InvalidArgument, NotFound, Unimplemented


def _cpus() -> int:
    return len(os.sched_getaffinity(0))


@dataclass(frozen=True)
class BatchingParameters:
    """TensorFlow Serving's BatchingParameters, with its names and defaults.

    `max_batch_size` bounds the rows of a batch, hence of a request. A batch that is not full waits
    until it is `batch_timeout_micros` old. Besides those that run, `max_enqueued_batches` may wait
    (0 counts as 1). `num_batch_threads` batches run at once. A batch is padded up to the next of
    `allowed_batch_sizes`, if there are any. `pad_variable_length_inputs` lets requests share a
    batch whose tensors differ beyond dimension 0: they are padded to the longest.
    `thread_pool_name` names the tasks that run the batches.

    Raises InvalidArgument for what makes no sense.
    """

    max_batch_size: int = 1000
    batch_timeout_micros: int = 0
    max_enqueued_batches: int = 10
    num_batch_threads: int = field(default_factory=_cpus)
    allowed_batch_sizes: tuple[int, ...] = ()
    pad_variable_length_inputs: bool = False
    thread_pool_name: str = "batch_threads"

    def __post_init__(self) -> None:
        _at_least(1, "max_batch_size", self.max_batch_size)
        _at_least(0, "batch_timeout_micros", self.batch_timeout_micros)
        _at_least(0, "max_enqueued_batches", self.max_enqueued_batches)
        _at_least(1, "num_batch_threads", self.num_batch_threads)
        if self.allowed_batch_sizes:
            _check_allowed(self.allowed_batch_sizes, self.max_batch_size)

    def padded(self, rows: int) -> int:
        """The rows with which a batch of `rows` runs. No rows stay none: there is none to repeat.

        `rows` is at most `max_batch_size`.
        """
        if not self.allowed_batch_sizes or rows == 0:
            return rows
        return self.allowed_batch_sizes[bisect.bisect_left(self.allowed_batch_sizes, rows)]


def read_batching_parameters(path: Path) -> BatchingParameters:
    """The file of --batching_parameters_file.

    Raises NotFound where it cannot be read, and as `parse_batching_parameters` does.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise NotFound(f"{path}: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise InvalidArgument(f"{path}: {error}") from None
    return parse_batching_parameters(text, str(path))


def parse_batching_parameters(text: str, source: str) -> BatchingParameters:
    """A text-format `tensorflow.serving.BatchingParameters`; `source` is named in errors.

    Raises InvalidArgument with line and column for what does not parse, InvalidArgument for values
    that make no sense, Unimplemented for a field that has no effect here.
    """
    message = _MESSAGE()
    try:
        text_format.Parse(text, message)
    except text_format.ParseError as error:
        name = message.DESCRIPTOR.full_name
        raise InvalidArgument(f"{source}: Error parsing text-format {name}: {error}") from None
    values = {descriptor.name: _plain(value) for descriptor, value in message.ListFields()}
    # Said to be off, it is what we do anyway.
    if not values.get("enable_large_batch_splitting", True):
        del values["enable_large_batch_splitting"]
    for name in _NOT_DONE & values.keys():
        raise Unimplemented(f"{source}: {name} is not supported")
    try:
        return BatchingParameters(**values)
    except InvalidArgument as error:
        raise InvalidArgument(f"{source}: {error.message}") from None


def _at_least(least: int, name: str, value: int) -> None:
    if value < least:
        kind = "positive" if least else "non-negative"
        raise InvalidArgument(f"{name} must be {kind}; was {value}")


def _check_allowed(sizes: tuple[int, ...], largest: int) -> None:
    _at_least(1, "allowed_batch_sizes' first entry", sizes[0])
    if any(a >= b for a, b in itertools.pairwise(sizes)):
        raise InvalidArgument("allowed_batch_sizes entries must be monotonically increasing")
    if sizes[-1] != largest:
        raise InvalidArgument(
            "Last entry in allowed_batch_sizes must match max_batch_size; last entry was "
            f"{sizes[-1]}; expected {largest}"
        )


def _plain(value: Any) -> Any:
    """A field's value without its wrapper message."""
    if isinstance(value, bool):
        return value
    return value.value if hasattr(value, "value") else tuple(value)


_NOT_DONE = {"enable_large_batch_splitting", "max_execution_batch_size"}

_Field = descriptor_pb2.FieldDescriptorProto


def _wrapped(number: int, name: str, wrapper: str) -> _Field:
    return _Field(
        name=name,
        number=number,
        label=_Field.LABEL_OPTIONAL,
        type=_Field.TYPE_MESSAGE,
        type_name=f".google.protobuf.{wrapper}",
    )


_FIELDS = (
    _wrapped(1, "max_batch_size", "Int64Value"),
    _wrapped(2, "batch_timeout_micros", "Int64Value"),
    _wrapped(3, "max_enqueued_batches", "Int64Value"),
    _wrapped(4, "num_batch_threads", "Int64Value"),
    _wrapped(5, "thread_pool_name", "StringValue"),
    _Field(
        name="allowed_batch_sizes",
        number=6,
        label=_Field.LABEL_REPEATED,
        type=_Field.TYPE_INT64,
    ),
    _Field(
        name="pad_variable_length_inputs",
        number=7,
        label=_Field.LABEL_OPTIONAL,
        type=_Field.TYPE_BOOL,
    ),
    _wrapped(8, "enable_large_batch_splitting", "BoolValue"),
    _wrapped(9, "max_execution_batch_size", "Int64Value"),
)


def _message_class() -> type[Any]:
    """`tensorflow.serving.BatchingParameters`, which no Python package has.

    It is made in a pool of its own, so that it cannot clash with one that a package may get.
    """
    file = descriptor_pb2.FileDescriptorProto(
        name="batching_parameters.proto",
        package="tensorflow.serving",
        syntax="proto3",
        dependency=[wrappers_pb2.DESCRIPTOR.name],
    )
    file.message_type.add(name="BatchingParameters", field=_FIELDS)
    pool = descriptor_pool.DescriptorPool()
    pool.AddSerializedFile(wrappers_pb2.DESCRIPTOR.serialized_pb)
    pool.AddSerializedFile(file.SerializeToString())
    found = pool.FindMessageTypeByName("tensorflow.serving.BatchingParameters")
    return message_factory.GetMessageClass(found)


_MESSAGE = _message_class()
