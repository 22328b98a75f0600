"""Reads the functions of a `While`: what each of its variables is, and how long it runs."""

from __future__ import annotations

import enum
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass

from tensorflow.core.framework import types_pb2
from tensorflow.core.framework.function_pb2 import FunctionDef
from tensorflow.core.framework.node_def_pb2 import NodeDef
from tensorflow.python.framework import function_def_to_graph

from shardserve.shards.cut.graph import (
    Graph,
    control_inputs,
    data_inputs,
    function_attributes,
    has_effect,
    split,
)
from shardserve.shards.cut.inlining import NotInlinable, inlined, read_parts
from shardserve.shards.cut.rewrite import drop_idle_controls

_GET, _SET = "TensorListGetItem", "TensorListSetItem"
_COUNTS = frozenset({types_pb2.DT_INT32, types_pb2.DT_INT64})


class Stays(Exception):
    """The loop cannot be lifted, and why."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


class Role(enum.Enum):
    """What a loop variable is."""

    COUNTER = enum.auto()
    INVARIANT = enum.auto()
    READ = enum.auto()
    WRITE = enum.auto()
    STATE = enum.auto()


@dataclass(frozen=True)
class LoopBody:
    """A loop's body as a graph, whose placeholders are its `arguments`.

    `roles` are by place among the loop's variables. `bounds` are what the condition holds counters
    below: places of variables, or constants of the condition.
    """

    arguments: tuple[str, ...]
    dtypes: tuple[int, ...]
    roles: tuple[Role, ...]
    returned: tuple[str, ...]
    graph: Graph
    condition: Graph
    bounds: tuple[int | str, ...]

    def of(self, role: Role) -> list[int]:
        """The places of the variables of a role."""
        return [place for place, one in enumerate(self.roles) if one is role]

    def reads_of(self, place: int) -> list[str]:
        """The tensors that hold what is read of a list in one step."""
        return [f"{n.name}:0" for n, _ in self.graph.consumers(f"{self.arguments[place]}:0")]

    def writes_last(self, place: int) -> bool:
        """Whether a list is always written at 0, so that the last value is left."""
        return self.graph.constant(data_inputs(self._set(place))[1]) is not None

    def constant_node(self, name: str) -> NodeDef:
        """A copy of a constant of the condition."""
        node = NodeDef()
        node.CopyFrom(self.condition.node(name))
        del node.input[:]
        return node

    def step(self, prefix: str, given: Mapping[str, str]) -> tuple[tuple[str, ...], list[NodeDef]]:
        """The tensors of one step, states first, then what is written; and its nodes.

        `given` has tensors outside for those of the body that are not made anew.
        """
        made = [self.returned[place] for place in self.of(Role.STATE)]
        made += [data_inputs(self._set(place))[2] for place in self.of(Role.WRITE)]
        resolved = [self.graph.resolve(name) for name in made]
        nodes = self._needed(resolved, given)
        copies = [_copy(node, prefix, given) for node in nodes]
        fetches = []
        for number, name in enumerate(resolved):
            source = given.get(name, f"{prefix}/{name}")
            # A tensor may be a state's next value and be written, or be passed on as it was read.
            identity = NodeDef(name=f"{prefix}/made_{number}", op="Identity", input=[source])
            place = [*self.of(Role.STATE), *self.of(Role.WRITE)][number]
            identity.attr["T"].type = self._kind(place)
            copies.append(identity)
            fetches.append(f"{identity.name}:0")
        return tuple(fetches), copies

    def _kind(self, place: int) -> int:
        if self.roles[place] is Role.STATE:
            return self.dtypes[place]
        return int(self._set(place).attr["element_dtype"].type)

    def _set(self, place: int) -> NodeDef:
        return self.graph.node(self.graph.resolve(self.returned[place]))

    def _needed(self, tensors: Collection[str], given: Mapping[str, str]) -> list[NodeDef]:
        found: dict[str, NodeDef] = {}
        pending = [split(name)[0] for name in tensors if name not in given]
        while pending:
            node = self.graph.nodes[pending.pop()]
            if node.name in found:
                continue
            if node.op == "Placeholder":
                raise Stays(f"its counter {node.name} is used for more than counting")
            found[node.name] = node
            pending += [split(n)[0] for n in data_inputs(node) if n not in given]
            pending += control_inputs(node)
        return list(found.values())


def loop_body(loop: NodeDef, library: Mapping[str, FunctionDef]) -> LoopBody:
    """Read a `While`. Raises Stays."""
    body, returned = _graph(library[loop.attr["body"].func.name], library)
    condition, (decided,) = _graph(library[loop.attr["cond"].func.name], library)
    for node in body.nodes.values():
        if has_effect(node, body.library) or function_attributes(node.op):
            raise Stays(f"{node.op} {node.name} of its body has an effect, or runs functions")
    arguments = library[loop.attr["body"].func.name].signature.input_arg
    names = tuple(argument.name for argument in arguments)
    kinds = tuple(argument.type for argument in arguments)
    returned = tuple(body.resolve(name) for name in returned)
    counters = {
        n for n, name in enumerate(names)
        if kinds[n] in _COUNTS and _is_counted(body, name, returned[n])
    }  # fmt: skip
    indices = {f"{names[place]}:0" for place in counters}
    roles = tuple(
        Role.COUNTER
        if place in counters
        else _role(body, name, returned[place], indices, kinds[place])
        for place, name in enumerate(names)
    )
    parameters = [a.name for a in library[loop.attr["cond"].func.name].signature.input_arg]
    bounds = tuple(_bounds(condition, decided, parameters, roles))
    return LoopBody(names, kinds, roles, returned, body, condition, bounds)


def _graph(
    function: FunctionDef, library: Mapping[str, FunctionDef]
) -> tuple[Graph, tuple[str, ...]]:
    """A function as a graph without calls, and the tensors that it returns."""
    graph_def, names = function_def_to_graph.function_def_to_graph_def(function)
    graph_def.library.function.extend(library.values())
    returned = tuple(names[function.ret[output.name]] for output in function.signature.output_arg)
    roots = [*(split(name)[0] for name in returned), *function.control_ret.values()]
    roots += [argument.name for argument in function.signature.input_arg]
    try:
        flat = read_parts(inlined(graph_def, roots))
    except NotInlinable as error:
        raise Stays(f"its function {function.signature.name} holds {error}") from None
    drop_idle_controls(flat)
    return Graph(flat), returned


def _is_counted(body: Graph, name: str, returned: str) -> bool:
    node = body.node(returned)
    if node.op not in ("AddV2", "Add"):
        return False
    terms = [body.resolve(source) for source in data_inputs(node)]
    ones = [value for term in terms if (value := body.constant(term)) is not None]
    return f"{name}:0" in terms and len(ones) == 1 and ones[0].shape == () and int(ones[0]) == 1


def _role(body: Graph, name: str, returned: str, indices: Collection[str], kind: int) -> Role:
    argument = f"{name}:0"
    if kind != types_pb2.DT_VARIANT:
        return Role.INVARIANT if returned == argument else Role.STATE
    if returned == argument:
        for reader, slot in body.consumers(argument):
            index = body.resolve(data_inputs(reader)[1]) if reader.op == _GET and not slot else ""
            if index not in indices:
                raise Stays(f"{reader.op} {reader.name} uses a list otherwise than at the counter")
        return Role.READ
    node = body.node(returned)
    if node.op != _SET or body.resolve(data_inputs(node)[0]) != argument:
        raise Stays(f"its variable {name} is a list that {node.op} {node.name} makes anew")
    if len(body.consumers(argument)) > 1:
        raise Stays(f"its variable {name} is a list that is written and read")
    index = body.resolve(data_inputs(node)[1])
    place = body.constant(index)
    if index not in indices and (place is None or int(place) != 0):
        raise Stays(f"{node.op} {node.name} writes neither at the counter nor at 0")
    return Role.WRITE


def _bounds(
    condition: Graph, decided: str, parameters: list[str], roles: tuple[Role, ...]
) -> Iterator[int | str]:
    node = condition.node(condition.resolve(decided))
    sources = [condition.resolve(source) for source in data_inputs(node)]
    if node.op == "LogicalAnd":
        for source in sources:
            yield from _bounds(condition, source, parameters, roles)
        return
    if node.op in ("Less", "Greater"):
        low, high = sources if node.op == "Less" else reversed(sources)
        counter, bound = _place(low, parameters), _place(high, parameters)
        if counter is not None and roles[counter] is Role.COUNTER:
            if condition.constant(high) is not None:
                yield high
                return
            if bound is not None and roles[bound] is Role.INVARIANT:
                yield bound
                return
    raise Stays(f"its condition {node.op} {node.name} is no bound on a counter")


def _place(name: str, parameters: list[str]) -> int | None:
    node = split(name)[0]
    return parameters.index(node) if node in parameters else None


def _copy(node: NodeDef, prefix: str, given: Mapping[str, str]) -> NodeDef:
    copy = NodeDef()
    copy.CopyFrom(node)
    copy.name = f"{prefix}/{node.name}"
    copy.attr.pop("_class", None)
    del copy.input[:]
    copy.input.extend(given.get(name, f"{prefix}/{name}") for name in data_inputs(node))
    copy.input.extend(f"^{prefix}/{name}" for name in control_inputs(node))
    return copy
