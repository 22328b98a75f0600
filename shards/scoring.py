"""Scores of queries against a slice: a matrix product in numpy's BLAS, whole or only its best.

The best are picked from a few hundred KB of scores at a time, so that the product of all queries
with all classes is never there at once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt

from shardserve.batching.errors import InvalidArgument, Unimplemented
from shardserve.shards.best import Best, Picker, Totals
from shardserve.shards.halves import HALVES, widened
from shardserve.shards.messages import Axis, ScorePart
from shardserve.shards.store import SliceStore, array_dtype

Array = npt.NDArray[Any]

#: Scores that are looked at together: as many as a core's own cache holds.
CHUNK_SCORES = 1 << 18
MIN_CHUNK = 1 << 10
#: Queries that are scored together; with more, fewer classes are, or their scores leave the cache.
BLOCK_QUERIES = 128
#: A slice is read, not held: one larger than all that may be queued must still be asked.
_READ_COST = 64 << 20

#: The dtypes of tables that can be scored, and of the products.
PRODUCTS: Mapping[str, np.dtype[Any]] = {
    "float64": np.dtype(np.float64),
    "float32": np.dtype(np.float32),
    "float16": np.dtype(np.float32),
    "bfloat16": np.dtype(np.float32),
}


@runtime_checkable
class _HasBlocks(Protocol):
    """A store whose rows can be read where they are."""

    def block(self, first: int, last: int) -> Array:
        """Rows [first, last), [last - first, columns]."""
        ...


def answer(store: SliceStore, part: ScorePart) -> Array:
    """What `ScorePart` says.

    Raises InvalidArgument for queries or a bias of another shape or dtype than the slice needs,
    Unimplemented for a table of a dtype that is not scored.
    """
    matrix = _Matrix(store, part.axis)
    _check(store, part, matrix)
    if not part.k:
        return np.asarray(part.queries @ matrix.chunk(0, matrix.classes).T)
    blocks = [
        _best(matrix, part, part.queries[first : first + BLOCK_QUERIES])
        for first in range(0, max(1, len(part.queries)), BLOCK_QUERIES)
    ]
    return np.concatenate(blocks)


def cost(stores: Sequence[SliceStore], part: ScorePart) -> int:
    """Bytes that `answer` reads and writes, but for a large slice's; 0 for a slice not there."""
    if not 0 <= part.slice_id < len(stores):
        return 0
    store = stores[part.slice_id]
    classes = store.rows if part.axis is Axis.ROWS else store.columns
    answered = min(classes, 2 * part.k) if part.k else classes
    queries = part.queries.shape[0] if part.queries.ndim else 0
    written = queries * answered * part.queries.itemsize
    return written + part.queries.nbytes + min(_READ_COST, queries * store.nbytes)


def rounded(scores: Array, dtype: str) -> Array:
    """Products as a table's dtype would have them, still of the products' dtype."""
    if dtype == "float16":
        with np.errstate(over="ignore"):
            return scores.astype(np.float16).astype(np.float32)
    if dtype == "bfloat16":
        bits = scores.view(np.uint32)
        even = bits + (((bits >> 16) & 1) + 0x7FFF)
        return np.where(np.isnan(scores), scores, (even & 0xFFFF0000).view(np.float32))
    return scores


def biased(scores: Array, bias: Array | None, dtype: str) -> Array:
    """Products [classes, n], rounded, plus a bias [classes], rounded again."""
    scores = rounded(scores, dtype)
    return scores if bias is None else rounded(scores + bias[:, None], dtype)


class _Matrix:
    """A slice as [classes, width], a run of classes at a time."""

    def __init__(self, store: SliceStore, axis: Axis) -> None:
        by_rows = axis is Axis.ROWS
        self._store = store
        self._blocks = store if isinstance(store, _HasBlocks) else None
        self.classes = store.rows if by_rows else store.columns
        self.width = store.columns if by_rows else store.rows
        self.dtype = store.dtype
        self.chunk: Callable[[int, int], Array] = self._of_rows if by_rows else self._of_columns
        self._whole: Array | None = None

    def _of_rows(self, first: int, last: int) -> Array:
        return _widened(self._rows(first, last), self.dtype)

    def _of_columns(self, first: int, last: int) -> Array:
        if self._whole is None:
            self._whole = self._rows(0, self._store.rows)
        return _widened(self._whole[:, first:last].T, self.dtype)

    def _rows(self, first: int, last: int) -> Array:
        if self._blocks is not None:
            return self._blocks.block(first, last)
        return self._store.gather(np.arange(first, last))


def _widened(values: Array, dtype: str) -> Array:
    return widened(values, dtype) if dtype in HALVES else values


def _check(store: SliceStore, part: ScorePart, matrix: _Matrix) -> None:
    product = PRODUCTS.get(store.dtype)
    if product is None:
        raise Unimplemented(f"scoring a table of {store.dtype} is not implemented")
    queries, bias = part.queries, part.bias
    if queries.ndim != 2 or queries.shape[1] != matrix.width or queries.dtype != product:
        raise InvalidArgument(
            f"queries must be {product} [n, {matrix.width}], "
            f"not {queries.dtype} {list(queries.shape)}"
        )
    if bias is not None and (bias.shape != (matrix.classes,) or bias.dtype != product):
        raise InvalidArgument(
            f"a bias must be {product} [{matrix.classes}], not {bias.dtype} {list(bias.shape)}"
        )
    if not part.k and (bias is not None or part.totals):
        raise InvalidArgument("all scores take neither a bias nor totals")
    if part.k and array_dtype(store.dtype).itemsize < 8 and matrix.classes >= 1 << 31:
        raise Unimplemented(f"picking from {matrix.classes} classes is not implemented")


def _best(matrix: _Matrix, part: ScorePart, queries: Array) -> Array:
    k = min(part.k, matrix.classes)
    if not k or not len(queries):
        return np.empty((len(queries), 2 * k + 2 * part.totals), queries.dtype)
    picker = Picker(k)
    totals: list[Totals] = []
    for start, scores in _chunks(matrix, part, queries, k):
        picker.add(scores, start)
        if part.totals:
            totals = [Totals.merged([*totals, Totals.of(scores)])]
    return Best(*picker.best(), totals[0] if totals else None).pack()


def _chunks(
    matrix: _Matrix, part: ScorePart, queries: Array, k: int
) -> Iterator[tuple[int, Array]]:
    """Scores [c, n] by rising class, the first of at least k classes; valid until the next."""
    size = min(max(CHUNK_SCORES // len(queries), MIN_CHUNK, k), matrix.classes)
    space = np.empty((size, len(queries)), queries.dtype)
    for start in range(0, matrix.classes, size):
        stop = min(start + size, matrix.classes)
        scores = np.matmul(matrix.chunk(start, stop), queries.T, out=space[: stop - start])
        bias = None if part.bias is None else part.bias[start:stop]
        yield start, biased(scores, bias, matrix.dtype)
