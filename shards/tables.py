"""What a table is, and where its bytes lie on disk."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt


@dataclass(frozen=True)
class Table:
    """A variable that is cut: `rows` rows, each of shape `row_shape`, of numpy dtype `dtype`.

    A row is handled flat, as `columns` elements. `name` is unique within a model and is the name
    that layouts, metrics and messages use. `dtype` is a numpy name, or "bfloat16".
    """

    name: str
    dtype: str
    rows: int
    row_shape: tuple[int, ...]

    @property
    def columns(self) -> int:
        """Elements in one row."""
        return math.prod(self.row_shape)

    @property
    def itemsize(self) -> int:
        """Bytes in one element."""
        return 2 if self.dtype == "bfloat16" else np.dtype(self.dtype).itemsize

    @property
    def row_bytes(self) -> int:
        """Bytes in one row."""
        return self.columns * self.itemsize

    @property
    def nbytes(self) -> int:
        """Bytes in the whole table."""
        return self.rows * self.row_bytes


@dataclass(frozen=True)
class Extent:
    """A run of a file that holds rows [row_start, row_stop) x columns [column_start, column_stop).

    Row-major without padding, little-endian, from byte `offset` of `path` on. An unsliced variable
    is one extent; a variable that was saved in slices has one for each. With a `row_step` the run
    holds only every such row, from `row_start` on.
    """

    path: str
    offset: int
    row_start: int
    row_stop: int
    column_start: int
    column_stop: int
    row_step: int = 1

    @property
    def rows(self) -> int:
        """How many rows it holds."""
        return -(-(self.row_stop - self.row_start) // self.row_step)

    @property
    def columns(self) -> int:
        """How many columns it holds."""
        return self.column_stop - self.column_start

    def holds(self, rows: npt.NDArray[np.int64]) -> npt.NDArray[np.bool_]:
        """Which of the table's rows are among its own."""
        within: npt.NDArray[np.bool_] = (rows >= self.row_start) & (rows < self.row_stop)
        if self.row_step == 1:
            return within
        within &= (rows - self.row_start) % self.row_step == 0
        return within


@dataclass(frozen=True)
class TableSource:
    """A table and the extents that, together, hold each of its elements exactly once."""

    table: Table
    extents: tuple[Extent, ...]
