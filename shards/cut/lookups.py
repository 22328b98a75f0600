"""A lookup: what one place of a graph takes out of one table. Plain data."""

from __future__ import annotations

import enum
from dataclasses import dataclass


class Motif(enum.StrEnum):
    """The graph pattern that a lookup replaces; `T` is the table, lower case are tensors.

    GATHER           gather(T, ids)                                     ids of any shape
    SEGMENT_POOL     segment_<combiner>(rows, segments)
    REDUCE_POOL      reduce_<combiner>(rows, last axis of ids)

    rows             gather(T, ids) [* weights], or where(mask, gather(T, ids) [* weights], zeros)
    """

    GATHER = "gather"
    SEGMENT_POOL = "segment_pool"
    REDUCE_POOL = "reduce_pool"


class Combiner(enum.StrEnum):
    """How a bag's rows become one: the sum, over their number (mean) or over its root (sqrtn)."""

    SUM = "sum"
    MEAN = "mean"
    SQRTN = "sqrtn"


class BadIds(enum.StrEnum):
    """Which of TensorFlow's two wordings a bad id gets: a gather's, or a fused sparse lookup's."""

    GATHER = "gather"
    UNIQUE_GATHER = "unique_gather"
    SPARSE = "sparse"


@dataclass(frozen=True)
class Lookup:
    """One lookup. Every string but `table` and `node` names a tensor of the graph ("op:0").

    `output` is the tensor that the lookup's result replaces. The ids are `ids`, or, where `take`
    is set, the elements of `ids` at the positions `take`. SEGMENT_POOL reads `segments`, one for
    each id, never falling, and `num_segments` (a scalar) where the node has it; otherwise the last
    segment tells their number. `weights` has one element for each id, whatever its shape, or
    broadcasts to that; so has `mask` (bool), of which rows that are not true count as zeros, or,
    with `mask_drops`, those that are. With `keep_dims` a REDUCE_POOL keeps the pooled axis, of size
    one.

    `node` is the gather that reads the table, for error texts; `bad_ids` is how it words them.
    """

    output: str
    table: str
    node: str
    motif: Motif
    ids: str
    take: str | None = None
    combiner: Combiner = Combiner.SUM
    segments: str | None = None
    num_segments: str | None = None
    weights: str | None = None
    mask: str | None = None
    mask_drops: bool = False
    keep_dims: bool = False
    bad_ids: BadIds = BadIds.GATHER

    @property
    def operands(self) -> tuple[str, ...]:
        """The tensors that must be known before the lookup can be made."""
        factors = (self.weights, self.mask)
        named = (self.ids, self.take, self.segments, self.num_segments, *factors)
        return tuple(tensor for tensor in named if tensor is not None)
