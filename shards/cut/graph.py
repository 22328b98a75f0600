"""A GraphDef as a graph: nodes by name, consumers, ancestors, tensor names in one form."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from functools import cache, cached_property
from types import MappingProxyType
from typing import Any

from tensorflow.core.framework import graph_pb2, types_pb2
from tensorflow.core.framework.function_pb2 import FunctionDef
from tensorflow.core.framework.node_def_pb2 import NodeDef
from tensorflow.python.framework import op_def_registry

PASS_THROUGH = frozenset({"Identity", "IdentityN", "StopGradient", "PreventGradient", "Snapshot"})

# Stateful in the op registry, since they read state, but running them twice or not at all changes
# nothing.
_ONLY_READS = frozenset(
    {
        "VarHandleOp",
        "VariableV2",
        "Variable",
        "ReadVariableOp",
        "ResourceGather",
        "ResourceGatherNd",
        "VariableShape",
        "VarIsInitializedOp",
        "DisableCopyOnRead",
        "HashTable",
        "HashTableV2",
        "MutableHashTable",
        "MutableHashTableV2",
        "LookupTableFind",
        "LookupTableFindV2",
        "LookupTableSize",
        "LookupTableSizeV2",
        "Placeholder",
        "PlaceholderV2",
    }
)


_NO_LIBRARY: Mapping[str, FunctionDef] = MappingProxyType({})

#: What takes rows out of a table.
GATHERS = frozenset({"Gather", "GatherV2", "ResourceGather"})

SWITCHES = frozenset({"Switch", "RefSwitch"})
ENTERS = frozenset({"Enter", "RefEnter"})
#: Lowered control flow: what enters a loop or a branch, and what leaves it.
LOOP_OR_BRANCH = ENTERS | SWITCHES
_LEAVES = frozenset({"Exit", "RefExit", "Merge", "RefMerge"})
#: What comes round again: the one kind of node that closes a circle.
ITERATES = frozenset({"NextIteration", "RefNextIteration"})
#: A Merge of these begins an iteration, and ends no branch.
_BEGINS = ENTERS | ITERATES


def tensor(name: str) -> str:
    """ "op" or "op:0" as "op:0"."""
    return name if ":" in name else name + ":0"


def split(name: str) -> tuple[str, int]:
    """ "op:1" as ("op", 1)."""
    op, _, slot = name.partition(":")
    return op, int(slot or 0)


def data_inputs(node: NodeDef) -> list[str]:
    """The tensors that a node reads, in slot order."""
    return [name if ":" in name else f"{name}:0" for name in node.input if name[0] != "^"]


def control_inputs(node: NodeDef) -> list[str]:
    """The names of the nodes that must run before a node."""
    return [name[1:] for name in node.input if name[0] == "^"]


@cache
def function_attributes(op: str) -> tuple[str, ...]:
    """The attributes of an operation that name functions, which it runs."""
    definition = op_def_registry.get(op)
    attributes = () if definition is None else definition.attr
    return tuple(one.name for one in attributes if one.type in ("func", "list(func)"))


@cache
def _has_effect(op: str) -> bool:
    if op in _ONLY_READS:
        return False
    definition = op_def_registry.get(op)
    return definition is None or bool(definition.is_stateful)


def has_effect(node: NodeDef, library: Mapping[str, FunctionDef] = _NO_LIBRARY) -> bool:
    """Whether running the node matters beyond its outputs (an Assert, a Print, a random draw).

    For a node that runs functions of the `library`: whether that of one of their nodes does.
    """
    bodies = _bodies(node, library)
    if not bodies:
        return _has_effect(node.op)
    return any(has_effect(inner, library) for body in bodies for inner in body.node_def)


def _bodies(node: NodeDef, library: Mapping[str, FunctionDef]) -> list[FunctionDef]:
    """The functions that a node runs; none if it runs none, or one that is not known."""
    names = [
        name
        for key in function_attributes(node.op)
        for name in (node.attr[key].func.name, *(f.name for f in node.attr[key].list.func))
        if name
    ]
    return [library[name] for name in names] if all(name in library for name in names) else []


@cache
def _takes_state(op: str) -> bool:
    definition = op_def_registry.get(op)
    if definition is None or function_attributes(op):
        return True
    return any(one.is_ref or one.type == types_pb2.DT_RESOURCE for one in definition.input_arg)


def may_write(node: NodeDef, library: Mapping[str, FunctionDef] = _NO_LIBRARY) -> bool:
    """Whether the node may change what another reads, so that a read before it must stay there.

    For a node that runs functions of the `library`: whether one of their nodes may.
    """
    if not _takes_state(node.op):
        return False
    bodies = _bodies(node, library)
    if not bodies:
        return _has_effect(node.op)
    return any(may_write(inner, library) for body in bodies for inner in body.node_def)


class Graph:
    """An index over one GraphDef, which it does not change."""

    def __init__(self, graph_def: graph_pb2.GraphDef) -> None:
        self.nodes: dict[str, NodeDef] = {node.name: node for node in graph_def.node}
        self.library = {f.signature.name: f for f in graph_def.library.function}

    @cached_property
    def _consumers(self) -> dict[str, list[tuple[NodeDef, int]]]:
        """(node, input slot) of each use of a tensor."""
        consumers: dict[str, list[tuple[NodeDef, int]]] = {}
        for node in self.nodes.values():
            for slot, source in enumerate(data_inputs(node)):
                consumers.setdefault(source, []).append((node, slot))
        return consumers

    def node(self, tensor_name: str) -> NodeDef:
        """The node that makes a tensor."""
        return self.nodes[split(tensor_name)[0]]

    def resolve(self, tensor_name: str) -> str:
        """The tensor that an Identity, or a chain of them, passes on.

        One that waits for something (a control input) is not looked through.
        """
        name = tensor(tensor_name)
        while True:
            op, slot = split(name)
            node = self.nodes.get(op)
            if node is None or node.op not in PASS_THROUGH or control_inputs(node):
                return name
            name = data_inputs(node)[slot]

    def consumers(self, tensor_name: str) -> list[tuple[NodeDef, int]]:
        """(node, input slot) of each use of the tensor's value, looking through Identity."""
        uses = []
        for node, slot in self._consumers.get(tensor(tensor_name), ()):
            if node.op in PASS_THROUGH:
                passed = f"{node.name}:{slot if node.op == 'IdentityN' else 0}"
                uses.extend(self.consumers(passed))
            else:
                uses.append((node, slot))
        return uses

    def passed_on(self, tensor_name: str) -> Iterator[str]:
        """The tensor itself, and each that carries its value through Identity."""
        yield tensor(tensor_name)
        for node, slot in self._consumers.get(tensor(tensor_name), ()):
            if node.op in PASS_THROUGH:
                yield from self.passed_on(f"{node.name}:{slot if node.op == 'IdentityN' else 0}")

    def ancestors(self, tensors: Iterable[str]) -> set[str]:
        """The nodes that must run to make `tensors`, by data and by control."""
        found: set[str] = set()
        pending = [split(name)[0] for name in tensors]
        while pending:
            name = pending.pop()
            if name in found or name not in self.nodes:
                continue
            found.add(name)
            pending.extend(split(s.removeprefix("^"))[0] for s in self.nodes[name].input)
        return found

    def downstream(self, starts: Iterable[str]) -> set[str]:
        """Names of the nodes reached from the nodes `starts`, these included, by data edges."""
        readers: dict[str, list[str]] = defaultdict(list)
        for node in self.nodes.values():
            for source in data_inputs(node):
                readers[split(source)[0]].append(node.name)
        found: set[str] = set()
        pending = list(starts)
        while pending:
            name = pending.pop()
            if name not in found:
                found.add(name)
                pending.extend(readers[name])
        return found

    @cached_property
    def conditional(self) -> set[str]:
        """Names of the nodes inside a loop or a branch of lowered control flow.

        Their tensors may never be made, or be made many times; they can be neither fed nor fetched.
        """
        if not any(node.op in LOOP_OR_BRANCH for node in self.nodes.values()):
            return set()
        depths: dict[str, int] = {}
        for start in self.nodes:
            self._nest(start, depths)
        return {name for name, depth in depths.items() if depth > 0}

    def _nest(self, start: str, depths: dict[str, int]) -> None:
        """Note in how many loops and branches a node is, and all that it follows from."""
        pending = [start]
        while pending:
            name = pending[-1]
            if name in depths:
                pending.pop()
                continue
            node = self.nodes[name]
            inputs = [split(source.removeprefix("^"))[0] for source in node.input]
            # What comes round again is in the loop by what entered it.
            sources = [one for one in inputs if self.nodes[one].op not in ITERATES]
            unknown = [one for one in sources if one not in depths]
            if unknown:
                pending.extend(unknown)
                continue
            outer = max((depths[one] for one in sources), default=0)
            depths[name] = max(0, outer + self._deeper(node))
            pending.pop()

    def _deeper(self, node: NodeDef) -> int:
        """How many more loops and branches the node's outputs are in than its inputs."""
        if node.op in _LEAVES:
            merged = {self.nodes[split(source)[0]].op for source in data_inputs(node)}
            return 0 if merged & _BEGINS else -1
        if node.op not in LOOP_OR_BRANCH:
            return 0
        decides = node.op in SWITCHES and self.node(self.resolve(data_inputs(node)[1])).op
        return 0 if decides == "LoopCond" else 1

    def constant(self, tensor_name: str) -> Any | None:
        """The value of a Const, as a numpy array; None for anything else."""
        from tensorflow.python.framework import tensor_util  # noqa: PLC0415

        node = self.nodes.get(split(self.resolve(tensor_name))[0])
        if node is None or node.op != "Const":
            return None
        return tensor_util.MakeNdarray(node.attr["value"].tensor)
