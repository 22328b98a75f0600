"""Recognises what rows go through before they are pooled: one weight for each, then a mask.

    [where(mask, ] rows [* weights] [, zeros)]

Both are [..., 1] over whole rows, and whatever else may be known before the rows are.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from tensorflow.core.framework.node_def_pb2 import NodeDef

from shardserve.shards.cut.graph import GATHERS, data_inputs, tensor
from shardserve.shards.cut.shapes import ShapedGraph

#: The operations that weigh and mask rows.
SCALING = frozenset({"Mul", "SelectV2"})
#: The slots of SelectV2 that are chosen from, each with the other.
_OTHER = {1: 2, 2: 1}


@dataclass(frozen=True)
class Scaled:
    """The tensor `rows`, and the weights and the mask that made it of a gather's rows.

    The mask has true for rows that count, or, if it `mask_drops`, for those that do not.
    """

    rows: str
    weights: str | None = None
    mask: str | None = None
    mask_drops: bool = False


class ScalingFinder:
    """Finds weights and masks in one graph, among the nodes `live` only."""

    def __init__(self, graph: ShapedGraph, live: set[str]) -> None:
        self._graph = graph
        self._live = live

    def of(self, rows: str, shape: tuple[int, ...]) -> Scaled:
        """What is done to the rows (a tensor) of a table of that shape, as far as it is known."""
        if len(shape) != 2:
            return Scaled(rows)
        return self._masked(self._weighted(Scaled(rows), shape[1]))

    def only_use(self, tensor_name: str) -> tuple[NodeDef, int] | None:
        """The node and slot that alone read a tensor; None if it is an output besides."""
        uses = self._uses(tensor_name)
        return uses[0] if len(uses) == 1 else None

    def _uses(self, tensor_name: str) -> list[tuple[NodeDef, int]]:
        """What reads a tensor; nothing if a signature or a branch may read it, too."""
        graph = self._graph
        uses = [use for use in graph.consumers(tensor_name) if use[0].name in self._live]
        fetched = any(t in graph.outputs for t in graph.passed_on(tensor_name))
        inner = any(node.name in graph.conditional for node, _ in uses)
        return [] if fetched or inner else uses

    def _weighted(self, rows: Scaled, width: int) -> Scaled:
        node, slot = self.only_use(rows.rows) or (None, 0)
        if node is None or node.op != "Mul":
            return rows
        weights = data_inputs(node)[1 - slot]
        if not self._one_per_row(weights, rows.rows) or self._are_rows(weights, width):
            return rows
        return replace(rows, rows=tensor(node.name), weights=weights)

    def _masked(self, rows: Scaled) -> Scaled:
        uses = self._uses(rows.rows)
        selects = [(node, slot) for node, slot in uses if node.op == "SelectV2"]
        if len(selects) != 1:
            return rows
        node, slot = selects[0]
        mask, other = data_inputs(node)[0], data_inputs(node)[_OTHER[slot]]
        if not self._one_per_row(mask, rows.rows) or not self._is_zero(other, rows.rows):
            return rows
        beside = [tensor(one.name) for one, _ in uses if one is not node]
        if any(self.only_use(one) != (node, _OTHER[slot]) for one in beside):
            return rows
        return replace(rows, rows=tensor(node.name), mask=mask, mask_drops=slot == 2)

    def _is_zero(self, other: str, rows: str) -> bool:
        """Whether it is zeros, and no wider than the rows."""
        graph = self._graph
        node = graph.node(graph.resolve(other))
        if node.op == "ZerosLike":
            return graph.resolve(data_inputs(node)[0]) == graph.resolve(rows)
        value, shape = graph.constant(other), graph.shape(rows)
        if value is None or value.any():
            return False
        if shape is None or value.ndim > len(shape):
            return bool(value.ndim == 0)
        trailing = shape[len(shape) - value.ndim :]
        return all(mine in (1, its) for mine, its in zip(value.shape, trailing, strict=True))

    def _are_rows(self, weights: str, width: int) -> bool:
        """Whether the weights come from a gather whose rows these could weigh as well.

        Of two such gathers each could be pooled by the other's rows, but not both.
        """
        if width > 1:
            return False
        above = self._graph.ancestors([weights])
        return any(self._graph.nodes[name].op in GATHERS for name in above)

    def _one_per_row(self, factor: str, rows: str) -> bool:
        """Whether it is [..., 1] over whole rows, and has no more axes than they have."""
        if self._spread_over_ones(factor):
            return True
        shape, rank = self._graph.shape(factor), self._graph.rank(rows)
        return shape is not None and len(shape) == rank and shape[-1] == 1

    def _spread_over_ones(self, weights: str) -> bool:
        """The form that embedding_lookup_sparse makes: reshape(w, concat(shape(w), ones))."""
        graph = self._graph
        node = graph.node(graph.resolve(weights))
        if node.op != "Reshape":
            return False
        source, shape = data_inputs(node)
        concat = graph.node(graph.resolve(shape))
        if concat.op != "ConcatV2" or graph.rank(source) not in (None, 1):
            return False
        head, tail = (graph.node(graph.resolve(t)) for t in data_inputs(concat)[:2])
        return (
            head.op == "Shape"
            and graph.resolve(data_inputs(head)[0]) == graph.resolve(source)
            and tail.op == "Fill"
            and graph.constant(data_inputs(tail)[1]) == 1
        )
