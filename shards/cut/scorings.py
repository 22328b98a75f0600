"""A scoring: a matrix product with one table, and what is picked from it. Plain data."""

from __future__ import annotations

import enum
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace

from shardserve.shards.cut.lookups import Lookup
from shardserve.shards.cut.regions import RegionCall
from shardserve.shards.messages import Axis


class Pick(enum.StrEnum):
    """What becomes of the scores [..., classes]."""

    ALL = "scores"
    TOP_K = "top_k"
    ARG_MAX = "arg_max"


class Scale(enum.StrEnum):
    """What is done to scores, over all classes, before the best are picked."""

    NONE = "none"
    SOFTMAX = "softmax"
    LOG_SOFTMAX = "log_softmax"


@dataclass(frozen=True)
class Scoring:
    """Queries times the table T, [classes, width] or [width, classes] as `axis` says.

    `queries` is a matrix, or a batch of them, [..., n, width], or [..., width, n] where it is
    `transposed`; of rank `rank`, where that is fixed. The scores, [..., n, classes], take the place
    of the tensor `output`, or, where the graph has the table first (`table_first`), their transpose
    does, [..., classes, n].

    With a pick other than ALL, what is replaced is [..., n, k] of the best (`indices` besides,
    of `index_dtype`) or [..., n] of the best one's number, of `index_dtype`, after `bias`
    [classes] was added and `scale` applied; of a `table_first` product n is 1, and left out.

    Strings are tensors of the graph, but for `table`, and for `node`, the node at which the graph
    is cut: the product itself, or what picks from it. `product` is the product's node.
    """

    output: str
    table: str
    node: str
    product: str
    queries: str
    axis: Axis
    transposed: bool = False
    table_first: bool = False
    rank: int | None = 2
    pick: Pick = Pick.ALL
    k: int = 0
    bias: str | None = None
    scale: Scale = Scale.NONE
    indices: str | None = None
    index_dtype: str = "int32"

    @property
    def operands(self) -> tuple[str, ...]:
        """The tensors that must be known before the scoring can be made; the queries first."""
        return (self.queries,) if self.bias is None else (self.queries, self.bias)

    @property
    def outputs(self) -> tuple[str, ...]:
        """The tensors that the scoring makes known."""
        return (self.output,) if self.indices is None else (self.output, self.indices)

    def output_dtypes(self, dtype: str) -> dict[str, str]:
        """The outputs and their dtypes, over a table of `dtype`."""
        if self.pick is Pick.ARG_MAX:
            return {self.output: self.index_dtype}
        return dict(zip(self.outputs, (dtype, self.index_dtype), strict=False))

    def with_operands(self, known: Mapping[str, str]) -> Scoring:
        """The same with its operands under other names."""
        bias = None if self.bias is None else known[self.bias]
        return replace(self, queries=known[self.queries], bias=bias)

    def __str__(self) -> str:
        text = "scores" if self.bias is None else "scores + bias"
        if self.scale is not Scale.NONE:
            text = f"{self.scale} of {text}"
        match self.pick:
            case Pick.ALL:
                return text
            case Pick.TOP_K:
                return f"top {self.k} of {text}"
            case Pick.ARG_MAX:
                return f"arg max of {text}"


#: All that a round may ask of tables.
AnyLookup = Lookup | Scoring
#: All that may be between two stages.
AnyCall = AnyLookup | RegionCall


#: An output layer has far more classes than it is wide; a hidden layer seldom four times as many.
OUTPUT_LAYER_RATIO = 8


def hidden_layer(lookups: Collection[AnyLookup], shape: tuple[int, ...]) -> str | None:
    """Why a table of that shape is not worth a round of its own, if these are all its lookups."""
    for one in lookups:
        if isinstance(one, Lookup):
            return None
        if shape[one.axis] >= OUTPUT_LAYER_RATIO * shape[1 - one.axis]:
            return None
    return f"it is a hidden layer: {shape[0]} x {shape[1]}, and not named"


def outputs_of(call: AnyCall) -> tuple[str, ...]:
    """The tensors that a lookup or a region makes known."""
    return (call.output,) if isinstance(call, Lookup) else call.outputs
