"""What is said to join does: TensorFlow makes the join of what it makes of each request."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from shardserve.shards.cut.lookups import Lookup, Motif
from shardserve.shards.cut.row_kinds import Rows
from shardserve.shards.cut.row_wise import RowWise
from shardserve.shards.cut.shapes import ShapedGraph

v1 = tf.compat.v1

#: What a random graph is made of: each takes a float tensor of known rank and makes another.
STEPS: dict[str, Callable[[Any], Any]] = {
    "relu": tf.nn.relu,
    "add a row": lambda t: t + np.arange(t.shape[-1], dtype=np.float32),
    "add a fixed batch": lambda t: t + np.ones((t.shape[0] or 2, *t.shape[1:]), np.float32),
    "add itself turned": lambda t: t + tf.reverse(t, [0]),
    "add the first of all": lambda t: t + t[:1],
    "add its sum of rows": lambda t: t + tf.reduce_sum(t, axis=0, keepdims=True),
    "less its mean": lambda t: t - tf.reduce_mean(t, axis=-1, keepdims=True),
    "double": lambda t: tf.concat([t, t], axis=-1),
    "join rows": lambda t: tf.concat([t, t], axis=0),
    "flatten": lambda t: tf.reshape(t, [-1, math.prod(t.shape[1:])]),
    "flatten by shape": lambda t: tf.reshape(t, tf.stack([tf.shape(t)[0], math.prod(t.shape[1:])])),
    "split rows": lambda t: (
        tf.reshape(t, [-1, *t.shape[1:-1], t.shape[-1] // 2]) if t.shape[-1] % 2 == 0 else t
    ),
    "by twos": lambda t: tf.reshape(t, [2, -1]),
    "all in one": lambda t: tf.reshape(t, [1, -1]),
    "more axes": lambda t: tf.expand_dims(t, -1),
    "an axis in front": lambda t: tf.expand_dims(t, 0),
    "turned": tf.transpose,
    "turned inside": lambda t: tf.transpose(t, [0, *range(t.shape.rank - 1, 0, -1)]),
    "softmax": tf.nn.softmax,
    "softmax of rows": lambda t: tf.nn.softmax(t, axis=0),
    "summed": lambda t: tf.reduce_sum(t, axis=-1, keepdims=True),
    "summed over rows": lambda t: tf.reduce_sum(t, axis=0, keepdims=True),
    "running sum": lambda t: tf.cumsum(t, axis=0),
    "running sum inside": lambda t: tf.cumsum(t, axis=-1),
    "first column": lambda t: t[..., :1],
    "all but the first row": lambda t: t[1:],
    "every second row": lambda t: t[::2],
    "from the end": lambda t: t[::-1],
    "times a kernel": lambda t: tf.linalg.matmul(
        tf.reshape(t, [-1, t.shape[-1]]), np.ones((t.shape[-1], 3), np.float32)
    ),
    "times its own rows": lambda t: tf.matmul(t, t, transpose_b=True)[..., :1],
    "einsum": lambda t: (
        tf.einsum("bi,ij->bj", t, np.ones((t.shape[-1], 2), np.float32)) if t.shape.rank == 2 else t
    ),
    "einsum of rows": lambda t: tf.einsum("bi,bj->ij", t, t) if t.shape.rank == 2 else t,
    "tiled": lambda t: tf.tile(t, [1] * (t.shape.rank - 1) + [2]),
    "tiled rows": lambda t: tf.tile(t, [2] + [1] * (t.shape.rank - 1)),
    "padded": lambda t: tf.pad(t, [[0, 0]] * (t.shape.rank - 1) + [[1, 0]]),
    "padded rows": lambda t: tf.pad(t, [[1, 0]] + [[0, 0]] * (t.shape.rank - 1)),
    "best": lambda t: tf.math.top_k(t, 1).values,
    "gathered": lambda t: tf.gather(t, [0], axis=-1),
    "gathered rows": lambda t: tf.gather(t, [0, 0], axis=0),
    "one hot": lambda t: tf.one_hot(tf.cast(t, tf.int32), 2),
    "number of rows": lambda t: t * tf.cast(tf.shape(t)[0], tf.float32),
    "ones of its shape": lambda t: tf.fill(tf.shape(t), 2.0) + t,
    "as text": lambda t: tf.strings.to_number(tf.strings.as_string(t)),
    "joined text": lambda t: tf.strings.to_number(
        tf.strings.reduce_join(tf.strings.as_string(tf.abs(t), precision=0), axis=-1, keepdims=True)
    ),
    "joined text of rows": lambda t: tf.strings.to_number(
        tf.strings.reduce_join(tf.strings.as_string(tf.abs(t), precision=0), axis=0, keepdims=True)
    ),
    "parts of text": lambda t: (
        tf.strings.to_number(
            tf.strings.substr(
                tf.strings.as_string(t, precision=1), np.int32([[0]]), np.int32([[3]])
            )
        )
        if t.shape.rank == 2
        else t
    ),
    "in a loop": lambda t: tf.while_loop(lambda i, u: i < 2, lambda i, u: (i + 1, u * 2), (0, t))[
        1
    ],
    "where": lambda t: tf.where(t > 0, t, 0.0),
    "packed": lambda t: tf.stack([t, t], axis=-1),
    "packed in front": lambda t: tf.stack([t, t], axis=0),
    "parted": lambda t: tf.split(t, 1, axis=-1)[0],
}


def usable(tensor: Any) -> bool:
    """Of a rank that the next step can take, and not too large."""
    return (
        tensor.shape.rank is not None
        and 2 <= tensor.shape.rank <= 4
        and None not in tensor.shape[1:].as_list()
        and math.prod(tensor.shape[1:].as_list()) <= 256
    )


def built(names: list[str]) -> tuple[tf.Graph, list[str]]:
    """A graph of those steps, in a row, as far as they go; and the tensors on the way."""
    graph, found = tf.Graph(), []
    with graph.as_default():
        at = v1.placeholder(tf.float32, [None, 4], "x")
        for name in names:
            following = STEPS[name](at)
            if not usable(following):
                continue
            found.append(following.name)
            at = following
    return graph, found


def analysed(graph: tf.Graph) -> RowWise:
    return RowWise(ShapedGraph(graph.as_graph_def(), ()), ["x:0"], {})


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.lists(st.sampled_from(sorted(STEPS)), min_size=1, max_size=5), st.data())
def test_what_joins_by_its_graph_joins_when_it_is_run(names, data):
    graph, tensors = built(names)
    rows = analysed(graph)
    joined = [name for name in tensors if isinstance(rows.kind(name), Rows)]
    if not joined:
        return
    sizes = data.draw(st.lists(st.integers(1, 3), min_size=2, max_size=3))
    rng = np.random.default_rng(7)
    requests = [rng.normal(size=(size, 4)).astype(np.float32) for size in sizes]
    with v1.Session(graph=graph) as session:
        alone = [session.run(joined, {"x:0": one}) for one in requests]
        together = session.run(joined, {"x:0": np.concatenate(requests)})
    for place, name in enumerate(joined):
        kind = rows.kind(name)
        assert isinstance(kind, Rows)
        assert [len(one[place]) for one in alone] == [size * kind.lines for size in sizes]
        expected = np.concatenate([one[place] for one in alone])
        np.testing.assert_allclose(together[place], expected, rtol=1e-5, err_msg=f"{names} {name}")


JOINING = (
    "relu", "add a row", "less its mean", "double", "flatten", "flatten by shape", "split rows",
    "more axes", "turned inside", "softmax", "summed", "running sum inside", "first column",
    "times a kernel", "einsum", "tiled", "padded", "best", "gathered", "one hot", "as text",
    "ones of its shape", "where", "packed", "parted", "parts of text", "joined text",
)  # fmt: skip


@pytest.mark.parametrize("name", JOINING)
def test_what_keeps_rows_apart_is_known_to(name):
    graph, tensors = built([name])
    rows = analysed(graph)
    assert isinstance(rows.kind(tensors[-1]), Rows), rows.kind(tensors[-1])


@pytest.mark.parametrize("name", sorted(STEPS.keys() - set(JOINING)))
def test_what_does_not_is_refused_with_the_node_at_fault(name):
    graph, tensors = built([name])
    if not tensors:
        return
    rows = analysed(graph)
    kind = rows.kind(tensors[-1])
    assert not isinstance(kind, Rows), kind
    why = rows.why_not(tensors[-1])
    assert why is not None
    assert any(node.name in why for node in graph.as_graph_def().node), why


def lookup(**changes: Any) -> Lookup:
    return Lookup(
        **({"output": "rows:0", "table": "t", "node": "g", "motif": Motif.GATHER} | changes)
    )


@pytest.mark.parametrize(
    ("changes", "joins"),
    [
        ({"ids": "ids:0"}, True),
        ({"ids": "ids:0", "motif": Motif.REDUCE_POOL}, True),
        ({"ids": "flat:0", "motif": Motif.REDUCE_POOL}, False),
        ({"ids": "ids:0", "motif": Motif.SEGMENT_POOL, "segments": "flat:0"}, False),
        ({"ids": "turned:0"}, False),
        ({"ids": "ids:0", "motif": Motif.REDUCE_POOL, "weights": "weights:0"}, True),
        ({"ids": "ids:0", "take": "flat:0"}, False),
    ],
)
def test_a_lookup_joins_if_its_ids_do_and_its_bags_are_of_one_row(changes, joins):
    graph = tf.Graph()
    with graph.as_default():
        ids = v1.placeholder(tf.int64, [None, 3], "ids")
        v1.placeholder(tf.int64, [None], "flat")
        v1.placeholder(tf.float32, [None, 3, 1], "weights")
        tf.reverse(ids, [0], name="turned")
    one = lookup(**changes)
    inputs = ["ids:0", "flat:0", "weights:0"]
    rows = RowWise(ShapedGraph(graph.as_graph_def(), ()), inputs, {one.output: one})
    assert isinstance(rows.kind("rows:0"), Rows) is joins, rows.kind("rows:0")


@pytest.mark.parametrize("length", [1, 3, 8])
def test_lines_of_unknown_length_that_are_reshaped_by_the_number_of_rows_join(length):
    with tf.Graph().as_default() as graph:
        x = v1.placeholder(tf.float32, [None, None], "x")
        parts = x[..., None] + np.arange(2, dtype=np.float32)
        flat = tf.reshape(parts, tf.stack([tf.shape(x)[0], -1]))
        by_lines = tf.reshape(flat, [-1, 2])
    rows = analysed(graph)
    assert rows.kind(flat.name) == Rows(1)
    assert not isinstance(rows.kind(by_lines.name), Rows)
    requests = [np.random.default_rng(n).normal(size=(n, length)) for n in (1, 2, 3)]
    with v1.Session(graph=graph) as session:
        alone = [session.run(flat, {x: one}) for one in requests]
        together = session.run(flat, {x: np.concatenate(requests)})
    np.testing.assert_array_equal(together, np.concatenate(alone))
