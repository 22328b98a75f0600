"""Lets the nodes of a graph share its small constants."""

from __future__ import annotations

from collections.abc import Iterator

from tensorflow.core.framework import graph_pb2, node_def_pb2

#: Bytes of a constant's message up to which it is looked at: sizes, axes, factors.
_SMALL = 256

#: What a constant may say of itself. Whatever else it says makes it one of its kind.
_PLAIN = frozenset({"dtype", "value", "_output_shapes"})


def share_constants(graph_def: graph_pb2.GraphDef) -> None:
    """Let each node, in place, read the first of all equal small constants.

    The others stay, read by nobody. Every layer brings axes, shapes and factors of its own: they
    can be half of a large graph's nodes, which take time and memory to load and to run.
    """
    first: dict[tuple[str, bytes], str] = {}
    shared: dict[str, str] = {}
    for node in _small_constants(graph_def):
        key = (node.device, node.attr["value"].SerializeToString(deterministic=True))
        kept = first.setdefault(key, node.name)
        if kept != node.name:
            shared[node.name] = kept
    for node in graph_def.node if shared else ():
        for place, name in enumerate(node.input):
            if (source := name.removesuffix(":0")) in shared:
                node.input[place] = shared[source]


def _small_constants(graph_def: graph_pb2.GraphDef) -> Iterator[node_def_pb2.NodeDef]:
    """Those that wait for nothing: one that does may belong to a loop or a branch."""
    for node in graph_def.node:
        if node.op == "Const" and not node.input and _is_small_and_plain(node):
            yield node


def _is_small_and_plain(node: node_def_pb2.NodeDef) -> bool:
    return _PLAIN.issuperset(node.attr) and node.attr["value"].ByteSize() <= _SMALL
