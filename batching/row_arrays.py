"""New arrays of rows from old ones, for a running batch."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, TypeAlias

import numpy as np

from shardserve.batching.errors import FailedPrecondition
from shardserve.batching.step_form import SequenceRow
from shardserve.batching.tensors import Array

#: Steps for which inputs and outputs are staged.
WINDOW = 16


def resettled(
    array: Array,
    rows: int,
    count: int,
    moves: Iterable[tuple[int, int]],
    joined: Sequence[SequenceRow],
    values: Sequence[Array],
) -> Array:
    """A new array of `rows` rows, of which the first `count` are in use."""
    settled = np.empty((rows, *array.shape[1:]), array.dtype)
    common = min(len(array), rows)
    settled[:common] = array[:common]
    for source, target in moves:
        settled[target] = array[source]
    for row, value in zip(joined, values, strict=False):
        settled[row.slot] = value[0]
    settled[count:] = settled[:1]
    return settled


def padded(array: Array, rows: int) -> Array:
    """The array with its first row again, up to `rows` rows."""
    if len(array) == rows:
        return array
    return np.concatenate(
        [array, np.broadcast_to(array[:1], (rows - len(array), *array.shape[1:]))]
    )


def wider(window: Array | None, rows: int, dtype: np.dtype[Any], shape: tuple[int, ...]) -> Array:
    """A window [WINDOW, rows, ...], with what there is in a narrower one."""
    wider = np.zeros((WINDOW, rows, *shape), dtype)
    if window is not None:
        wider[:, : window.shape[1]] = window
    return wider


def scattered(old: Array | None, rows: int, slots: list[int], values: Array) -> Array:
    """A copy of `old` with `rows` rows, of which those of `slots` are `values`."""
    full = np.zeros((rows, *values.shape[1:]), values.dtype)
    if old is not None:
        common = min(rows, len(old))
        full[:common] = old[:common]
    full[slots] = values
    return full


#: What an output is for each row: its dtype, and its shape.
Kind: TypeAlias = tuple[np.dtype[Any], tuple[int, ...]]


def kind_of(output: Array) -> Kind:
    """What an array of rows has for each."""
    return output.dtype, output.shape[1:]


def check_kept(name: str, output: Array, kind: Kind) -> None:
    """Raise FailedPrecondition for an output that cannot be kept with those of steps before."""
    _check_kind(name, output, kind, "before it was")


def check_state(name: str, output: Array, state: Array) -> None:
    """Raise FailedPrecondition for a step's output that cannot be the state that it becomes."""
    _check_kind(name, output, kind_of(state), "the state that it becomes is")


def _check_kind(name: str, output: Array, kind: Kind, said: str) -> None:
    if kind_of(output) != kind:
        dtype, shape = kind
        raise FailedPrecondition(
            f"output {name!r} of the step is {output.dtype}{list(output.shape[1:])} for each row; "
            f"{said} {dtype}{list(shape)}"
        )
