"""Many tasks' tensors to one batch's on dimension 0, and back. Arrays of objects are strings."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from shardserve.batching.errors import FailedPrecondition, InvalidArgument

Array = npt.NDArray[Any]


class NotBatchable(FailedPrecondition):
    """An output without the batch's rows. That is the model's doing: no smaller batch helps."""


def rows_of(tensors: Sequence[Array]) -> int:
    """The size of a task's dimension 0, in which its tensors must agree.

    Raises InvalidArgument in TensorFlow Serving's words.
    """
    if not tensors:
        raise InvalidArgument("Batching Run() must have at least one input tensor")
    shapes = [tensor.shape for tensor in tensors]
    if () in shapes:
        raise InvalidArgument("Batching Run() input tensors must have at least one dimension")
    rows, *others = {shape[0] for shape in shapes}
    if others:
        raise InvalidArgument("Batching Run() input tensors must have equal 0th-dimension size")
    return int(rows)


def join(
    tasks: Sequence[Sequence[Array]], missing: int = 0, *, pad_inner: bool = False
) -> list[Array]:
    """The tasks' tensors, place by place, joined on dimension 0.

    All tasks have tensors of the same dtypes in the same order. At the end, the first row of the
    last task that has any is repeated `missing` times. Shapes agree beyond dimension 0, or with
    `pad_inner` only the ranks do: every dimension grows to the longest at its end, filled with the
    tensor's own first element. Raises InvalidArgument for a tensor without elements that would
    have to grow.

    A single task that needs no padding comes back uncopied.
    """
    return [_joined(column, missing, pad_inner) for column in zip(*tasks, strict=True)]


def split(output: Array, sizes: Sequence[int]) -> list[Array]:
    """Each task's rows of an output: views. `sizes` are the tasks' rows in order.

    What the output has beyond them is padding.
    """
    count, size = len(sizes), sizes[0]
    if sizes.count(size) == count:
        return list(output[: count * size].reshape(count, size, *output.shape[1:]))
    ends = list(itertools.accumulate(sizes, initial=0))
    return [output[start:stop] for start, stop in itertools.pairwise(ends)]


def fold(tensor: Array, lines: int) -> Array:
    """A tensor whose every row is so many lines of dimension 0, with a row as one: a view."""
    return tensor.reshape(len(tensor) // lines, lines, *tensor.shape[1:]) if lines != 1 else tensor


def unfold(tensor: Array, lines: int) -> Array:
    """The inverse of `fold`."""
    return tensor.reshape(len(tensor) * lines, *tensor.shape[2:]) if lines != 1 else tensor


def check_rows(name: str, output: Array, rows: int) -> None:
    """Raises NotBatchable, naming the output, unless it has the rows of its batch."""
    if output.ndim == 0:
        raise NotBatchable(f"Batched output tensor has 0 dimensions: {name!r}")
    if len(output) != rows:
        raise NotBatchable(
            "Batched output tensor's 0th dimension does not equal the sum of the 0th dimension "
            f"sizes of the input tensors: {name!r} has {len(output)}, they have {rows}"
        )


def _joined(column: Sequence[Array], missing: int, pad_inner: bool) -> Array:
    parts = _equalised(column) if pad_inner else column
    if missing:
        parts = [*parts, _repeated_row(parts, missing)]
    if len(parts) == 1:
        return parts[0]
    # With "no", an array of another dtype raises instead of changing everybody's.
    return np.concatenate(parts, dtype=parts[0].dtype, casting="no")


def _repeated_row(parts: Sequence[Array], times: int) -> Array:
    last = next(part for part in reversed(parts) if len(part))
    return np.broadcast_to(last[:1], (times, *last.shape[1:]))


def _equalised(parts: Sequence[Array]) -> list[Array]:
    inner = tuple([max(sizes) for sizes in zip(*[p.shape[1:] for p in parts], strict=True)])
    return [part if part.shape[1:] == inner else _grown(part, inner) for part in parts]


def _grown(part: Array, inner: tuple[int, ...]) -> Array:
    shape = (len(part), *inner)
    if part.size == 0 and 0 not in shape:
        raise InvalidArgument("Got empty tensor in batch of non-empty tensors.")
    grown = np.empty(shape, part.dtype)
    if part.size:
        grown[...] = part.flat[0]
    grown[tuple([slice(size) for size in part.shape])] = part
    return grown
