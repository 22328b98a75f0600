"""Large graphs are rewritten by what is worth the time; a session's config has the last word."""

from __future__ import annotations

import numpy as np
import tensorflow as tf
from tensorflow.core.protobuf import config_pb2

from shardserve.router.rewrites import LARGE_GRAPH, limit_rewrites


def test_a_graph_that_is_not_large_gets_what_tensorflow_does_by_default() -> None:
    config = config_pb2.ConfigProto()
    limit_rewrites(config, LARGE_GRAPH)
    assert config == config_pb2.ConfigProto()


def test_what_the_config_says_of_rewriting_stays() -> None:
    config = config_pb2.ConfigProto()
    config.graph_options.rewrite_options.min_graph_nodes = 7
    expected = config_pb2.ConfigProto.FromString(config.SerializeToString())
    limit_rewrites(config, LARGE_GRAPH + 1)
    assert config == expected


def test_layers_of_a_large_graph_are_still_fused_and_answer_the_same() -> None:
    with tf.Graph().as_default() as graph:
        x = tf.compat.v1.placeholder(tf.float32, [None, 3], "x")
        product = tf.matmul(x, tf.compat.v1.placeholder(tf.float32, [3, 2], "w"))
        tf.nn.relu(tf.nn.bias_add(product, tf.constant([1.0, -9.0])), "y")
    config = config_pb2.ConfigProto()
    limit_rewrites(config, LARGE_GRAPH + 1)
    made = config_pb2.RunMetadata()
    options = config_pb2.RunOptions(output_partition_graphs=True)
    values = {"x:0": np.ones((4, 3), np.float32), "w:0": np.ones((3, 2), np.float32)}
    with tf.compat.v1.Session(graph=graph, config=config) as session:
        y = session.run("y:0", values, options=options, run_metadata=made)
    assert y.tolist() == [[4.0, 0.0]] * 4
    assert any("FusedMatMul" in node.op for g in made.partition_graphs for node in g.node)
