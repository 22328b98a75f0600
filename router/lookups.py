"""One lookup's operands into ids and bags, checked as TensorFlow's CPU kernels check them. Pure."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from shardserve.batching.errors import InvalidArgument, ResourceExhausted
from shardserve.router.merge import divided
from shardserve.router.partition import Bags
from shardserve.router.split_kernels import first_descent, first_outside
from shardserve.shards.cut.lookups import BadIds, Lookup, Motif
from shardserve.shards.tables import Table

Array = npt.NDArray[Any]

MAX_RESULT_BYTES = (1 << 31) - 1


@dataclass(frozen=True, slots=True)
class Prepared:
    """A lookup ready to be split: ids (int64 [n]) within the table, bags for a pooled one.

    `count` rows come back, to be divided by `sizes` (one for each bag, or one for all) and given
    `shape`.
    """

    lookup: Lookup
    ids: Array
    bags: Bags | None
    count: int
    sizes: Array | int
    shape: tuple[int, ...]

    @property
    def size(self) -> int:
        """Ids to split, and to merge the answers for."""
        return len(self.ids)

    def finished(self, merged: Array, dtype: np.dtype[Any]) -> Array:
        """The tensor that takes the lookup's place in the graph, from the merged rows or sums."""
        if self.bags is not None:
            merged = divided(merged, self.sizes, self.lookup.combiner)
        return merged.view(dtype).reshape(self.shape)


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
    segments = _int64(known[lookup.segments])
    if segments.shape != ids.shape:
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
    weights = _weights(lookup, table, ids, known)
    sizes = np.bincount(of_id, minlength=count)
    shape = (count, *table.row_shape)
    return Prepared(lookup, ids, Bags(of_id, count, weights), count, sizes, shape)


def _reduced(lookup: Lookup, table: Table, ids: Array, known: Mapping[str, Array]) -> Prepared:
    weights = None
    if lookup.weights is not None:
        spread = known[lookup.weights][..., 0]
        ids, weights = _broadcast(lookup, ids, spread)
        ids = _int64(ids)
        weights = np.ascontiguousarray(weights, table.dtype).reshape(-1)
    *outer, length = ids.shape
    count = math.prod(outer)
    of_id = np.repeat(np.arange(count, dtype=np.int32), length)
    kept = (1,) if lookup.keep_dims else ()
    shape = (*outer, *kept, *table.row_shape)
    bags = Bags(of_id, count, weights)
    return Prepared(lookup, ids.reshape(-1), bags, count, int(length), shape)


def _weights(lookup: Lookup, table: Table, ids: Array, known: Mapping[str, Array]) -> Array | None:
    if lookup.weights is None:
        return None
    flat = known[lookup.weights].reshape(-1)
    _, weights = _broadcast(lookup, ids, flat)
    return np.ascontiguousarray(weights, table.dtype)


def _broadcast(lookup: Lookup, ids: Array, weights: Array) -> tuple[Array, Array]:
    try:
        wide = np.broadcast_arrays(ids, weights)
    except ValueError:
        raise InvalidArgument(
            _at(lookup, f"Incompatible shapes: {_dims(ids)} vs. {_dims(weights)}")
        ) from None
    return wide[0], wide[1]


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
