"""Partial results in, a lookup's result out. Pure.

Parts are added in part order, so that equal requests give equal bits.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from shardserve.router.partition import Fragment
from shardserve.router.split_kernels import scatter_add
from shardserve.shards.cut.lookups import Combiner
from shardserve.shards.halves import sums_dtype
from shardserve.shards.tables import Table

Array = npt.NDArray[Any]


def array_dtype(table: Table) -> np.dtype[Any]:
    """The numpy dtype of a table's elements; bfloat16 travels as its bits."""
    return np.dtype(np.uint16 if table.dtype == "bfloat16" else table.dtype)


def merge_gathered(table: Table, count: int, answers: Sequence[tuple[Fragment, Array]]) -> Array:
    """[count, columns]: each id's row. Together the fragments place every row."""
    if len(answers) == 1 and _is_whole(table, answers[0][0]):
        return answers[0][1]
    out = np.empty((count, table.columns), array_dtype(table))
    for fragment, rows in answers:
        columns = slice(fragment.column_start, fragment.column_stop)
        if fragment.places is None:
            out[:, columns] = rows
        else:
            out[fragment.places, columns] = rows
    return out


def merge_pooled(table: Table, count: int, answers: Sequence[tuple[Fragment, Array]]) -> Array:
    """[count, columns]: each bag's sum, of `sums_dtype`. A bag that no fragment places is zeros."""
    if len(answers) == 1 and _is_whole(table, answers[0][0]):
        return answers[0][1]
    out = np.zeros((count, table.columns), sums_dtype(table.dtype))
    for fragment, partial in answers:
        if fragment.places is None:
            out[:, fragment.column_start : fragment.column_stop] += partial
        else:
            scatter_add(out, fragment.places, fragment.column_start, partial)
    return out


def divided(sums: Array, sizes: Array | int, combiner: Combiner) -> Array:
    """Sums [bags, columns] over their bags' sizes, as the combiner says; may reuse `sums`.

    `sizes` [bags] has one for each; an empty bag stays zeros. One size for all may be zero: NaN, as
    TensorFlow's mean over no elements.
    """
    if combiner is Combiner.SUM:
        return sums
    if isinstance(sizes, int):
        with np.errstate(invalid="ignore"):
            divisor = sums.dtype.type(sizes)
            quotient: Array = sums / (divisor if combiner is Combiner.MEAN else np.sqrt(divisor))
        return quotient
    divisors = np.maximum(sizes, 1).astype(sums.dtype)
    if combiner is Combiner.SQRTN:
        divisors = np.sqrt(divisors)
    means: Array = sums / divisors[:, None]
    return means


def divided_halves(sums: Array, sizes: Array, combiner: Combiner) -> Array:
    """As `divided`, for float32 sums [bags, columns] of rows of half precision.

    To the bit as TensorFlow's SparseSegment kernels do it: a bag of less than ten ids is multiplied
    by the reciprocal.
    """
    if combiner is Combiner.SUM:
        return sums
    counts = np.maximum(sizes, 1)
    roots = np.sqrt(counts) if combiner is Combiner.SQRTN else counts
    divisors = roots.astype(np.float32)[:, None]
    found: Array = np.where(counts[:, None] < 10, sums * (1 / divisors), sums / divisors)
    return found


def _is_whole(table: Table, fragment: Fragment) -> bool:
    return fragment.places is None and fragment.column_stop - fragment.column_start == table.columns
