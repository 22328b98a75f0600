"""A graph with the static shapes that TensorFlow infers for it."""

from __future__ import annotations

from collections.abc import Collection

import tensorflow as tf
from tensorflow.core.framework import graph_pb2

from shardserve.shards.cut.graph import Graph, data_inputs, split, tensor


class ShapedGraph(Graph):
    """A `Graph` that knows shapes, and which tensors are `outputs` of a signature.

    TensorFlow takes ten times the memory of a node to infer its shape, so it gets just the nodes
    above those tensors whose shape is asked for.
    """

    def __init__(self, graph_def: graph_pb2.GraphDef, outputs: Collection[str]) -> None:
        super().__init__(graph_def)
        self.outputs = frozenset(tensor(name) for name in outputs)
        self._graph_def = graph_def
        self._imported: set[str] = set()
        self._shapes = tf.Graph()

    def shape(self, tensor_name: str) -> tuple[int | None, ...] | None:
        """The static shape, None where a size (or the rank) is unknown."""
        self._import(tensor(tensor_name))
        shape = self._shapes.get_tensor_by_name(tensor(tensor_name)).shape
        return None if shape.rank is None else tuple(shape.as_list())

    def rank(self, tensor_name: str) -> int | None:
        """The static rank, or None."""
        shape = self.shape(tensor_name)
        return None if shape is None else len(shape)

    def _import(self, tensor_name: str) -> None:
        """Import the nodes above the tensor that are not there yet; without control inputs."""
        new = self._missing(split(tensor_name)[0])
        if not new:
            return
        part = graph_pb2.GraphDef(versions=self._graph_def.versions)
        if not self._imported:
            part.library.CopyFrom(self._graph_def.library)
        known: dict[str, tf.Tensor] = {}
        for name in new:
            node = part.node.add()
            node.CopyFrom(self.nodes[name])
            sources = data_inputs(node)
            del node.input[:]
            node.input.extend(sources)
            node.attr.pop("_class", None)
            for source in sources:
                if split(source)[0] in self._imported:
                    known[source] = self._shapes.get_tensor_by_name(source)
        with self._shapes.as_default():
            tf.graph_util.import_graph_def(part, input_map=known, name="")
        self._imported.update(new)

    def _missing(self, start: str) -> list[str]:
        found: dict[str, None] = {}
        pending = [start]
        while pending:
            name = pending.pop()
            if name not in found and name not in self._imported:
                found[name] = None
                pending.extend(split(source)[0] for source in data_inputs(self.nodes[name]))
        return list(found)
