"""Whether this TensorFlow has every operation that a model needs."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from tensorflow.core.framework import graph_pb2, node_def_pb2
from tensorflow.python.framework import op_def_registry

from shardserve.batching.errors import NotFound


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


def _nodes(graph_def: graph_pb2.GraphDef) -> Iterator[tuple[str, node_def_pb2.NodeDef]]:
    """Every node, and which function it is in."""
    for node in graph_def.node:
        yield "", node
    for function in graph_def.library.function:
        where = f" of function {function.signature.name!r}"
        for node in function.node_def:
            yield where, node
