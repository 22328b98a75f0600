"""Puts the bodies of called functions in place of the calls, so that every read is in plain sight.

What TensorFlow's own inliner does, for the calls that an export makes, in a fraction of its time
and memory. A call's name stays: a node that waits for it waits for all that the function does.
Functions that If and While run stay functions. A BatchFunction becomes what it stands for: its
function's body between a Batch and Unbatch nodes, past which it reads what it captured.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from tensorflow.core.framework import (
    attr_value_pb2,
    function_pb2,
    graph_pb2,
    op_def_pb2,
)
from tensorflow.core.framework.node_def_pb2 import NodeDef

from shardserve.shards.cut.graph import (
    LOOP_OR_BRANCH,
    Graph,
    control_inputs,
    data_inputs,
    function_attributes,
)
from shardserve.shards.cut.marks import NAME, copy_attributes
from shardserve.shards.cut.op_outputs import Attributes, definition, output_slot

_BATCH_FUNCTION = "BatchFunction"
_CALLS = frozenset({"PartitionedCall", "StatefulPartitionedCall", _BATCH_FUNCTION})
_COMPILED = "_XlaMustCompile"
UNBATCH_MICROS = 60_000_000
_MAX_DEPTH = 100
#: Nodes that are messages at a time; as bytes they take a sixth of the memory.
_NODES_AT_ONCE = 4096


class NotInlinable(Exception):
    """A call in a place, or of a kind, that this inliner does not know; TensorFlow's own does."""


def inlined(graph_def: graph_pb2.GraphDef, roots: Iterable[str]) -> list[bytes]:
    """What the nodes `roots` need, without calls; only the functions that are still referred to.

    It is for `read_parts`: a large `graph_def` can be let go of before. A call that is to be
    compiled as one stays a call. Raises NotInlinable.
    """
    return _Inliner(graph_def).run(roots)


def read_parts(parts: list[bytes]) -> graph_pb2.GraphDef:
    """The graph that was serialised in parts, in order; of `parts` nothing is left."""
    graph_def = graph_pb2.GraphDef()
    parts.reverse()
    while parts:
        graph_def.MergeFromString(parts.pop())
    return graph_def


@dataclass(frozen=True)
class _Call:
    """One call to expand: where it is, what goes in, and how deep it lies in others.

    `batch` is the Batch node that a BatchFunction's inputs go through.
    """

    name: str
    function: function_pb2.FunctionDef
    inputs: Sequence[str]
    controls: Sequence[str]
    attributes: Attributes
    depth: int
    batch: NodeDef | None = None


class _Inliner:
    def __init__(self, graph_def: graph_pb2.GraphDef) -> None:
        self._graph_def = graph_def
        self._functions = {f.signature.name: f for f in graph_def.library.function}
        #: The last of the result's nodes; those before them are written.
        self._part = graph_pb2.GraphDef()
        self._written: list[bytes] = []
        self._referred: dict[str, None] = {}
        self._calls: list[_Call] = []

    def run(self, roots: Iterable[str]) -> list[bytes]:
        needed = Graph(self._graph_def).ancestors(roots)
        nodes = [node for node in self._graph_def.node if node.name in needed]
        self._check(nodes)
        for node in nodes:
            if self._is_call(node):
                self._call(node, node.name, data_inputs(node), control_inputs(node), node.attr, 0)
                self._add_outputs_of(node)
            else:
                self._part.node.add().CopyFrom(node)
            self._write(_NODES_AT_ONCE)
        while self._calls:
            self._expand(self._calls.pop())
        self._write(0)
        rest = graph_pb2.GraphDef(versions=self._graph_def.versions)
        rest.library.function.extend(self._functions[name] for name in self._still_run())
        return [*self._written, rest.SerializeToString()]

    def _write(self, most: int) -> None:
        """Turn the last nodes to bytes, if there are at least so many; none is changed after."""
        if len(self._part.node) >= most:
            self._referred.update(dict.fromkeys(self._referred_by(self._part.node)))
            self._written.append(self._part.SerializeToString())
            self._part = graph_pb2.GraphDef()

    def _is_call(self, node: NodeDef) -> bool:
        function = self._function_of(node)
        return function is not None and not _is_compiled(node, function)

    def _function_of(self, node: NodeDef) -> function_pb2.FunctionDef | None:
        name = node.attr["f"].func.name if node.op in _CALLS else node.op
        return self._functions.get(name)

    def _check(self, nodes: Iterable[NodeDef]) -> None:
        """What is called inside a lowered branch runs only if the branch does."""
        ops = {node.op for node in nodes}
        if ops & LOOP_OR_BRANCH and (ops & _CALLS or ops & self._functions.keys()):
            raise NotInlinable("a call in a graph with lowered control flow")

    def _call(
        self,
        node: NodeDef,
        name: str,
        inputs: Sequence[str],
        controls: Sequence[str],
        attributes: Attributes,
        depth: int,
    ) -> None:
        function = self._function_of(node)
        assert function is not None
        if depth > _MAX_DEPTH:
            raise NotInlinable("functions that call themselves")
        gate = []
        if controls:
            self._add("NoOp", f"{name}/_before", [f"^{control}" for control in controls])
            gate = [f"{name}/_before"]
        batch = None
        if node.op == _BATCH_FUNCTION:
            batch = self._add_batch(node, name, inputs, gate)
            count = len(data_inputs(batch))
            inputs = [*(f"{batch.name}:{slot}" for slot in range(count)), *inputs[count:]]
        self._calls.append(_Call(name, function, inputs, gate, attributes, depth, batch))

    def _add_batch(
        self, node: NodeDef, name: str, inputs: Sequence[str], gate: Sequence[str]
    ) -> NodeDef:
        count = len(node.attr["Tin"].list.type)
        controls = [f"^{control}" for control in gate]
        batch = self._add("Batch", f"{name}/batch", [*inputs[:count], *controls])
        copy_attributes(node, batch, inputs[count:], self._functions)
        batch.attr[NAME].s = name.encode()
        return batch

    def _add(self, op: str, name: str, inputs: Sequence[str]) -> NodeDef:
        node = self._part.node.add(name=name, op=op)
        node.input.extend(inputs)
        return node

    def _add_outputs_of(self, call: NodeDef) -> None:
        """A call of the graph itself: its outputs can be fetched, and then all of it has run."""
        function = self._function_of(call)
        assert function is not None
        types = [_type(output, call.attr) for output in function.signature.output_arg]
        values = [_output(call.name, slot) for slot in range(len(types))]
        done = f"^{call.name}/_done"
        if types:
            node = self._add("IdentityN", call.name, [*values, done])
            node.attr["T"].list.type.extend(types)
        else:
            self._add("NoOp", call.name, [done])

    def _expand(self, call: _Call) -> None:
        function = call.function
        body = _Body(call, self._functions)
        self._check(function.node_def)
        for node in function.node_def:
            self._add_node(call, body, node)
            self._write(_NODES_AT_ONCE)
        for slot, output in enumerate(function.signature.output_arg):
            value = body.tensor(function.ret[output.name])
            self._add_output(call, slot, value, _type(output, call.attributes))
        done = [f"^{body.name(node)}" for node in function.control_ret.values()]
        # Of a call of the graph itself the name is taken by what gathers its outputs.
        name = f"{call.name}/_done" if call.depth == 0 else call.name
        self._add("NoOp", name, [*done, *(f"^{gate}" for gate in call.controls)])

    def _add_output(self, call: _Call, slot: int, value: str, kind: int) -> None:
        inputs = [value]
        if call.batch is not None:
            count = len(data_inputs(call.batch))
            inputs += [f"{call.batch.name}:{count}", f"{call.batch.name}:{count + 1}"]
        op = "Identity" if call.batch is None else "Unbatch"
        node = self._add(op, _output(call.name, slot), inputs)
        node.attr["T"].type = kind
        if call.batch is not None:
            node.attr["timeout_micros"].i = UNBATCH_MICROS

    def _add_node(self, call: _Call, body: _Body, node: NodeDef) -> None:
        name = body.name(node.name)
        inputs = [body.tensor(source) for source in node.input if not source.startswith("^")]
        controls = [body.name(source) for source in control_inputs(node)]
        is_call = self._is_call(node)
        if call.controls and (is_call or _is_stateful(node.op)):
            controls += call.controls
        if is_call:
            attributes = {key: _given(value, call.attributes) for key, value in node.attr.items()}
            self._call(node, name, inputs, controls, attributes, call.depth + 1)
            return
        copy = self._part.node.add()
        copy.CopyFrom(node)
        copy.name = name
        del copy.input[:]
        copy.input.extend(inputs)
        copy.input.extend(f"^{control}" for control in controls)
        # Where nodes wish to be placed says nothing on one device.
        copy.attr.pop("_class", None)
        if call.function.signature.attr:
            for key, value in node.attr.items():
                if value.placeholder:
                    copy.attr[key].CopyFrom(_given(value, call.attributes))

    def _still_run(self) -> list[str]:
        """The functions that the result's nodes still run, and those that these run."""
        found: dict[str, None] = {}
        pending = list(self._referred)
        while pending:
            name = pending.pop()
            if name not in found and name in self._functions:
                found[name] = None
                pending.extend(self._referred_by(self._functions[name].node_def))
        return list(found)

    def _referred_by(self, nodes: Iterable[NodeDef]) -> Iterator[str]:
        for node in nodes:
            if node.op in self._functions:
                yield node.op
            for key in function_attributes(node.op):
                value = node.attr[key]
                yield from [value.func.name, *(func.name for func in value.list.func)]


class _Body:
    """Names of one function's body in the graph that the call is in."""

    def __init__(self, call: _Call, functions: Mapping[str, function_pb2.FunctionDef]) -> None:
        self._prefix = call.name
        self._functions = functions
        arguments = call.function.signature.input_arg
        if any(arg.number_attr or arg.type_list_attr for arg in arguments):
            raise NotInlinable("a function of a list of tensors")
        self._arguments = {
            arg.name: value for arg, value in zip(arguments, call.inputs, strict=True)
        }
        self._nodes = {node.name: node for node in call.function.node_def}

    def name(self, node: str) -> str:
        """A node of the body."""
        return f"{self._prefix}/{node}"

    def tensor(self, source: str) -> str:
        """A tensor that the body calls "node:output:3", or by an argument's name."""
        name, *place = source.split(":")
        if name in self._arguments:
            return self._arguments[name]
        node = self._nodes[name]
        slot = output_slot(node, place[0], int(place[1]), self._functions)
        called = node.attr["f"].func.name if node.op in _CALLS else node.op
        if called in self._functions and not _is_compiled(node, self._functions[called]):
            return _output(self.name(name), slot)
        return f"{self.name(name)}:{slot}"


def _output(call: str, slot: int) -> str:
    return f"{call}/_output_{slot}"


def _is_compiled(node: NodeDef, function: function_pb2.FunctionDef) -> bool:
    on_node = _COMPILED in node.attr and node.attr[_COMPILED].b
    return bool(on_node or (_COMPILED in function.attr and function.attr[_COMPILED].b))


def _is_stateful(op: str) -> bool:
    found = definition(op)
    return found is None or bool(found.is_stateful)


def _type(output: op_def_pb2.OpDef.ArgDef, attributes: Attributes) -> int:
    if output.number_attr or output.type_list_attr:
        raise NotInlinable("a function that returns a list of tensors")
    return int(attributes[output.type_attr].type if output.type_attr else output.type)


def _given(value: attr_value_pb2.AttrValue, attributes: Attributes) -> attr_value_pb2.AttrValue:
    """An attribute's value, where it is that of the call."""
    return attributes[value.placeholder] if value.placeholder else value
