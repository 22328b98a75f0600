"""Scorings: queries out to the slices of a table, scores or the best of them back. Pure.

Where a slice has whole classes, in the table's order, its shard picks its own best, and those are
merged. Elsewhere (pieces of every class's width, whose products are partial sums; rows in the order
of a hash) all scores come back, and the best are picked here.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from shardserve.batching.errors import InvalidArgument, ResourceExhausted, Unavailable
from shardserve.router.lookups import MAX_RESULT_BYTES
from shardserve.router.partition import TablePartition
from shardserve.shards.best import Best, Picker, Totals, in_order, merged, unpack
from shardserve.shards.cut.scorings import Pick, Scale, Scoring
from shardserve.shards.halves import PRODUCTS
from shardserve.shards.layout import Slice
from shardserve.shards.messages import Axis, ScorePart
from shardserve.shards.rows import RowHash, RowMod, RowRange, base_of
from shardserve.shards.scoring import biased, rounded
from shardserve.shards.tables import Table

Array = npt.NDArray[Any]


@dataclass(frozen=True, slots=True)
class ScoreFragment:
    """One slice's share of a scoring: `part`, asked of `shard` about `piece`."""

    shard: int
    part: ScorePart
    piece: Slice


@dataclass(frozen=True, slots=True)
class PreparedScores:
    """A scoring ready to be split: `queries` [n, width] and `bias`, of the products' dtype.

    `outer` is the shape of the queries without their width, as the graph has them.
    """

    scoring: Scoring
    table: Table
    queries: Array
    bias: Array | None
    outer: tuple[int, ...]

    @property
    def classes(self) -> int:
        """How many classes the table has."""
        rows = self.scoring.axis is Axis.ROWS
        return self.table.rows if rows else self.table.columns

    @property
    def size(self) -> int:
        """Elements to send, and to merge."""
        return self.queries.size + len(self.queries) * (self.scoring.k or self.classes)

    def fragments(self, partition: TablePartition, turn: int) -> list[ScoreFragment]:
        """The work of each slice that has some; none where there is no query.

        Raises ResourceExhausted where what comes back takes over `MAX_RESULT_BYTES`.
        """
        pieces = [
            (piece, slice_id)
            for piece, slice_id in partition.one_copy(turn)
            if piece.rows.count and piece.columns
        ]
        if not len(self.queries):
            return []
        # What is picked can be merged only with what is picked; slices of a grid may differ.
        only_best = self.scoring.pick is not Pick.ALL and all(
            self._can_pick(piece) for piece, _ in pieces
        )
        self._check_size(only_best=only_best)
        return [
            ScoreFragment(piece.shard, self._part(piece, slice_id, only_best=only_best), piece)
            for piece, slice_id in pieces
        ]

    def _check_size(self, *, only_best: bool) -> None:
        count = self.scoring.k if only_best else self.classes
        nbytes = len(self.queries) * count * self.queries.itemsize
        if nbytes > MAX_RESULT_BYTES:
            raise ResourceExhausted(
                f"the scores of {len(self.queries)} queries against table {self.table.name!r} "
                f"would take {nbytes} bytes, over the limit of {MAX_RESULT_BYTES}"
            )

    def _part(self, piece: Slice, slice_id: int, *, only_best: bool) -> ScorePart:
        axis = self.scoring.axis
        if not self._has_whole_classes(piece):
            queries = np.ascontiguousarray(self.queries[:, _places(piece, _other(axis))])
            return ScorePart(slice_id, queries, axis)
        if not only_best:
            return ScorePart(slice_id, self.queries, axis)
        bias = self.bias
        if bias is not None:
            bias = np.ascontiguousarray(bias[_places(piece, axis)])
        scaled = self.scoring.scale is not Scale.NONE and self.scoring.pick is Pick.TOP_K
        return ScorePart(slice_id, self.queries, axis, self.scoring.k, bias, scaled)

    def _can_pick(self, piece: Slice) -> bool:
        """Whether the best of the slice's classes can be told where it lies."""
        return self._has_whole_classes(piece) and _in_order(piece, self.scoring.axis)

    def _has_whole_classes(self, piece: Slice) -> bool:
        """Whether the slice has all of each class that it has, as the queries are ordered."""
        if self.scoring.axis is Axis.ROWS:
            return piece.columns == self.table.columns
        return piece.rows.count == self.table.rows and _in_order(piece, Axis.ROWS)

    def merged(
        self, answers: Sequence[tuple[ScoreFragment, Array]], dtype: np.dtype[Any]
    ) -> dict[str, Array]:
        """The tensors that the scoring makes known; `dtype` is the table's in the graph.

        Raises Unavailable for a shard's answer that is none.
        """
        scoring = self.scoring
        if scoring.pick is Pick.ALL:
            scores = rounded(self._all(answers), self.table.dtype).astype(dtype, copy=False)
            scores = scores.reshape(*self.outer, self.classes)
            found = np.swapaxes(scores, -1, -2) if scoring.table_first else scores
            return {scoring.output: np.ascontiguousarray(found)}
        best = self._best(answers)
        outer = self.outer[:-1] if scoring.table_first else self.outer
        if scoring.pick is Pick.ARG_MAX:
            return {scoring.output: best.indices.astype(scoring.index_dtype).reshape(outer)}
        values, indices = self._scaled(best)
        assert scoring.indices is not None
        return {
            scoring.output: values.astype(dtype, copy=False).reshape(*outer, scoring.k),
            scoring.indices: indices.astype(scoring.index_dtype).reshape(*outer, scoring.k),
        }

    def _all(self, answers: Sequence[tuple[ScoreFragment, Array]]) -> Array:
        """Every score, [n, classes], not rounded."""
        shape = (len(self.queries), self.classes)
        if len(answers) == 1 and _in_order(answers[0][0].piece, self.scoring.axis):
            return _checked(answers[0][0], answers[0][1], shape)
        out = np.zeros(shape, self.queries.dtype)
        for fragment, scores in answers:
            places = _places(fragment.piece, self.scoring.axis)
            count = _count(fragment.piece, self.scoring.axis)
            out[:, places] += _checked(fragment, scores, (shape[0], count))
        return out

    def _best(self, answers: Sequence[tuple[ScoreFragment, Array]]) -> Best:
        k = self.scoring.k
        if not answers:
            none = np.empty((0, k), self.queries.dtype)
            return Best(none, none.astype(np.int64), Totals(none[:, 0], none[:, 0]))
        if all(fragment.part.k for fragment, _ in answers):
            return merged([self._unpacked(*one) for one in answers], k)
        products = np.ascontiguousarray(self._all(answers).T)
        scores = biased(products, self.bias, self.table.dtype)
        picker = Picker(k)
        picker.add(scores, 0)
        return Best(*picker.best(), Totals.of(scores))

    def _unpacked(self, fragment: ScoreFragment, packed: Array) -> Best:
        axis = self.scoring.axis
        count = _count(fragment.piece, axis)
        k = min(self.scoring.k, count)
        try:
            best = unpack(packed, count, k, totals=fragment.part.totals)
        except ValueError as error:
            raise _bad_answer(fragment, str(error)) from error
        if len(best.values) != len(self.queries):
            raise _bad_answer(fragment, f"{len(best.values)} queries")
        return Best(best.values, _numbers(fragment.piece, axis, best.indices), best.totals)

    def _scaled(self, best: Best) -> tuple[Array, Array]:
        if self.scoring.scale is Scale.NONE:
            return best.values, best.indices
        assert best.totals is not None
        peaks, sums = best.totals.peaks[:, None], best.totals.sums[:, None]
        with np.errstate(invalid="ignore", divide="ignore"):
            shifted = best.values - peaks
            if self.scoring.scale is Scale.LOG_SOFTMAX:
                return (shifted - np.log(sums)).astype(best.values.dtype), best.indices
            scaled = (np.exp(shifted) / sums).astype(best.values.dtype)
        return _with_zeros(scaled, best.indices)


def prepare_scores(scoring: Scoring, table: Table, known: Mapping[str, Array]) -> PreparedScores:
    """Read the scoring's operands from the tensors known by now.

    Raises InvalidArgument for queries that the product would refuse; of a MatMul in TensorFlow's
    words.
    """
    given = known[scoring.queries]
    width = table.columns if scoring.axis is Axis.ROWS else table.rows
    _check_rank(scoring, given)
    queries = np.swapaxes(given, -1, -2) if scoring.transposed else given
    if queries.shape[-1] != width:
        raise InvalidArgument(_at(scoring, _incompatible(scoring, table, given.shape)))
    product = PRODUCTS[table.dtype]
    *outer, _ = queries.shape
    if scoring.table_first and scoring.pick is not Pick.ALL and outer[-1] != 1:
        raise InvalidArgument(
            _at(scoring, f"Can not squeeze dim, expected a dimension of 1, got {outer[-1]}")
        )
    count = math.prod(outer)
    flat = np.ascontiguousarray(queries, product).reshape(count, width)
    bias = None
    if scoring.bias is not None:
        bias = np.ascontiguousarray(known[scoring.bias], product)
    return PreparedScores(scoring, table, flat, bias, tuple(outer))


def _check_rank(scoring: Scoring, queries: Array) -> None:
    if queries.ndim < 2 or scoring.rank not in (None, queries.ndim):
        text = f"In[{int(scoring.table_first)}] ndims must be >= 2"
        raise InvalidArgument(_at(scoring, text))


def _incompatible(scoring: Scoring, table: Table, queries: tuple[int, ...]) -> str:
    forms = [_dims(queries), _dims((table.rows, table.columns))]
    if scoring.table_first:
        forms.reverse()
    return f"Matrix size-incompatible: In[0]: {forms[0]}, In[1]: {forms[1]}"


def _other(axis: Axis) -> Axis:
    return Axis.COLUMNS if axis is Axis.ROWS else Axis.ROWS


def _in_order(piece: Slice, axis: Axis) -> bool:
    """Whether a lower local number means a lower number in the table."""
    return axis is Axis.COLUMNS or not isinstance(piece.rows, RowHash)


def _count(piece: Slice, axis: Axis) -> int:
    return piece.rows.count if axis is Axis.ROWS else piece.columns


def _places(piece: Slice, axis: Axis) -> slice | Array:
    """Where the slice's rows or columns are in the table's."""
    if axis is Axis.COLUMNS:
        return slice(piece.column_start, piece.column_stop)
    match base_of(piece.rows):
        case RowRange(start, stop):
            return slice(start, stop)
        case RowMod(part, parts, total):
            return slice(part, total, parts)
        case RowHash() as rows:
            return rows.rows(0, rows.count)


def _numbers(piece: Slice, axis: Axis, local: Array) -> Array:
    """The table's numbers of a slice's classes, whose order is the table's."""
    match _places(piece, axis):
        case slice(start=start, step=step):
            return np.asarray(local * (step or 1) + start)
        case places:
            return np.asarray(places[local])


def _with_zeros(values: Array, indices: Array) -> tuple[Array, Array]:
    """The best probabilities [n, k], those too small for their dtype as the zeros they are.

    Zeros are equal whatever the scores were, so the lowest numbers win: they are those of the
    classes that have no probability, which are all but the ones here that have one. Of other
    probabilities that rounding makes equal, too, the lower number comes first.
    """
    k = values.shape[1]
    values = np.where(values < np.finfo(values.dtype).tiny, values.dtype.type(0), values)
    for row in np.flatnonzero((values == 0).any(axis=1)):
        kept = indices[row][values[row] > 0]
        free = np.setdiff1d(np.arange(k), kept)[: k - len(kept)]
        indices[row, len(kept) :] = free
    return in_order(values, indices, k)


def _checked(fragment: ScoreFragment, scores: Array, shape: tuple[int, ...]) -> Array:
    if scores.shape != shape:
        raise _bad_answer(fragment, f"scores of shape {list(scores.shape)}, not {list(shape)}")
    return scores


def _bad_answer(fragment: ScoreFragment, what: str) -> Unavailable:
    return Unavailable(f"shard {fragment.shard} answered a scoring with {what}")


def _dims(shape: tuple[int, ...]) -> str:
    return "[" + ",".join(map(str, shape)) + "]"


def _at(scoring: Scoring, text: str) -> str:
    """The text with the node, in the form that TensorFlow gives kernel errors."""
    return f"{text}\n\t [[{{{{node {scoring.product}}}}}]]"
