"""One lookup's operands into ids and bags, checked as TensorFlow's CPU kernels check them. Pure."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from shardserve.batching.errors import InvalidArgument, ResourceExhausted
from shardserve.router.merge import divided, divided_halves
from shardserve.router.partition import Bags
from shardserve.router.split_kernels import first_descent, first_outside
from shardserve.shards.cut.lookups import BadIds, Lookup, Motif
from shardserve.shards.kernels import RowKernels
from shardserve.shards.tables import Table

Array = npt.NDArray[Any]

MAX_RESULT_BYTES = (1 << 31) - 1


@dataclass(frozen=True, slots=True)
class Prepared:
    """A lookup ready to be split: ids (int64 [n]) within the table, bags for a pooled one.

    `count` rows come back, to be divided by `sizes` (one for each bag, or one for all), put at
    `places` where there are any (row i of the result is what came back at places[i]), and given
    `shape`.
    """

    lookup: Lookup
    ids: Array
    bags: Bags | None
    count: int
    sizes: Array | int
    shape: tuple[int, ...]
    places: Array | None = None

    @property
    def size(self) -> int:
        """Ids to split, and to merge the answers for."""
        return len(self.ids if self.places is None else self.places)

    def finished(self, merged: Array, dtype: np.dtype[Any]) -> Array:
        """The tensor that takes the lookup's place in the graph, from the merged rows or sums."""
        if self.bags is not None:
            merged = self._combined(merged, dtype)
        if self.places is not None:
            merged = RowKernels(np.ascontiguousarray(merged)).gather(self.places)
        return merged.view(dtype).reshape(self.shape)

    def _combined(self, sums: Array, dtype: np.dtype[Any]) -> Array:
        if sums.dtype.itemsize == dtype.itemsize:
            return divided(sums, self.sizes, self.lookup.combiner)
        assert isinstance(self.sizes, np.ndarray)
        return divided_halves(sums, self.sizes, self.lookup.combiner).astype(dtype)


def prepare(lookup: Lookup, table: Table, known: Mapping[str, Array]) -> Prepared:
    """Read the lookup's operands from the tensors known by now.

    Raises InvalidArgument in TensorFlow's words for an id outside the table, for segments that fall
    or do not match the ids, and for weights of another shape; ResourceExhausted for a result of
    over `MAX_RESULT_BYTES`.
    """
    ids = _int64(known[lookup.ids])
    if lookup.take is not None:
        ids = _taken(lookup, ids, _int64(known[lookup.take]))
    match lookup.motif:
        case Motif.GATHER:
            prepared = _gather(lookup, table, ids)
        case Motif.SEGMENT_POOL:
            prepared = _segments(lookup, table, ids, known)
        case Motif.REDUCE_POOL:
            prepared = _reduced(lookup, table, ids, known)
    _check_ids(lookup, table, ids)
    if prepared.count * table.row_bytes > MAX_RESULT_BYTES:
        raise ResourceExhausted(
            f"the lookup of {prepared.count} rows in table {table.name!r} would take "
            f"{prepared.count * table.row_bytes} bytes, over the limit of {MAX_RESULT_BYTES}"
        )
    return prepared


def _gather(lookup: Lookup, table: Table, ids: Array) -> Prepared:
    return Prepared(lookup, ids.reshape(-1), None, ids.size, 1, (*ids.shape, *table.row_shape))


def _segments(lookup: Lookup, table: Table, ids: Array, known: Mapping[str, Array]) -> Prepared:
    assert lookup.segments is not None
    segments, of_each = _int64(known[lookup.segments]), _of_each(lookup, ids, known)
    if segments.shape != of_each.ids.shape:
        raise InvalidArgument(_at(lookup, "segment_ids and indices should have same size."))
    bad = first_descent(segments)
    if bad >= 0:
        what = "must be >= 0" if segments[bad] < 0 else "are not increasing"
        raise InvalidArgument(_at(lookup, f"segment ids {what}"))
    count = int(segments[-1]) + 1 if segments.size else 0
    if lookup.num_segments is not None:
        given = int(known[lookup.num_segments])
        if count > given:
            raise InvalidArgument(_at(lookup, "segment ids must be < num_segments"))
        count = given
    if count * table.row_bytes > MAX_RESULT_BYTES:
        raise ResourceExhausted(_at(lookup, f"{count} segments take more memory than allowed"))
    of_id = segments.astype(np.int32, copy=False)
    sizes = np.bincount(of_id, minlength=count)
    counted, bags = _bags(lookup, table, of_each, of_id, count)
    return Prepared(lookup, counted, bags, count, sizes, (count, *table.row_shape))


def _reduced(lookup: Lookup, table: Table, ids: Array, known: Mapping[str, Array]) -> Prepared:
    of_each = _of_each(lookup, ids, known)
    *outer, length = of_each.ids.shape
    count = math.prod(outer)
    of_id = np.repeat(np.arange(count, dtype=np.int32), length)
    counted, bags = _bags(lookup, table, of_each, of_id, count)
    kept = (1,) if lookup.keep_dims else ()
    shape = (*outer, *kept, *table.row_shape)
    return Prepared(lookup, counted, bags, count, int(length), shape)


@dataclass(frozen=True, slots=True)
class _OfEach:
    """Ids of any shape, and of that shape the weights and the mask, where the lookup has them."""

    ids: Array
    weights: Array | None
    mask: Array | None


def _of_each(lookup: Lookup, ids: Array, known: Mapping[str, Array]) -> _OfEach:
    """All broadcast to one shape; weights and mask come with a last axis, of size one, besides."""
    factors = [known[name][..., 0] for name in (lookup.weights, lookup.mask) if name is not None]
    wide = iter(_broadcast(lookup, ids, *factors) if factors else (ids,))
    ids = next(wide)
    weights = None if lookup.weights is None else next(wide)
    return _OfEach(ids, weights, None if lookup.mask is None else next(wide))


def _bags(
    lookup: Lookup, table: Table, of_each: _OfEach, of_id: Array, count: int
) -> tuple[Array, Bags]:
    """The ids that count, flat, and their bags: the rows of the others are not even asked for."""
    ids, weights = _int64(of_each.ids).reshape(-1), None
    if of_each.weights is not None:
        weights = np.ascontiguousarray(of_each.weights, table.dtype).reshape(-1)
    if of_each.mask is None:
        return ids, Bags(of_id, count, weights)
    counts = of_each.mask.reshape(-1) != lookup.mask_drops
    weights = None if weights is None else weights[counts]
    return ids[counts], Bags(of_id[counts], count, weights)


def _broadcast(lookup: Lookup, *arrays: Array) -> tuple[Array, ...]:
    try:
        return np.broadcast_arrays(*arrays)
    except ValueError:
        shapes = " vs. ".join(map(_dims, arrays))
        raise InvalidArgument(_at(lookup, f"Incompatible shapes: {shapes}")) from None


def _taken(lookup: Lookup, ids: Array, positions: Array) -> Array:
    bad = first_outside(positions.reshape(-1), ids.size)
    if bad >= 0:
        where = _place(positions, bad)
        raise InvalidArgument(
            _at(lookup, f"indices{where} = {positions.flat[bad]} is not in [0, {ids.size})")
        )
    return ids.reshape(-1)[positions]


def _check_ids(lookup: Lookup, table: Table, ids: Array) -> None:
    bad = first_outside(ids.reshape(-1), table.rows)
    if bad < 0:
        return
    value = ids.flat[bad]
    match lookup.bad_ids:
        case BadIds.GATHER:
            text = f"indices{_place(ids, bad)} = {value} is not in [0, {table.rows})"
        case BadIds.UNIQUE_GATHER:
            place = len(np.unique(ids.reshape(-1)[:bad]))
            text = f"indices[{place}] = {value} is not in [0, {table.rows})"
        case BadIds.SPARSE:
            text = f"Bad: indices[{bad}] == {value} out of range [0, {table.rows})"
    raise InvalidArgument(_at(lookup, text))


def _int64(array: Array) -> Array:
    """The array as the kernels take it; uint64 ids past int64 become negative, and are refused."""
    return np.asarray(array, np.int64, order="C")


def _place(array: Array, flat: int) -> str:
    """A flat position as TensorFlow prints it: [2], [0,1]; nothing for a scalar."""
    if array.ndim == 0:
        return ""
    return "[" + ",".join(str(i) for i in np.unravel_index(flat, array.shape)) + "]"


def _dims(array: Array) -> str:
    return "[" + ",".join(map(str, array.shape)) + "]"


def _at(lookup: Lookup, text: str) -> str:
    """The text with the node, in the form that TensorFlow gives kernel errors."""
    return f"{text}\n\t [[{{{{node {lookup.node}}}}}]]"
