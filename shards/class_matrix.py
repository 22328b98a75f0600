"""A slice as the matrix [classes, width] that queries are multiplied with, some of it at a time.

Rows that lie where they can be multiplied are never copied. Others come a few MB at a time, in
blocks of whole rows, as every store has them: where classes are rows, a block gives all scores of
its classes; where they are columns, a part of the scores of all classes, which are added up.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from shardserve.shards.halves import HALVES, PRODUCTS, widened
from shardserve.shards.messages import Axis
from shardserve.shards.store import SliceStore

Array = npt.NDArray[Any]

#: What is copied of a slice at a time.
COPY_BYTES = 4 << 20
#: Scores of all classes that are added up at a time.
SUM_BYTES = 32 << 20


class ClassMatrix(Protocol):
    """`dtype` is the table's; products are in PRODUCTS' for it."""

    classes: int
    width: int
    dtype: str

    def queries_at_once(self, most: int) -> int:
        """How many queries to multiply with at a time, at least one and at most `most`."""
        ...

    def classes_at_once(self, wanted: int) -> int:
        """How many classes a product should have where `wanted` would be best for other reasons."""
        ...

    def products(self, queries: Array, size: int) -> Iterator[tuple[int, Array]]:
        """[size, n] by rising class, the last with fewer: first class, and products.

        The caller may write to them; they are valid until the next is asked for.
        """
        ...

    def fill(self, out: Array, queries: Array, size: int) -> None:
        """Put all products to `out`, [n, classes]; `size` is as in `products`."""
        ...


def class_matrix(store: SliceStore, axis: Axis) -> ClassMatrix:
    """The slice's matrix, its dtype one of PRODUCTS."""
    if axis is Axis.ROWS:
        return _Rows(store, store.rows, store.columns)
    kind = _Columns if store.in_place else _CopiedColumns
    return kind(store, store.columns, store.rows)


class _Matrix:
    def __init__(self, store: SliceStore, classes: int, width: int) -> None:
        self._store = store
        self.classes, self.width, self.dtype = classes, width, store.dtype

    def queries_at_once(self, most: int) -> int:
        return most


class _Rows(_Matrix):
    """Each class is a row."""

    def classes_at_once(self, wanted: int) -> int:
        return wanted if _is_as_it_is(self._store) else min(wanted, _copied_rows(self._store))

    def products(self, queries: Array, size: int) -> Iterator[tuple[int, Array]]:
        space = np.empty((min(size, self.classes), len(queries)), queries.dtype)
        for start in range(0, self.classes, size):
            stop = min(start + size, self.classes)
            block = _widened(self._store.block(start, stop), self.dtype)
            yield start, np.matmul(block, queries.T, out=space[: stop - start])

    def fill(self, out: Array, queries: Array, size: int) -> None:
        for start, products in self.products(queries, size):
            out[:, start : start + len(products)] = products.T


class _Columns(_Matrix):
    """Each class is a column of rows that lie in memory."""

    def classes_at_once(self, wanted: int) -> int:
        if _is_as_it_is(self._store):
            return wanted
        return min(wanted, max(1, COPY_BYTES // (self.width * PRODUCTS[self.dtype].itemsize)))

    def products(self, queries: Array, size: int) -> Iterator[tuple[int, Array]]:
        every = self._store.block(0, self._store.rows)
        space = np.empty((min(size, self.classes), len(queries)), queries.dtype)
        for start in range(0, self.classes, size):
            stop = min(start + size, self.classes)
            block = _widened(every[:, start:stop].T, self.dtype)
            yield start, np.matmul(block, queries.T, out=space[: stop - start])

    def fill(self, out: Array, queries: Array, size: int) -> None:
        every = self._store.block(0, self._store.rows)
        for start in range(0, self.classes, size):
            stop = min(start + size, self.classes)
            block = _widened(every[:, start:stop], self.dtype)
            np.matmul(queries, block, out=out[:, start:stop])


class _CopiedColumns(_Matrix):
    """Each class is a column of rows that have to be fetched."""

    def queries_at_once(self, most: int) -> int:
        per_query = max(1, self.classes * PRODUCTS[self.dtype].itemsize)
        return max(1, min(most, SUM_BYTES // per_query))

    def classes_at_once(self, wanted: int) -> int:
        return wanted

    def products(self, queries: Array, size: int) -> Iterator[tuple[int, Array]]:
        sums = np.zeros((self.classes, len(queries)), queries.dtype)
        for first, last, block in self._blocks():
            sums += block.T @ queries[:, first:last].T
        for start in range(0, self.classes, size):
            yield start, sums[start : start + size]

    def fill(self, out: Array, queries: Array, size: int) -> None:
        del size
        out[:] = 0
        for first, last, block in self._blocks():
            out += queries[:, first:last] @ block

    def _blocks(self) -> Iterator[tuple[int, int, Array]]:
        step = _copied_rows(self._store)
        for first in range(0, self.width, step):
            last = min(first + step, self.width)
            yield first, last, _widened(self._store.block(first, last), self.dtype)


def _is_as_it_is(store: SliceStore) -> bool:
    """Whether rows can be multiplied where they are kept."""
    return store.in_place and PRODUCTS[store.dtype].name == store.dtype


def _copied_rows(store: SliceStore) -> int:
    row_bytes = max(1, store.columns * PRODUCTS[store.dtype].itemsize)
    return max(1, COPY_BYTES // row_bytes)


def _widened(values: Array, dtype: str) -> Array:
    return widened(values, dtype) if dtype in HALVES else values
