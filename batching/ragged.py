"""Ragged tensors in batches: rows of differing lengths, as values and row splits.

A ragged tensor of n rows is a pair: `values`, all rows' elements one after the other, and
`row_splits`, [n + 1] integers, so that row i is `values[row_splits[i]:row_splits[i + 1]]`, as in
TensorFlow's RaggedTensor.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from shardserve.batching.errors import InvalidArgument
from shardserve.batching.tensors import Array


class Ragged(NamedTuple):
    """One ragged tensor. `row_splits` begins with 0 and ends with the number of values."""

    values: Array
    row_splits: Array

    @property
    def rows(self) -> int:
        return len(self.row_splits) - 1


def checked(ragged: Ragged, rows: int) -> Ragged:
    """The same. Raises InvalidArgument unless it has `rows` rows, and row splits that are some."""
    values, splits = ragged
    if splits.ndim != 1 or len(splits) != rows + 1 or splits.dtype.kind not in "iu":
        raise InvalidArgument(
            f"row_splits must be {rows + 1} integers, one more than there are rows"
        )
    if values.ndim == 0:
        raise InvalidArgument("the values of a ragged tensor must have at least one dimension")
    if splits[0] != 0 or splits[-1] != len(values) or (np.diff(splits) < 0).any():
        raise InvalidArgument("row_splits must rise from 0 to the number of values")
    return ragged


def join_ragged(parts: Sequence[Ragged], missing: int = 0) -> Ragged:
    """All parts' rows, and `missing` copies of the first row of the last part that has any.

    The parts are of one dtype, and of one shape beyond dimension 0 of the values.
    """
    if missing:
        parts = [*parts, _repeated_row(parts, missing)]
    starts = itertools.accumulate([len(part.values) for part in parts], initial=0)
    first = parts[0]
    splits = [part.row_splits[1:] + start for part, start in zip(parts, starts, strict=False)]
    return Ragged(
        np.concatenate([p.values for p in parts], dtype=first.values.dtype, casting="no"),
        np.concatenate([first.row_splits[:1], *splits], dtype=first.row_splits.dtype),
    )


def split_ragged(ragged: Ragged, sizes: Sequence[int]) -> list[Ragged]:
    """Each task's rows. `sizes` are the tasks' rows in order; the values are views."""
    ends = itertools.accumulate(sizes, initial=0)
    return [_rows(ragged, start, stop) for start, stop in itertools.pairwise(ends)]


def _rows(ragged: Ragged, start: int, stop: int) -> Ragged:
    splits = ragged.row_splits[start : stop + 1]
    return Ragged(ragged.values[splits[0] : splits[-1]], splits - splits[0])


def _repeated_row(parts: Sequence[Ragged], times: int) -> Ragged:
    last = next(part for part in reversed(parts) if part.rows)
    row = last.values[: last.row_splits[1]]
    values = np.concatenate([row] * times)
    return Ragged(values, np.arange(times + 1, dtype=last.row_splits.dtype) * len(row))
