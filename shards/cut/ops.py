"""What TensorFlow knows of a model's operations: whether it has them, and their attributes."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from tensorflow.core.framework import attr_value_pb2, graph_pb2, node_def_pb2
from tensorflow.python.framework import op_def_registry

from shardserve.batching.errors import NotFound, Unimplemented

_PYTHON = frozenset({"PyFunc", "PyFuncStateless", "EagerPyFunc"})


def check_ops(path: Path, graph_def: graph_pb2.GraphDef) -> None:
    """Raise NotFound, naming the file, the node and the operation, for one that is not there.

    An operation of a library that TensorFlow loads at run time (a custom op) is such.
    """
    functions = {function.signature.name for function in graph_def.library.function}
    known: dict[str, bool] = {}
    for where, node in _nodes(graph_def):
        if node.op not in known:
            known[node.op] = node.op in functions or op_def_registry.get(node.op) is not None
        if not known[node.op]:
            raise NotFound(
                f"{path}: node {node.name!r}{where} needs the operation {node.op!r}, which this "
                "TensorFlow does not have; custom operations cannot be served"
            )


def check_no_python(path: Path, graph_def: graph_pb2.GraphDef) -> None:
    """Raise Unimplemented, naming the file and the node, for one that calls Python.

    What it would call was in the process that made the model. Call-outs are such nodes, which this
    package makes itself, and no model may reach.
    """
    for where, node in _nodes(graph_def):
        if node.op in _PYTHON:
            raise Unimplemented(
                f"{path}: node {node.name!r}{where} ({node.op}) calls Python of the process that "
                "made the model; such a model cannot be served"
            )


def fill_in_defaults(graph_def: graph_pb2.GraphDef) -> None:
    """Give each node, also of functions, the attributes that it was saved without.

    A SavedModel may leave out those that have their operation's default (`strip_default_attrs`).
    """
    defaults: dict[str, dict[str, attr_value_pb2.AttrValue]] = {}
    for _, node in _nodes(graph_def):
        if node.op not in defaults:
            defaults[node.op] = _defaults(node.op)
        for name, value in defaults[node.op].items():
            if name not in node.attr:
                node.attr[name].CopyFrom(value)


def _defaults(op: str) -> dict[str, attr_value_pb2.AttrValue]:
    definition = op_def_registry.get(op)
    attributes = () if definition is None else definition.attr
    return {one.name: one.default_value for one in attributes if one.HasField("default_value")}


def _nodes(graph_def: graph_pb2.GraphDef) -> Iterator[tuple[str, node_def_pb2.NodeDef]]:
    """Every node, and which function it is in."""
    for node in graph_def.node:
        yield "", node
    for function in graph_def.library.function:
        where = f" of function {function.signature.name!r}"
        for node in function.node_def:
            yield where, node
