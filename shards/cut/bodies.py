"""The functions that loops, branches and calls run, each as a graph to read and to change."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from functools import cached_property

from tensorflow.core.framework import attr_value_pb2, graph_pb2, types_pb2
from tensorflow.core.framework.function_pb2 import FunctionDef
from tensorflow.core.framework.node_def_pb2 import NodeDef

from shardserve.shards.cut.graph import Graph, split, tensor
from shardserve.shards.cut.op_outputs import output_name, output_slot
from shardserve.shards.cut.shapes import ShapedGraph

#: The attribute of what XLA is to compile as one.
COMPILED = "_XlaMustCompile"

#: The operations that run functions on their own inputs; how many inputs come before those.
_OFFSETS = {
    **dict.fromkeys(("If", "StatelessIf", "Case", "StatelessCase"), 1),
    **dict.fromkeys(("While", "StatelessWhile", "PartitionedCall", "StatefulPartitionedCall"), 0),
}
_ATTRIBUTES = {
    **dict.fromkeys(("If", "StatelessIf"), ("then_branch", "else_branch")),
    **dict.fromkeys(("Case", "StatelessCase"), ("branches",)),
    **dict.fromkeys(("While", "StatelessWhile"), ("cond", "body")),
    **dict.fromkeys(("PartitionedCall", "StatefulPartitionedCall"), ("f",)),
}
WHILES = frozenset({"While", "StatelessWhile"})
_TYPES = {**dict.fromkeys(_OFFSETS, "Tin"), **dict.fromkeys(WHILES, "T")}

#: Nodes that `unshare` may add: functions that share functions could multiply without end.
MAX_COPIED_NODES = 1_000_000


def runs_functions(node: NodeDef) -> bool:
    """Whether the node runs functions on its inputs (If, Case, While, or a call)."""
    return node.op in _OFFSETS


def is_compiled(node: NodeDef, functions: Mapping[str, FunctionDef]) -> bool:
    """Whether XLA is to compile what the node runs, as one."""
    attributes = [
        node.attr,
        *(functions[f.name].attr for f in _run_by(node) if f.name in functions),
    ]
    return any(COMPILED in one and one[COMPILED].b for one in attributes)


def argument_of(node: NodeDef, slot: int) -> int:
    """Which argument of the node's functions its input in that slot is; negative for none."""
    return slot - _OFFSETS[node.op]


def types_of(node: NodeDef) -> list[int]:
    """The DataTypes of its functions' arguments, as a list of the node itself."""
    return node.attr[_TYPES[node.op]].list.type  # type: ignore[no-any-return]


def functions_of(node: NodeDef) -> list[str]:
    """The names of the functions that it runs; of a loop the condition, then the body."""
    return [one.name for one in _run_by(node)]


def _run_by(node: NodeDef) -> Iterator[attr_value_pb2.NameAttrList]:
    for key in _ATTRIBUTES.get(node.op, ()):
        value = node.attr[key]
        yield from value.list.func if value.WhichOneof("value") == "list" else [value.func]


def unshare(graph_def: graph_pb2.GraphDef) -> None:
    """Give each node that runs functions copies of its own, in place; but see `Bodies.get`.

    Two signatures often run one loop's body. Stops at `MAX_COPIED_NODES`.
    """
    functions = {f.signature.name: f for f in graph_def.library.function}
    left, number = MAX_COPIED_NODES, 0
    taken: set[str] = set()
    pending = [node for node in graph_def.node if runs_functions(node)]
    while pending:
        for one in _run_by(pending.pop()):
            function = functions.get(one.name)
            if function is None:
                continue
            if one.name in taken:
                left -= len(function.node_def)
                if left < 0:
                    return
                function = graph_def.library.function.add()
                function.CopyFrom(functions[one.name])
                number += 1
                one.name = function.signature.name = f"{one.name}/copy_{number}"
                functions[one.name] = function
            taken.add(one.name)
            pending.extend(node for node in function.node_def if runs_functions(node))


class Body:
    """One function's body as a graph: arguments are placeholders of their names."""

    def __init__(self, function: FunctionDef, library: Mapping[str, FunctionDef]) -> None:
        self.name = function.signature.name
        self._function = function
        self._library = library
        self.arguments = [tensor(arg.name) for arg in function.signature.input_arg]
        self.graph_def = self._as_graph()
        outputs = function.signature.output_arg
        self.returned = [self._tensor(function.ret[output.name]) for output in outputs]

    @cached_property
    def graph(self) -> ShapedGraph:
        """The graph, its outputs those of the function."""
        return ShapedGraph(self.graph_def, self.returned, self._library)

    @cached_property
    def live(self) -> set[str]:
        """The nodes that run."""
        return self.graph.ancestors([*self.returned, *self._function.control_ret.values()])

    def _as_graph(self) -> graph_pb2.GraphDef:
        graph_def = graph_pb2.GraphDef()
        for number, arg in enumerate(self._function.signature.input_arg):
            node = graph_def.node.add(name=arg.name, op="Placeholder")
            node.attr["dtype"].type = arg.type
            shapes = self._function.arg_attr[number].attr["_output_shapes"].list.shape
            if shapes:
                node.attr["shape"].shape.CopyFrom(shapes[0])
            else:
                node.attr["shape"].shape.unknown_rank = True
        self._nodes = {node.name: node for node in self._function.node_def}
        for node in self._function.node_def:
            copy = graph_def.node.add()
            copy.CopyFrom(node)
            del copy.input[:]
            copy.input.extend(s if s[0] == "^" else self._tensor(s) for s in node.input)
        return graph_def

    def _tensor(self, source: str) -> str:
        """ "node:output:3", or an argument's name, as "node:slot"."""
        name, *place = source.split(":")
        if not place:
            return tensor(name)
        return f"{name}:{output_slot(self._nodes[name], place[0], int(place[1]), self._library)}"

    def rewritten(self, graph_def: graph_pb2.GraphDef, retyped: Mapping[int, int]) -> FunctionDef:
        """The function with a changed graph, its arguments of the placeholders' dtypes.

        `retyped` maps those outputs that have another DataType to that.
        """
        nodes = {node.name: node for node in graph_def.node}
        function = FunctionDef(signature=self._function.signature)
        function.attr.MergeFrom(self._function.attr)
        self._retype(function, nodes, retyped)
        arguments = {split(name)[0] for name in self.arguments}

        def source(name: str) -> str:
            op, slot = split(name)
            if op in arguments:
                return op
            return f"{op}:{output_name(nodes[op], slot, self._library)}"

        for node in graph_def.node:
            if node.name not in arguments:
                copy = function.node_def.add()
                copy.CopyFrom(node)
                copy.input[:] = [s if s[0] == "^" else source(s) for s in node.input]
        for output, name in zip(function.signature.output_arg, self.returned, strict=True):
            function.ret[output.name] = source(name)
        self._keep_controls(function, nodes)
        return function

    def _retype(
        self, function: FunctionDef, nodes: Mapping[str, NodeDef], retyped: Mapping[int, int]
    ) -> None:
        signature = function.signature
        for number, arg in enumerate(signature.input_arg):
            kind = nodes[arg.name].attr["dtype"].type
            if kind == arg.type:
                function.arg_attr[number].CopyFrom(self._function.arg_attr[number])
                continue
            arg.type = kind
            arg.ClearField("handle_data")
            # It has the shapes of all arguments.
            function.attr.pop("_input_shapes", None)
        for number, kind in retyped.items():
            signature.output_arg[number].type = kind
            signature.output_arg[number].ClearField("handle_data")

    def _keep_controls(self, function: FunctionDef, nodes: Mapping[str, NodeDef]) -> None:
        for key, name in self._function.control_ret.items():
            if name in nodes:
                function.control_ret[key] = name
        kept = [key for key in function.signature.control_output if key in function.control_ret]
        function.signature.control_output[:] = kept


class Bodies:
    """The bodies of a graph's functions; each is looked at when it is asked for."""

    def __init__(self, graph_def: graph_pb2.GraphDef) -> None:
        self.functions = {f.signature.name: f for f in graph_def.library.function}
        self._found: dict[str, Body] = {}
        nodes = [*graph_def.node, *(n for f in self.functions.values() for n in f.node_def)]
        self._uses = Counter(name for node in nodes for name in functions_of(node))

    def get(self, name: str) -> Body | str:
        """A function's body; or why it cannot be changed: not every function is one node's own."""
        function = self.functions.get(name)
        if function is None:
            return f"function {name} is not in the model"
        if self._uses[name] > 1:
            return f"function {name} is run by more than one node"
        if any(arg.type == types_pb2.DT_INVALID for arg in function.signature.input_arg):
            return f"function {name} takes arguments of any type"
        if name not in self._found:
            try:
                self._found[name] = Body(function, self.functions)
            except (KeyError, IndexError) as error:
                return f"function {name} refers to {error}, which it does not have"
        return self._found[name]


def only_passes_on(graph: Graph, returned: list[str], argument: str, number: int) -> bool:
    """Whether a body's argument leaves it nowhere but as that output, unchanged."""
    passed = set(graph.passed_on(argument))
    return [slot for slot, name in enumerate(returned) if name in passed] == [number]
