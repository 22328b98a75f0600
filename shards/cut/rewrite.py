"""Takes the cut tables out of a graph: lookups become placeholders, shape questions constants."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

from tensorflow.core.framework import graph_pb2, node_def_pb2, types_pb2
from tensorflow.python.framework import dtypes, tensor_util

from shardserve.shards.cut.graph import (
    ITERATES,
    Graph,
    control_inputs,
    data_inputs,
    has_effect,
    may_write,
    split,
)


def without_tables(
    graph_def: graph_pb2.GraphDef,
    lookup_outputs: Mapping[str, str],
    shape_values: Mapping[str, tuple[int, ...]],
    tables: Iterable[str],
) -> graph_pb2.GraphDef:
    """The graph with no node left that touches a cut table.

    `lookup_outputs` maps each lookup's output tensor to its dtype's name, `shape_values` each
    tensor that asks for a table's shape to that shape, `tables` names the variable nodes.
    """
    graph = Graph(graph_def)
    cut = {split(t)[0]: _placeholder(split(t)[0], d) for t, d in lookup_outputs.items()}
    fixed = {
        split(t)[0]: shape_constant(graph.nodes[split(t)[0]], shape)
        for t, shape in shape_values.items()
    }
    kept = graph.downstream([*cut, *fixed])
    gone = graph.downstream(tables) - kept
    rewritten = _like(graph_def)
    # What a lookup waits for is made with its operands, in the ids stage: to wait for the lookup's
    # own nodes is to wait for nothing more.
    rewritten.node.extend(
        cut.get(name)
        or fixed.get(name)
        or with_controls(node, lambda c: c not in gone and c not in cut)
        for name, node in graph.nodes.items()
        if name not in gone
    )
    return rewritten


def drop_idle_controls(graph_def: graph_pb2.GraphDef) -> None:
    """Take out, in place, the control inputs that order nothing.

    Those order something that wait for an effect, or that keep a read before a write.

    TensorFlow puts every stateful op of a function, each read of a variable among them, before its
    outputs. Kept, they would run every stage's nodes in all later stages, and the gathers of tables
    that are not there.
    """
    effects = _Effects(Graph(graph_def))
    for node in graph_def.node:
        effects.prune(node)


def bypass_identity_n(graph_def: graph_pb2.GraphDef) -> None:
    """Let each node, in place, read what an IdentityN passes on from where that has it.

    One often passes on rows of a table and the table itself, which nothing reads there.
    """
    passing = {
        node.name: data_inputs(node)
        for node in graph_def.node
        if node.op == "IdentityN" and not control_inputs(node)
    }
    for node in graph_def.node if passing else ():
        for place, name in enumerate(node.input):
            op, slot = split(name)
            while op in passing:
                op, slot = split(passing[op][slot])
                node.input[place] = f"{op}:{slot}"


def pruned_to(graph_def: graph_pb2.GraphDef, tensors: Iterable[str]) -> graph_pb2.GraphDef:
    """Only the nodes that must be there to make `tensors`."""
    needed = Graph(graph_def).ancestors(tensors)
    pruned = _like(graph_def)
    pruned.node.extend(node for node in graph_def.node if node.name in needed)
    for node in pruned.node:
        _keep_colocations(node, needed)
    return pruned


def _like(graph_def: graph_pb2.GraphDef) -> graph_pb2.GraphDef:
    """An empty graph with the same function library and versions."""
    empty = graph_pb2.GraphDef()
    empty.library.CopyFrom(graph_def.library)
    empty.versions.CopyFrom(graph_def.versions)
    return empty


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

    def __init__(self, graph: Graph) -> None:
        self._graph = graph
        self._known: dict[str, bool] = {}
        self._before_writes = self._gates_of_writes()

    def _gates_of_writes(self) -> set[str]:
        """What may write, and what does nothing but to have it wait."""
        nodes, found = self._graph.nodes, set()
        pending = [name for name, n in nodes.items() if may_write(n, self._graph.library)]
        while pending:
            name = pending.pop()
            if name not in found:
                found.add(name)
                waited_for = control_inputs(nodes[name])
                pending.extend(c for c in waited_for if nodes[c].op in ("NoOp", "IdentityN"))
        return found

    def prune(self, node: node_def_pb2.NodeDef) -> None:
        """Take out of the node the control inputs that order nothing."""
        # A constant of a loop's body belongs to the loop by a control input alone.
        inside = self._graph.conditional
        controls = control_inputs(node)
        if not controls or node.name in self._before_writes:
            return
        kept = [name for name in controls if name in inside or self._matters(name)]
        if len(kept) < len(controls):
            data = [name for name in node.input if not name.startswith("^")]
            del node.input[:]
            node.input.extend([*data, *(f"^{name}" for name in kept)])

    def _matters(self, start: str) -> bool:
        pending = [start]
        while pending:
            name = pending[-1]
            if name in self._known:
                pending.pop()
                continue
            node = self._graph.nodes[name]
            sources = [split(i.removeprefix("^"))[0] for i in node.input]
            if has_effect(node, self._graph.library) or any(
                self._known.get(source) for source in sources
            ):
                self._known[name] = True
            elif node.op in ITERATES:
                self._known[name] = False
            else:
                unknown = [source for source in sources if source not in self._known]
                if unknown:
                    pending.extend(unknown)
                    continue
                self._known[name] = False
            pending.pop()
        return self._known[start]


def with_controls(
    node: node_def_pb2.NodeDef, wanted: Callable[[str], bool]
) -> node_def_pb2.NodeDef:
    """The node with only those control inputs."""
    controls = control_inputs(node)
    kept = [name for name in controls if wanted(name)]
    if len(kept) == len(controls):
        return node
    copy = node_def_pb2.NodeDef()
    copy.CopyFrom(node)
    del copy.input[:]
    copy.input.extend(name for name in node.input if not name.startswith("^"))
    copy.input.extend(f"^{name}" for name in kept)
    return copy


def _placeholder(name: str, dtype: str) -> node_def_pb2.NodeDef:
    node = node_def_pb2.NodeDef(name=name, op="Placeholder")
    node.attr["dtype"].type = dtypes.as_dtype(dtype).as_datatype_enum
    node.attr["shape"].shape.unknown_rank = True
    return node


def shape_constant(asked: node_def_pb2.NodeDef, shape: tuple[int, ...]) -> node_def_pb2.NodeDef:
    """What takes the place of a node that asks for a table's shape."""
    out_type = asked.attr["out_type"].type or types_pb2.DT_INT32
    node = node_def_pb2.NodeDef(name=asked.name, op="Const")
    node.attr["dtype"].type = out_type
    node.attr["value"].tensor.CopyFrom(
        tensor_util.make_tensor_proto(shape, dtype=dtypes.as_dtype(out_type))
    )
    return node
