"""Equal small constants are shared; what differs in anything, or waits, is left alone."""

from __future__ import annotations

import numpy as np
import tensorflow as tf
from hypothesis import given
from hypothesis import strategies as st
from tensorflow.core.framework import graph_pb2

from shardserve.shards.cut.constants import share_constants

Value = tuple[str, list[float]]
VALUES = st.tuples(
    st.sampled_from(["float32", "float64", "int32"]),
    st.lists(st.sampled_from([0.0, -0.0, 1.0, 2.0]), max_size=3),
)


def _graph(values: list[Value]) -> graph_pb2.GraphDef:
    with tf.Graph().as_default() as graph:
        for number, (dtype, elements) in enumerate(values):
            tf.identity(tf.constant(np.array(elements, dtype), name=f"c{number}"), f"i{number}")
    return graph.as_graph_def()


def _answers(graph_def: graph_pb2.GraphDef, count: int) -> list[bytes]:
    with tf.Graph().as_default() as graph:
        tf.graph_util.import_graph_def(graph_def, name="")
    with tf.compat.v1.Session(graph=graph) as session:
        return [session.run(f"i{number}:0").tobytes() for number in range(count)]


def _read(graph_def: graph_pb2.GraphDef) -> list[str]:
    return [node.input[0] for node in graph_def.node if node.op == "Identity"]


@given(st.lists(VALUES, min_size=1, max_size=8))
def test_each_reader_gets_the_same_bytes_as_before(values: list[Value]) -> None:
    graph_def = _graph(values)
    before = _answers(graph_def, len(values))
    share_constants(graph_def)
    assert _answers(graph_def, len(values)) == before
    distinct = {(dtype, np.array(elements, dtype).tobytes()) for dtype, elements in values}
    assert len(set(_read(graph_def))) == len(distinct)


def test_what_waits_is_elsewhere_is_marked_or_is_large_is_not_shared() -> None:
    kinds = ["waits", "elsewhere", "marked", "plain"]
    graph_def = _graph([("float32", [1.0])] * len(kinds) + [("float64", [0.5] * 3)])
    nodes = {node.name: node for node in graph_def.node}
    nodes["c0"].input.append("^c4")
    nodes["c1"].device = "/device:CPU:0"
    nodes["c2"].attr["_class"].list.s.append(b"loc:@c4")
    share_constants(graph_def)
    assert _read(graph_def) == ["c0", "c1", "c2", "c3", "c4"]
    large = _graph([("float64", [float(n) for n in range(100)])] * 2)
    share_constants(large)
    assert _read(large) == ["c0", "c1"]
