"""Puts gates where regions begin and end: nodes that pass a value on unless they are fed another.

A stage that is fed a region's results then needs nothing of the region, and the region's own
program, fed its inputs, nothing of what is before them. Motifs do not reach across a gate.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, replace

from tensorflow.core.framework import graph_pb2, types_pb2
from tensorflow.core.framework.node_def_pb2 import NodeDef

from shardserve.batching.errors import InvalidArgument
from shardserve.shards.cut.enclosed import PLACEHOLDERS, Enclosed, Ends, enclosed
from shardserve.shards.cut.graph import Graph, control_inputs, data_inputs, split
from shardserve.shards.cut.op_outputs import output_type
from shardserve.shards.cut.shapes import ShapedGraph

_NOT_FED = frozenset({types_pb2.DT_RESOURCE, types_pb2.DT_VARIANT})


@dataclass(frozen=True)
class Gated:
    """A region with its gates, tensors in the order of its entries and of its outputs.

    `nodes` are those inside.
    """

    ends: Ends
    entries: tuple[str, ...]
    outputs: tuple[str, ...]
    nodes: frozenset[str]


class Gating:
    """Gates one region after the other, in place; `wanted` are the signatures' output tensors.

    `moved` has, for the outputs of regions, the tensors that have their values outside.
    """

    def __init__(self, graph_def: graph_pb2.GraphDef, wanted: Collection[str]) -> None:
        self._graph_def = graph_def
        self._wanted = list(wanted)
        self.moved: dict[str, str] = {}

    def outside(self, ends: Ends) -> Ends:
        """The same ends as what is outside of the regions gated so far sees them."""
        return replace(
            ends,
            inputs=self._moved(ends.inputs),
            captured=self._moved(ends.captured),
            outputs=self._moved(ends.outputs),
        )

    def gate(self, ends: Ends) -> Gated:
        """Gate one region; `ends` are as seen from outside.

        Raises InvalidArgument as `enclosed` does, and for a tensor in a loop or a branch, or of a
        kind that cannot be fed.
        """
        graph = ShapedGraph(self._graph_def, ())
        inside = enclosed(graph, ends, self._moved(self._wanted))
        for name in (*ends.entries, *ends.outputs):
            _check_can_be_fed(graph, ends, name)
        before = list(graph.nodes.values())
        awaited = _awaited(graph, inside)
        outputs = {
            name: self._gate(graph, f"{ends.name}/output_{n}", name, inside.effects)
            for n, name in enumerate(ends.outputs)
        }
        after = self._after(ends.name, next(iter(outputs.values())))
        for node in before:
            if node.name in inside.fixed:
                # It is needed outside as well, perhaps; the region's own ends wait for these.
                _wait_instead(node, {*inside.nodes, *awaited}, ())
            elif node.name not in inside.nodes:
                _read_instead(node, outputs)
                _wait_instead(node, inside.nodes, [after])
        entries = {
            name: self._gate(graph, f"{ends.name}/input_{n}", name, awaited)
            for n, name in enumerate(ends.entries)
        }
        for name in inside.nodes:
            _read_instead(graph.nodes[name], entries)
            _wait_instead(graph.nodes[name], awaited, ())
        self.moved = {t: outputs.get(there, there) for t, there in self.moved.items()} | outputs
        return Gated(ends, tuple(entries.values()), tuple(outputs.values()), inside.nodes)

    def _moved(self, names: Iterable[str]) -> tuple[str, ...]:
        return tuple(self.moved.get(name, name) for name in names)

    def _gate(self, graph: ShapedGraph, name: str, source: str, awaited: Collection[str]) -> str:
        """A gate behind `source`, that waits for nodes."""
        kind = output_type(graph.node(source), split(source)[1])
        shape = graph.shape(source)
        if awaited:
            waits = self._add("Identity", f"{name}_awaited", [source, *_controls(awaited)])
            waits.attr["T"].type = kind
            source = f"{waits.name}:0"
        gate = self._add("PlaceholderWithDefault", name, [source])
        gate.attr["dtype"].type = kind
        gate.attr["shape"].shape.unknown_rank = shape is None
        for axis, size in enumerate(shape or ()):
            # Joined, there are more rows than one request has.
            known = size is not None and axis > 0
            gate.attr["shape"].shape.dim.add(size=size if known else -1)
        return f"{gate.name}:0"

    def _after(self, name: str, gate: str) -> str:
        """What to wait for outside of a region, instead of for a node inside."""
        (dtype,) = [n.attr["dtype"].type for n in self._graph_def.node if f"{n.name}:0" == gate]
        node = self._add("Identity", f"{name}/after", [gate])
        node.attr["T"].type = dtype
        return str(node.name)

    def _add(self, op: str, name: str, inputs: Iterable[str]) -> NodeDef:
        taken = {node.name for node in self._graph_def.node}
        while name in taken:
            name += "_"
        node = self._graph_def.node.add(name=name, op=op)
        node.input.extend(inputs)
        return node


def _check_can_be_fed(graph: Graph, ends: Ends, name: str) -> None:
    node = graph.node(name)
    where = f"region {ends.name!r}: {name}"
    if node.name in graph.conditional:
        raise InvalidArgument(f"{where} is in a loop or a branch, where it cannot be fed")
    if output_type(node, split(name)[1]) in _NOT_FED:
        raise InvalidArgument(f"{where} is a handle, which cannot be fed")


def _awaited(graph: Graph, inside: Enclosed) -> tuple[str, ...]:
    """Nodes outside that follow from a signature's input, for which nodes inside wait."""
    waiting = [graph.nodes[name] for name in (*inside.nodes, *inside.fixed)]
    waited = {c for node in waiting for c in control_inputs(node) if c not in inside.nodes}
    return tuple(sorted(name for name in waited if _follows_from_signature(graph, name)))


def _follows_from_signature(graph: Graph, name: str) -> bool:
    return any(graph.nodes[above].op in PLACEHOLDERS for above in graph.ancestors([name]))


def _controls(names: Iterable[str]) -> list[str]:
    return [f"^{name}" for name in names]


def _read_instead(node: NodeDef, other: Mapping[str, str]) -> None:
    """Read those tensors instead of these."""
    data = data_inputs(node)
    if any(source in other for source in data):
        controls = _controls(control_inputs(node))
        del node.input[:]
        node.input.extend([*(other.get(source, source) for source in data), *controls])


def _wait_instead(node: NodeDef, these: Collection[str], others: Iterable[str]) -> None:
    """Wait for `others` instead of for nodes of `these`."""
    controls = control_inputs(node)
    if any(name in these for name in controls):
        kept = [name for name in controls if name not in these]
        data = data_inputs(node)
        del node.input[:]
        node.input.extend([*data, *_controls(dict.fromkeys([*kept, *others]))])
