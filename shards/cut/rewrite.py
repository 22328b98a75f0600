"""Takes the cut tables out of a graph: lookups become placeholders, shape questions constants."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping

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


def take_out_tables(
    graph_def: graph_pb2.GraphDef,
    lookup_outputs: Mapping[str, str],
    shape_values: Mapping[str, tuple[int, ...]],
    tables: Iterable[str],
) -> None:
    """Leave, in place, no node that touches a cut table.

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
    for name, made in {**fixed, **cut}.items():
        graph.nodes[name].CopyFrom(made)
    keep_nodes(graph_def, graph.nodes.keys() - gone)
    # What a lookup waits for is made with its operands, in the ids stage: to wait for the lookup's
    # own nodes is to wait for nothing more.
    for node in graph_def.node:
        keep_controls(node, lambda control: control not in gone and control not in cut)


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


def prune(graph_def: graph_pb2.GraphDef, tensors: Iterable[str]) -> None:
    """Keep, in place, only the nodes that must be there to make `tensors`."""
    needed = Graph(graph_def).ancestors(tensors)
    keep_nodes(graph_def, needed)
    for node in graph_def.node:
        _keep_colocations(node, needed)


def keep_nodes(graph_def: graph_pb2.GraphDef, names: Collection[str]) -> None:
    """Keep, in place and in their order, only the nodes of these names, all of which are there.

    A copy of a large graph would take as much memory again.
    """
    if len(names) < len(graph_def.node):
        # A sort is stable, and moves no node's bytes.
        graph_def.node.sort(key=lambda node: node.name not in names)
        del graph_def.node[len(names) :]


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
        if node.name in self._before_writes:
            return
        keep_controls(node, lambda name: name in inside or self._matters(name))

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


def keep_controls(node: node_def_pb2.NodeDef, wanted: Callable[[str], bool]) -> None:
    """Keep, in place, only those control inputs."""
    controls = control_inputs(node)
    kept = [name for name in controls if wanted(name)]
    if len(kept) < len(controls):
        data = [name for name in node.input if not name.startswith("^")]
        node.input[:] = [*data, *(f"^{name}" for name in kept)]


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
