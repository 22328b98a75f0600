"""Recognises a matrix product with a table, and what is picked from its scores.

    [top_k | arg_max] ( [softmax | log_softmax] ( matmul(queries, T) [+ bias] ) )

What picks must be the only use of all that lies between. Where anything is not exactly so, the
scores themselves are what the cut replaces.
"""

from __future__ import annotations

from dataclasses import replace

from tensorflow.core.framework.node_def_pb2 import NodeDef
from tensorflow.python.framework import dtypes

from shardserve.shards.cut.graph import data_inputs, tensor
from shardserve.shards.cut.scorings import Pick, Scale, Scoring
from shardserve.shards.cut.shapes import ShapedGraph
from shardserve.shards.halves import PRODUCTS
from shardserve.shards.messages import Axis

#: The products, and the attributes that transpose their operands.
_PRODUCTS = {
    "MatMul": ("transpose_a", "transpose_b"),
    "BatchMatMul": ("adj_x", "adj_y"),
    "BatchMatMulV2": ("adj_x", "adj_y"),
}
_SCALES = {"Softmax": Scale.SOFTMAX, "LogSoftmax": Scale.LOG_SOFTMAX}
_SCALED_DTYPES = frozenset({"float32", "float64"})
_VARIABLES = frozenset({"ReadVariableOp", "VariableV2", "Variable"})


class ScoreFinder:
    """Finds scorings in one graph, among the nodes `live` only."""

    def __init__(self, graph: ShapedGraph, live: set[str]) -> None:
        self._graph = graph
        self._live = live

    def scoring(
        self, node: NodeDef, slot: int, name: str, dtype: str, shape: tuple[int, ...]
    ) -> Scoring | None:
        """The scoring that `node` is, reading the table in that slot; None if it is none.

        The table is called `name` and has `shape`.
        """
        if dtype not in PRODUCTS or len(shape) != 2 or node.name in self._graph.conditional:
            return None
        found = _einsum(node, slot, name) if node.op == "Einsum" else _product(node, slot, name)
        # The product of two variables is itself a constant.
        if found is None or self._graph.node(self._graph.resolve(found.queries)).op in _VARIABLES:
            return None
        return self._picked(found, dtype, shape[found.axis]) or found

    def _picked(self, found: Scoring, dtype: str, classes: int) -> Scoring | None:
        use = self._only_use(found.output)
        if use is not None and found.table_first:
            use = self._squeezed(use)
        if use is None:
            return None
        bias = self._bias(*use, classes)
        if bias is not None:
            found = replace(found, bias=bias)
            use = self._only_use(tensor(use[0].name))
        if use is not None and use[0].op in _SCALES and dtype in _SCALED_DTYPES:
            found = replace(found, scale=_SCALES[use[0].op])
            use = self._only_use(tensor(use[0].name))
        if use is None or use[1] != 0:
            return None
        return self._top_k(found, use[0], classes) or self._arg_max(found, use[0])

    def _squeezed(self, use: tuple[NodeDef, int]) -> tuple[NodeDef, int] | None:
        """The only use of [..., classes, 1] without its last axis."""
        node, _ = use
        if node.op != "Squeeze" or not self._is_last(node, list(node.attr["squeeze_dims"].list.i)):
            return None
        return self._only_use(tensor(node.name))

    def _bias(self, node: NodeDef, slot: int, classes: int) -> str | None:
        inputs = data_inputs(node)
        if node.op == "BiasAdd":
            added = inputs[1] if slot == 0 and node.attr["data_format"].s != b"NCHW" else None
        else:
            added = inputs[1 - slot] if node.op in ("Add", "AddV2") else None
        if added is None or self._graph.shape(added) != (classes,):
            return None
        return added

    def _top_k(self, found: Scoring, node: NodeDef, classes: int) -> Scoring | None:
        if node.op != "TopKV2" or not node.attr["sorted"].b:
            return None
        k = self._graph.constant(data_inputs(node)[1])
        if k is None or not 1 <= int(k) <= classes:
            return None
        # The outputs as `picks.separate_outputs` names them.
        return replace(
            found,
            output=tensor(f"{node.name}/cut/values"),
            indices=tensor(f"{node.name}/cut/indices"),
            index_dtype=_type(node, "index_type"),
            node=node.name,
            pick=Pick.TOP_K,
            k=int(k),
        )

    def _arg_max(self, found: Scoring, node: NodeDef) -> Scoring | None:
        if node.op != "ArgMax":
            return None
        axis = self._graph.constant(data_inputs(node)[1])
        if axis is None or not self._is_last(node, [int(axis)]):
            return None
        return replace(
            found,
            output=tensor(node.name),
            index_dtype=_type(node, "output_type"),
            node=node.name,
            pick=Pick.ARG_MAX,
            k=1,
        )

    def _is_last(self, node: NodeDef, axes: list[int]) -> bool:
        """Whether these are the one axis that is the last of the node's first input."""
        rank = self._graph.rank(data_inputs(node)[0])
        return axes == [-1] or (rank is not None and axes == [rank - 1])

    def _only_use(self, tensor_name: str) -> tuple[NodeDef, int] | None:
        graph = self._graph
        uses = [use for use in graph.consumers(tensor_name) if use[0].name in self._live]
        fetched = any(t in graph.outputs for t in graph.passed_on(tensor_name))
        if len(uses) != 1 or fetched or uses[0][0].name in graph.conditional:
            return None
        return uses[0]


def _product(node: NodeDef, slot: int, table: str) -> Scoring | None:
    if node.op not in _PRODUCTS:
        return None
    flips = [bool(node.attr[attribute].b) for attribute in _PRODUCTS[node.op]]
    table_first = slot == 0
    return Scoring(
        output=tensor(node.name),
        table=table,
        node=node.name,
        product=node.name,
        queries=data_inputs(node)[1 - slot],
        axis=Axis.ROWS if flips[slot] != table_first else Axis.COLUMNS,
        transposed=flips[1 - slot] != table_first,
        table_first=table_first,
        rank=2 if node.op == "MatMul" else None,
    )


def _einsum(node: NodeDef, slot: int, table: str) -> Scoring | None:
    """An equation such as "bd,nd->bn", "dn,bqd->bqn": the last axis of one operand summed over."""
    operands, _, made = node.attr["equation"].s.decode().replace(" ", "").partition("->")
    labels = operands.split(",")
    if len(labels) != 2 or "." in operands:
        return None
    of_table, of_queries = labels[slot], labels[1 - slot]
    outer, summed = of_queries[:-1], of_queries[-1:]
    classes = of_table.replace(summed, "")
    unique = len(set(of_queries)) == len(of_queries) and classes not in of_queries
    if len(of_table) != 2 or len(classes) != 1 or not outer or not unique:
        return None
    if made != outer + classes:
        return None
    return Scoring(
        output=tensor(node.name),
        table=table,
        node=node.name,
        product=node.name,
        queries=data_inputs(node)[1 - slot],
        axis=Axis(of_table.index(classes)),
        rank=len(of_queries),
    )


def _type(node: NodeDef, attribute: str) -> str:
    default = "int64" if attribute == "output_type" else "int32"
    kind = node.attr[attribute].type
    return dtypes.as_dtype(kind).name if kind else default
