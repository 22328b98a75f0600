"""A graph with the static shapes that TensorFlow infers for it."""

from __future__ import annotations

from collections.abc import Collection

import tensorflow as tf
from tensorflow.core.framework import graph_pb2

from shardserve.shards.cut.graph import Graph, tensor


class ShapedGraph(Graph):
    """A `Graph` that knows shapes, and which tensors are `outputs` of a signature."""

    def __init__(self, graph_def: graph_pb2.GraphDef, outputs: Collection[str]) -> None:
        super().__init__(graph_def)
        self.outputs = frozenset(tensor(name) for name in outputs)
        self._imported = tf.Graph()
        with self._imported.as_default():
            tf.graph_util.import_graph_def(graph_def, name="")

    def shape(self, tensor_name: str) -> tuple[int | None, ...] | None:
        """The static shape, None where a size (or the rank) is unknown."""
        shape = self._imported.get_tensor_by_name(tensor(tensor_name)).shape
        return None if shape.rank is None else tuple(shape.as_list())

    def rank(self, tensor_name: str) -> int | None:
        """The static rank, or None."""
        shape = self.shape(tensor_name)
        return None if shape is None else len(shape)
