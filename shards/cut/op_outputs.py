"""An operation's outputs: a graph numbers them in one row, a function calls them by name."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import cache
from typing import Any

from tensorflow.core.framework import op_def_pb2, types_pb2
from tensorflow.core.framework.function_pb2 import FunctionDef
from tensorflow.core.framework.node_def_pb2 import NodeDef
from tensorflow.python.framework import op_def_registry

Attributes = Mapping[str, Any]


@cache
def definition(op: str) -> op_def_pb2.OpDef | None:
    """The operation's definition, None for one that TensorFlow does not have."""
    return op_def_registry.get(op)


def count(output: op_def_pb2.OpDef.ArgDef, attributes: Attributes) -> int:
    """How many tensors an output is."""
    if output.number_attr:
        return int(attributes[output.number_attr].i)
    if output.type_list_attr:
        return len(attributes[output.type_list_attr].list.type)
    return 1


def output_slot(node: NodeDef, output: str, place: int, library: Mapping[str, FunctionDef]) -> int:
    """The slot of the tensor that a function calls "node:output:place".

    `library` has the functions that the node may call by name. Raises KeyError where there is no
    such output.
    """
    before = place
    for one in _outputs(node, library):
        if one.name == output:
            return before
        before += count(one, node.attr)
    raise KeyError(f"{node.name}:{output}")


def output_name(node: NodeDef, slot: int, library: Mapping[str, FunctionDef]) -> str:
    """The inverse: "output:place" of the tensor in a slot."""
    before = 0
    for one in _outputs(node, library):
        size = count(one, node.attr)
        if slot < before + size:
            return f"{one.name}:{slot - before}"
        before += size
    raise KeyError(f"{node.name}:{slot}")


def output_type(node: NodeDef, slot: int) -> int:
    """The DataType of a node's output; DT_RESOURCE where it has none in that slot."""
    found = definition(node.op)
    types: list[int] = []
    for one in found.output_arg if found is not None else ():
        if one.type_list_attr:
            types.extend(node.attr[one.type_list_attr].list.type)
        else:
            kind = node.attr[one.type_attr].type if one.type_attr else one.type
            types.extend([kind] * count(one, node.attr))
    return types[slot] if slot < len(types) else types_pb2.DT_RESOURCE


def _outputs(
    node: NodeDef, library: Mapping[str, FunctionDef]
) -> Iterator[op_def_pb2.OpDef.ArgDef]:
    function = library.get(node.op)
    found = definition(node.op) if function is None else function.signature
    if found is None:
        raise KeyError(node.op)
    yield from found.output_arg
