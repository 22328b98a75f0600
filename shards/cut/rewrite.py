"""Takes the cut tables out of a graph: lookups become placeholders, shape questions constants."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from tensorflow.core.framework import graph_pb2, node_def_pb2, types_pb2
from tensorflow.python.framework import dtypes, tensor_util

from shardserve.shards.cut.graph import Graph, control_inputs, has_effect, split


def without_tables(
    graph_def: graph_pb2.GraphDef,
    lookup_outputs: Mapping[str, str],
    shape_values: Mapping[str, tuple[int, ...]],
    tables: Iterable[str],
) -> graph_pb2.GraphDef:
    """The graph with no node left that touches a cut table.

    `lookup_outputs` maps each lookup's output tensor to its dtype's name, `shape_values` each
    tensor that asks for a table's shape to that shape, `tables` names the variable nodes. Control
    inputs that order nothing with an effect are dropped: TensorFlow puts every stateful op, the
    gathers among them, before every output, which would run each stage's nodes in all later ones.
    """
    graph = Graph(graph_def)
    cut = {split(t)[0]: _placeholder(split(t)[0], d) for t, d in lookup_outputs.items()}
    fixed = {
        split(t)[0]: _constant(graph.nodes[split(t)[0]], shape) for t, shape in shape_values.items()
    }
    gone = graph.downstream(tables, frozenset()) - graph.downstream([*cut, *fixed], frozenset())
    gone -= cut.keys() | fixed.keys()
    effects = _Effects(graph, cut.keys() | fixed.keys() | gone)
    rewritten = graph_pb2.GraphDef()
    rewritten.versions.CopyFrom(graph_def.versions)
    rewritten.library.CopyFrom(graph_def.library)
    for name, node in graph.nodes.items():
        if name in gone:
            continue
        rewritten.node.append(cut.get(name) or fixed.get(name) or effects.pruned(node))
    return rewritten


def pruned_to(graph_def: graph_pb2.GraphDef, tensors: Iterable[str]) -> graph_pb2.GraphDef:
    """Only the nodes that must be there to make `tensors`."""
    needed = Graph(graph_def).ancestors(tensors)
    pruned = graph_pb2.GraphDef()
    pruned.node.extend(node for node in graph_def.node if node.name in needed)
    pruned.library.CopyFrom(graph_def.library)
    pruned.versions.CopyFrom(graph_def.versions)
    for node in pruned.node:
        _keep_colocations(node, needed)
    return pruned


def _keep_colocations(node: node_def_pb2.NodeDef, present: set[str]) -> None:
    """Drop wishes to be placed beside a node that is not there."""
    if "_class" not in node.attr:
        return
    wishes = [w for w in node.attr["_class"].list.s if w.decode().removeprefix("loc:@") in present]
    if wishes:
        node.attr["_class"].list.s[:] = wishes
    else:
        del node.attr["_class"]


class _Effects:
    """Which nodes have, or follow from, an effect; the answer is kept for each."""

    def __init__(self, graph: Graph, harmless: Iterable[str]) -> None:
        self._graph = graph
        self._known = dict.fromkeys(harmless, False)
        # A constant of a loop's body belongs to the loop by a control input alone.
        self._known.update(dict.fromkeys(graph.conditional, True))

    def pruned(self, node: node_def_pb2.NodeDef) -> node_def_pb2.NodeDef:
        """The node without the control inputs that order nothing."""
        controls = control_inputs(node)
        if not controls:
            return node
        copy = node_def_pb2.NodeDef()
        copy.CopyFrom(node)
        del copy.input[:]
        copy.input.extend(name for name in node.input if not name.startswith("^"))
        copy.input.extend(f"^{name}" for name in controls if self._matters(name))
        return copy

    def _matters(self, start: str) -> bool:
        pending = [start]
        while pending:
            name = pending[-1]
            if name in self._known:
                pending.pop()
                continue
            node = self._graph.nodes[name]
            sources = [split(i.removeprefix("^"))[0] for i in node.input]
            if has_effect(node) or any(self._known.get(source) for source in sources):
                self._known[name] = True
            elif node.op == "NextIteration":
                self._known[name] = False
            else:
                unknown = [source for source in sources if source not in self._known]
                if unknown:
                    pending.extend(unknown)
                    continue
                self._known[name] = False
            pending.pop()
        return self._known[start]


def _placeholder(name: str, dtype: str) -> node_def_pb2.NodeDef:
    node = node_def_pb2.NodeDef(name=name, op="Placeholder")
    node.attr["dtype"].type = dtypes.as_dtype(dtype).as_datatype_enum
    node.attr["shape"].shape.unknown_rank = True
    return node


def _constant(asked: node_def_pb2.NodeDef, shape: tuple[int, ...]) -> node_def_pb2.NodeDef:
    out_type = asked.attr["out_type"].type or types_pb2.DT_INT32
    node = node_def_pb2.NodeDef(name=asked.name, op="Const")
    node.attr["dtype"].type = out_type
    node.attr["value"].tensor.CopyFrom(
        tensor_util.make_tensor_proto(shape, dtype=dtypes.as_dtype(out_type))
    )
    return node
