"""Puts call-outs into a graph: where a cut table went into loops and branches, the request goes.

So each call-out learns which request it is made for, runs when the lookup would have run, and is
as dead in a branch that is not taken.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping, Sequence

from tensorflow.core.framework import graph_pb2, types_pb2
from tensorflow.core.framework.node_def_pb2 import NodeDef
from tensorflow.python.framework import dtypes

from shardserve.shards.cut.bodies import (
    WHILES,
    Bodies,
    Body,
    argument_of,
    functions_of,
    runs_functions,
    types_of,
)
from shardserve.shards.cut.call_outs import CALL_OUT, REQUEST, AskedShape, CallOut
from shardserve.shards.cut.graph import (
    ENTERS,
    PASS_THROUGH,
    SWITCHES,
    Graph,
    control_inputs,
    data_inputs,
    split,
    tensor,
)
from shardserve.shards.cut.motifs import enters
from shardserve.shards.cut.op_outputs import output_type
from shardserve.shards.cut.rewrite import keep_controls, keep_nodes, shape_constant

_INT64 = types_pb2.DT_INT64


def add_call_outs(
    graph_def: graph_pb2.GraphDef,
    call_outs: Sequence[CallOut],
    shapes: Mapping[AskedShape, tuple[int, ...]],
    tables: Collection[str],
    table_dtypes: Mapping[str, str],
) -> None:
    """Let, in place, no cut table go into a loop or a branch.

    `call_outs` are all lookups there; `shapes` has what asks for a table's shape there; `tables`
    are the nodes of the cut variables; `table_dtypes` has each table's dtype by name.
    """
    entries = list(_entries(Graph(graph_def), tables))
    if entries:
        _Caller(graph_def, call_outs, shapes, table_dtypes).run(entries)


def _entries(graph: Graph, tables: Collection[str]) -> Iterator[tuple[str, int]]:
    """(node, slot) of each place where a cut variable goes into a loop or a branch."""
    pending = [tensor(name) for name in tables]
    while pending:
        for node, slot in graph.consumers(pending.pop()):
            if node.op == "ReadVariableOp":
                pending.append(tensor(node.name))
            elif enters(node):
                yield node.name, slot


class _Scope:
    """One graph that is changed: a function's body, or the graph itself."""

    def __init__(self, name: str, graph_def: graph_pb2.GraphDef, body: Body | None = None) -> None:
        self.name = name
        self.body = body
        self.nodes = {node.name: node for node in graph_def.node}
        #: The tensors that were the table, and are now the request.
        self.carriers: set[str] = set()
        #: Outputs of the function that are now the request, and their DataType.
        self.retyped: dict[int, int] = {}
        self._readers: dict[str, list[tuple[NodeDef, int]]] = defaultdict(list)
        self._below: dict[str, list[str]] = defaultdict(list)
        for node in graph_def.node:
            for slot, source in enumerate(data_inputs(node)):
                self._readers[source].append((node, slot))
                self._below[split(source)[0]].append(node.name)

    def readers(self, name: str) -> list[tuple[NodeDef, int]]:
        """(node, slot) of each that read the tensor, before anything was replaced."""
        return self._readers[name]

    def carrier_of(self, node: NodeDef) -> str:
        """The request, at the place where the node read the table."""
        return next(name for name in data_inputs(node) if name in self.carriers)

    def drop_what_read_the_table(self, replaced: Collection[str]) -> None:
        """Take out what is left of lookups, and the control inputs that wait for it."""
        gone: set[str] = set()
        pending = [
            node.name
            for name in self.carriers
            for node, slot in self._readers[name]
            if not self._carries(node, slot)
        ]
        while pending:
            name = pending.pop()
            if name in gone or name in replaced:
                continue
            gone.add(name)
            pending.extend(self._below[name])
        for name in gone:
            del self.nodes[name]
        for node in self.nodes.values():
            keep_controls(node, lambda control: control not in gone)

    def _carries(self, node: NodeDef, slot: int) -> bool:
        if runs_functions(node):
            return True
        return f"{node.name}:{slot}" in self.carriers


class _Caller:
    def __init__(
        self,
        graph_def: graph_pb2.GraphDef,
        call_outs: Sequence[CallOut],
        shapes: Mapping[AskedShape, tuple[int, ...]],
        table_dtypes: Mapping[str, str],
    ) -> None:
        self._graph_def = graph_def
        self._call_outs = call_outs
        self._shapes = shapes
        self._table_dtypes = table_dtypes
        self._bodies = Bodies(self._graph_def)
        self._scopes: dict[str, _Scope] = {}

    def run(self, entries: Sequence[tuple[str, int]]) -> None:
        nodes = {node.name: node for node in self._graph_def.node}
        for name, slot in entries:
            nodes[name].input[slot] = REQUEST
        request = self._graph_def.node.add(name=split(REQUEST)[0], op="Placeholder")
        request.attr["dtype"].type = _INT64
        request.attr["shape"].shape.SetInParent()
        top = self._scopes[""] = _Scope("", self._graph_def)
        self._carry(top, REQUEST)
        replaced = self._replace()
        for scope in self._scopes.values():
            scope.drop_what_read_the_table(replaced[scope.name])
        self._write()

    def _carry(self, scope: _Scope, start: str) -> None:
        """Let the request go where the table went, from this tensor on."""
        pending = [start]
        while pending:
            name = pending.pop()
            if name not in scope.carriers:
                scope.carriers.add(name)
                for node, slot in scope.readers(name):
                    pending.extend(self._pass(scope, node, slot))

    def _pass(self, scope: _Scope, node: NodeDef, slot: int) -> list[str]:
        """Make the node pass on a request; the tensors that are requests then."""
        if node.op == "IdentityN":
            node.attr["T"].list.type[slot] = _INT64
            return [f"{node.name}:{slot}"]
        if runs_functions(node):
            return self._pass_to_functions(scope, node, slot)
        if slot != 0:
            return []
        if node.op in PASS_THROUGH or node.op == "ReadVariableOp":
            return _becomes(node, "Identity")
        if node.op in SWITCHES:
            return _becomes(node, "Switch")
        return _becomes(node, "Enter") if node.op in ENTERS else []

    def _pass_to_functions(self, scope: _Scope, node: NodeDef, slot: int) -> list[str]:
        number = argument_of(node, slot)
        types_of(node)[number] = _INT64
        node.attr.pop("_output_shapes", None)
        functions = functions_of(node)
        for name in functions:
            inner = self._scope(name)
            assert inner.body is not None
            argument = inner.body.arguments[number]
            placeholder = inner.nodes[split(argument)[0]]
            placeholder.attr["dtype"].type = _INT64
            self._carry(inner, argument)
        if node.op not in WHILES:
            return []
        self._scope(functions[1]).retyped[slot] = _INT64
        if node.attr["output_shapes"].list.shape:
            node.attr["output_shapes"].list.shape[slot].Clear()
        return [f"{node.name}:{slot}"]

    def _scope(self, function: str) -> _Scope:
        if function not in self._scopes:
            body = self._bodies.get(function)
            assert isinstance(body, Body)  # The finder has been there.
            graph_def = graph_pb2.GraphDef()
            wanted = body.live.union(split(name)[0] for name in body.arguments)
            graph_def.node.extend(node for node in body.graph_def.node if node.name in wanted)
            self._scopes[function] = _Scope(function, graph_def, body)
        return self._scopes[function]

    def _replace(self) -> dict[str, set[str]]:
        """Put call-outs and shapes in the places of what read the tables; their names, by scope."""
        replaced: dict[str, set[str]] = defaultdict(set)
        made: list[tuple[_Scope, NodeDef]] = []
        for number, one in enumerate(self._call_outs):
            made.append((self._scopes[one.scope], self._call_out(number, one)))
        for asked, shape in self._shapes.items():
            scope = self._scopes[asked.scope]
            node = scope.nodes[split(asked.output)[0]]
            constant = shape_constant(node, shape)
            if not asked.scope:
                # A constant is in a branch by what it waits for.
                constant.input.append("^" + split(scope.carrier_of(node))[0])
            made.append((scope, constant))
        for scope, node in made:
            scope.nodes[node.name].CopyFrom(node)
            replaced[scope.name].add(node.name)
        return replaced

    def _call_out(self, number: int, one: CallOut) -> NodeDef:
        scope = self._scopes[one.scope]
        reader, before = scope.nodes[one.reader], scope.nodes[one.node]
        node = NodeDef(name=one.node, op=CALL_OUT)
        node.input.extend([scope.carrier_of(reader), *map(tensor, one.lookup.operands)])
        for name in node.input:
            source = scope.nodes[split(name)[0]]
            node.attr["Tin"].list.type.append(output_type(source, split(name)[1]))
        controls = dict.fromkeys([*control_inputs(reader), *control_inputs(before)])
        node.input.extend(f"^{control}" for control in controls)
        node.attr["token"].s = str(number).encode()
        for dtype in one.output_dtypes(self._table_dtypes[one.lookup.table]):
            node.attr["Tout"].list.type.append(dtypes.as_dtype(dtype).as_datatype_enum)
        return node

    def _write(self) -> None:
        keep_nodes(self._graph_def, self._scopes[""].nodes.keys())
        for function in self._graph_def.library.function:
            scope = self._scopes.get(function.signature.name)
            if scope is not None and scope.body is not None:
                graph_def = graph_pb2.GraphDef()
                graph_def.node.extend(scope.nodes.values())
                function.CopyFrom(scope.body.rewritten(graph_def, scope.retyped))


def _becomes(node: NodeDef, op: str) -> list[str]:
    """Make it a node that passes an int64 on; the tensors that are that."""
    kept = {key: node.attr[key] for key in ("frame_name", "is_constant", "parallel_iterations")}
    kept = {key: value for key, value in kept.items() if op == "Enter"}
    fresh = NodeDef(name=node.name, op=op, input=node.input, device=node.device)
    for key, value in kept.items():
        fresh.attr[key].CopyFrom(value)
    fresh.attr["T"].type = _INT64
    node.CopyFrom(fresh)
    return [f"{node.name}:{slot}" for slot in range(2 if op == "Switch" else 1)]
