"""A graph with the static shapes that TensorFlow infers for it."""

from __future__ import annotations

from collections.abc import Collection, Mapping

import tensorflow as tf
from tensorflow.core.framework import graph_pb2
from tensorflow.core.framework.function_pb2 import FunctionDef

from shardserve.shards.cut.graph import Graph, data_inputs, split, tensor


class ShapedGraph(Graph):
    """A `Graph` that knows shapes, and which tensors are `outputs` of a signature.

    TensorFlow takes ten times the memory of a node to infer its shape, so it gets just the nodes
    above those tensors whose shape is asked for.
    """

    def __init__(
        self,
        graph_def: graph_pb2.GraphDef,
        outputs: Collection[str],
        library: Mapping[str, FunctionDef] | None = None,
    ) -> None:
        """The functions that its nodes run are its own, or those of a `library`."""
        super().__init__(graph_def)
        self.library = dict(library) if library is not None else self.library
        self.outputs = frozenset(tensor(name) for name in outputs)
        self._graph_def = graph_def
        #: The imported nodes' names there: their own could be scopes of nodes that came before.
        self._imported: dict[str, str] = {}
        self._shapes = tf.Graph()

    def shape(self, tensor_name: str) -> tuple[int | None, ...] | None:
        """The static shape, None where a size (or the rank) is unknown."""
        name, index = split(tensor_name)
        self._import(name)
        shape = self._shapes.get_tensor_by_name(self._name_there(name, index)).shape
        return None if shape.rank is None else tuple(shape.as_list())

    def rank(self, tensor_name: str) -> int | None:
        """The static rank, or None."""
        shape = self.shape(tensor_name)
        return None if shape is None else len(shape)

    def _import(self, start: str) -> None:
        """Import the nodes above `start` that are not there yet; without control inputs."""
        new = self._missing(start)
        if not new:
            return
        part = graph_pb2.GraphDef(versions=self._graph_def.versions)
        if not self._imported:
            part.library.function.extend(self.library.values())
        before = frozenset(self._imported)
        self._imported.update({name: f"n{len(before) + n}" for n, name in enumerate(new)})
        known: dict[str, tf.Tensor] = {}
        for name in new:
            node = part.node.add()
            node.CopyFrom(self.nodes[name])
            node.name = self._imported[name]
            node.attr.pop("_class", None)
            del node.input[:]
            for source in data_inputs(self.nodes[name]):
                there = self._name_there(*split(source))
                node.input.append(there)
                if split(source)[0] in before:
                    known[there] = self._shapes.get_tensor_by_name(there)
        with self._shapes.as_default():
            tf.graph_util.import_graph_def(part, input_map=known, name="")

    def _name_there(self, name: str, index: int) -> str:
        return f"{self._imported[name]}:{index}"

    def _missing(self, start: str) -> list[str]:
        found: dict[str, None] = {}
        pending = [start]
        while pending:
            name = pending.pop()
            if name not in found and name not in self._imported:
                found[name] = None
                pending.extend(split(source)[0] for source in data_inputs(self.nodes[name]))
        return list(found)
