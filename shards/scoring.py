"""Scores of queries against a slice: a matrix product in numpy's BLAS, whole or only its best.

The best are picked from a few hundred KB of scores at a time, so that the product of all queries
with all classes is never there at once.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from shardserve.batching.errors import InvalidArgument, Unimplemented
from shardserve.shards.best import Best, Picker, Totals
from shardserve.shards.class_matrix import ClassMatrix, class_matrix
from shardserve.shards.halves import PRODUCTS
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


def answer(store: SliceStore, part: ScorePart) -> Array:
    """What `ScorePart` says.

    Raises InvalidArgument for queries or a bias of another shape or dtype than the slice needs,
    Unimplemented for a table of a dtype that is not scored.
    """
    if store.dtype not in PRODUCTS:
        raise Unimplemented(f"scoring a table of {store.dtype} is not implemented")
    matrix = class_matrix(store, part.axis)
    _check(store, part, matrix)
    if not part.k:
        return _every(matrix, part.queries)
    step = matrix.queries_at_once(BLOCK_QUERIES)
    blocks = [
        _best(matrix, part, part.queries[first : first + step])
        for first in range(0, max(1, len(part.queries)), step)
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


def _check(store: SliceStore, part: ScorePart, matrix: ClassMatrix) -> None:
    product = PRODUCTS[store.dtype]
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


def _best(matrix: ClassMatrix, part: ScorePart, queries: Array) -> Array:
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
    matrix: ClassMatrix, part: ScorePart, queries: Array, k: int
) -> Iterator[tuple[int, Array]]:
    """Scores [c, n] by rising class, the first of at least k classes; valid until the next."""
    size = min(max(matrix.classes_at_once(_classes_wanted(queries)), k), matrix.classes)
    for start, products in matrix.products(queries, size):
        bias = None if part.bias is None else part.bias[start : start + len(products)]
        yield start, biased(products, bias, matrix.dtype)


def _classes_wanted(queries: Array) -> int:
    return max(CHUNK_SCORES // max(1, len(queries)), MIN_CHUNK)


def _every(matrix: ClassMatrix, queries: Array) -> Array:
    """All products, [n, classes]."""
    out = np.empty((len(queries), matrix.classes), queries.dtype)
    size = max(1, matrix.classes_at_once(_classes_wanted(queries)))
    step = matrix.queries_at_once(max(1, len(queries)))
    for first in range(0, len(queries), step):
        matrix.fill(out[first : first + step], queries[first : first + step], size)
    return out
