"""Loops whose body can be taken out and run as a step of its own, for many requests together.

What is recognised is how TensorFlow writes a recurrence over time (`tf.while_loop` with
TensorArrays, `tf.scan`, every Keras RNN): a `While` whose variables are counters from 0 up by 1,
values that stay as they are, lists that are read at the counter, lists that are written at the
counter (or, for the last value alone, at 0), and states. Its condition bounds counters, and its
body keeps rows apart: row r of each state and of each value written follows from row r of the
states, of what was read, and of the request's own values that stay. Every other loop stays as it
is, with the reason.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping

from tensorflow.core.framework import graph_pb2
from tensorflow.core.framework.node_def_pb2 import NodeDef

from shardserve.shards.cut.enclosed import PLACEHOLDERS
from shardserve.shards.cut.graph import (
    Graph,
    control_inputs,
    data_inputs,
    has_effect,
    split,
    tensor,
)
from shardserve.shards.cut.loop_body import LoopBody, Role, Stays, loop_body
from shardserve.shards.cut.loops import Kept, LiftedLoops, StepLoop
from shardserve.shards.cut.op_outputs import output_type
from shardserve.shards.cut.regions import RegionCall
from shardserve.shards.cut.row_kinds import Rows
from shardserve.shards.cut.row_wise import RowWise
from shardserve.shards.cut.shapes import ShapedGraph

LOOPS = frozenset({"While", "StatelessWhile"})


def lift_loops(graph_def: graph_pb2.GraphDef, outputs: Collection[str]) -> LiftedLoops:
    """Add the step of each loop that can be lifted, in place; the loops stay there too.

    `outputs` are the signatures' output tensors. A loop that is not fed instead runs as before.
    """
    loops: dict[str, StepLoop] = {}
    whole: dict[str, str] = {}
    needed = Graph(graph_def).ancestors(outputs)
    for node in [n for n in graph_def.node if n.name in needed and n.op in LOOPS]:
        lifting = _Lifting(graph_def, node, outputs)
        try:
            loops[node.name] = lifting.lift()
        except Stays as stays:
            whole[node.name] = stays.reason
    lowered = sum(n.op == "LoopCond" for n in graph_def.node if n.name in needed)
    if lowered:
        whole["LoopCond"] = f"{lowered} loops are lowered control flow, of TensorFlow 1's kind"
    return LiftedLoops(loops, whole)


class _Lifting:
    """One loop. The graph is changed only once nothing can be in the way any more."""

    def __init__(
        self, graph_def: graph_pb2.GraphDef, node: NodeDef, outputs: Collection[str]
    ) -> None:
        self._graph_def = graph_def
        self._graph = ShapedGraph(graph_def, outputs)
        self._node = node
        self._wanted = {tensor(name) for name in outputs}
        self._operands = data_inputs(node)
        self._prefix = f"{node.name}/step"
        self._new: list[NodeDef] = []

    def lift(self) -> StepLoop:
        body = loop_body(self._node, self._graph.library)
        self._check_counters(body)
        states = body.of(Role.STATE)
        sources = {p: self._source(p) for p in body.of(Role.READ) if body.reads_of(p)}
        constants = [place for place in body.of(Role.INVARIANT) if self._is_constant(body, place)]
        kept, read_by = self._kept(body)
        feeds = self._feeds(body, states, sources, constants)
        fetches = self._step(body, feeds)
        self._check_rows(list(feeds.values()), fetches)
        scalars = [self._outer(body, bound) for bound in body.bounds]
        sizes = self._sizes(body)
        self._graph_def.node.extend(self._new)
        outputs = self._gate(kept, read_by)
        operands = [
            *(self._operands[place] for place in states),
            *sources.values(),
            *(self._operands[place] for place in constants),
            *scalars,
            *sizes,
        ]
        return StepLoop(
            node=self._node.name,
            call=RegionCall(self._node.name, tuple(map(self._fetched, operands)), outputs),
            states=len(states),
            reads=len(sources),
            constants=len(constants),
            bounds=len(scalars),
            sizes=len(sizes),
            feeds=tuple(dict.fromkeys(feeds.values())),
            fetches=fetches,
            kept=tuple(kept.values()),
        )

    def _fetched(self, name: str) -> str:
        return self._graph.resolve(name)

    def _check_counters(self, body: LoopBody) -> None:
        for place in body.of(Role.COUNTER):
            start = self._graph.constant(self._operands[place])
            if start is None or start.shape != () or int(start) != 0:
                raise Stays(f"its counter {body.arguments[place]} does not begin at 0")

    def _source(self, place: int) -> str:
        """The tensor [steps, rows, ...] that a list is made of."""
        made = self._graph.node(self._graph.resolve(self._operands[place]))
        if made.op != "TensorListFromTensor":
            raise Stays(f"it reads a list that {made.op} {made.name} makes, not of a tensor")
        return data_inputs(made)[0]

    def _is_constant(self, body: LoopBody, place: int) -> bool:
        """Whether a value that stays is the request's own, and a step needs it."""
        if not body.graph.consumers(f"{body.arguments[place]}:0"):
            return False
        above = self._graph.ancestors([self._operands[place]])
        return any(
            self._graph.nodes[name].op in PLACEHOLDERS or has_effect(self._graph.nodes[name])
            for name in above
        )

    def _sizes(self, body: LoopBody) -> list[str]:
        """The sizes that written lists were reserved with; the last value's list has size 1."""
        sizes = []
        for place in body.of(Role.WRITE):
            made = self._graph.node(self._graph.resolve(self._operands[place]))
            if made.op != "TensorListReserve":
                raise Stays(f"it writes to a list that {made.op} {made.name} makes")
            if not body.writes_last(place):
                sizes.append(data_inputs(made)[1])
            elif self._graph.constant(data_inputs(made)[1]) != 1:
                raise Stays("it writes its last value to a list of more than one element")
        return sizes

    def _outer(self, body: LoopBody, bound: int | str) -> str:
        """The outer tensor of a bound: an argument's, or a constant's own."""
        if isinstance(bound, int):
            return self._operands[bound]
        node = body.constant_node(bound)
        node.name = f"{self._prefix}/bound/{node.name}"
        self._new.append(node)
        return f"{node.name}:0"

    # What is left behind.

    def _kept(self, body: LoopBody) -> tuple[dict[str, tuple[int, Kept]], dict[str, str]]:
        """What each output is, by its tensor; and for a state the While's own tensor."""
        kept: dict[str, tuple[int, Kept]] = {}
        states: dict[str, str] = {}
        fetched = [*body.of(Role.STATE), *body.of(Role.WRITE)]
        for place in range(len(self._operands)):
            name = f"{self._node.name}:{place}"
            readers = self._graph.consumers(name)
            if any(passed in self._wanted for passed in self._graph.passed_on(name)):
                readers = [*readers, (self._node, -1)]
            if not readers:
                continue
            if place not in fetched:
                raise Stays(f"its variable {body.arguments[place]} is used behind it")
            number = fetched.index(place)
            if body.roles[place] is Role.STATE:
                kept[name] = (number, Kept.LAST)
                states[name] = name
                continue
            what = Kept.LAST_OF_LIST if body.writes_last(place) else Kept.ALL
            for reader, _ in readers:
                if reader.op != "TensorListStack":
                    raise Stays(f"{reader.op} {reader.name} uses a list that it writes")
                kept[f"{reader.name}:0"] = (number, what)
        return kept, states

    def _gate(
        self, kept: Mapping[str, tuple[int, Kept]], states: Mapping[str, str]
    ) -> tuple[str, ...]:
        """Outputs that can be fed: a state's goes through a gate, which its readers read."""
        gates = {name: self._add_gate(name) for name in states}
        for node in self._graph_def.node:
            sources = data_inputs(node)
            if node.op != "PlaceholderWithDefault" and any(name in gates for name in sources):
                controls = [f"^{name}" for name in control_inputs(node)]
                del node.input[:]
                node.input.extend([*(gates.get(name, name) for name in sources), *controls])
        return tuple(gates.get(name, name) for name in kept)

    def _add_gate(self, name: str) -> str:
        shape = self._graph.shape(name)
        kind = output_type(self._node, split(name)[1])
        gate = _placeholder(f"{self._prefix}/output_{split(name)[1]}", kind, shape)
        gate.op = "PlaceholderWithDefault"
        gate.input.append(name)
        self._graph_def.node.append(gate)
        return f"{gate.name}:0"

    # The step.

    def _feeds(
        self,
        body: LoopBody,
        states: Iterable[int],
        sources: Mapping[int, str],
        constants: Iterable[int],
    ) -> dict[str, str]:
        """The step's placeholders by the tensor of the body that they stand for."""
        feeds: dict[str, str] = {}
        for place in states:
            shape = self._rows(self._operands[place], 0)
            feeds[f"{body.arguments[place]}:0"] = self._feed(
                f"state_{place}", body.dtypes[place], shape
            )
        for place, source in sources.items():
            shape = self._rows(source, 1)
            kind = output_type(self._graph.node(source), split(source)[1])
            placeholder = self._feed(f"read_{place}", kind, shape)
            for read in body.reads_of(place):
                feeds[read] = placeholder
        for place in constants:
            shape = self._rows(self._operands[place], 0)
            feeds[f"{body.arguments[place]}:0"] = self._feed(
                f"constant_{place}", body.dtypes[place], shape
            )
        return feeds

    def _rows(self, name: str, before: int) -> tuple[int | None, ...]:
        shape = self._graph.shape(name)
        if shape is None or len(shape) <= before:
            raise Stays(f"the rank of {name} is not known, or it has no rows")
        return (None, *shape[before + 1 :])

    def _feed(self, name: str, kind: int, shape: tuple[int | None, ...]) -> str:
        node = _placeholder(f"{self._prefix}/{name}", kind, shape)
        self._new.append(node)
        return f"{node.name}:0"

    def _step(self, body: LoopBody, feeds: Mapping[str, str]) -> tuple[str, ...]:
        """Add the body's nodes; the tensors that it makes: states first, then what is written."""
        fixed = {
            f"{body.arguments[place]}:0": self._operands[place] for place in body.of(Role.INVARIANT)
        }
        made, nodes = body.step(self._prefix, {**fixed, **feeds})
        self._new.extend(nodes)
        return made

    def _check_rows(self, feeds: Collection[str], fetches: Collection[str]) -> None:
        whole = graph_pb2.GraphDef()
        whole.CopyFrom(self._graph_def)
        whole.node.extend(self._new)
        rows = RowWise(ShapedGraph(whole, ()), sorted(set(feeds)), {})
        for name in fetches:
            if rows.kind(name) != Rows(1):
                raise Stays(rows.why_not(name) or f"{name} has not one line for each row")


def _placeholder(name: str, kind: int, shape: tuple[int | None, ...] | None) -> NodeDef:
    node = NodeDef(name=name, op="Placeholder")
    node.attr["dtype"].type = kind
    if shape is None:
        node.attr["shape"].shape.unknown_rank = True
    for size in shape or ():
        node.attr["shape"].shape.dim.add(size=-1 if size is None else size)
    return node
