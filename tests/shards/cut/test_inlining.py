"""A graph whose calls are inlined computes what TensorFlow computes with them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
from tensorflow.python.framework import function

from shardserve.shards.cut.cut import CutRule, cut_saved_model
from shardserve.shards.cut.saved_model import checkpoint_prefix, inline, read_meta_graph
from tests.saved_models_tf1 import export_graph, numbers
from tests.uncut import Uncut

v1 = tf.compat.v1
CALLS = {"PartitionedCall", "StatefulPartitionedCall"}


class Inlined:
    """A session over the inlined graph, its variables restored by the restore op that is in it."""

    def __init__(self, directory: Path) -> None:
        self.model, self.graph_def = inline(directory)
        self.session = v1.Session(graph=tf.Graph())
        with self.session.graph.as_default():
            tf.graph_util.import_graph_def(self.graph_def, name="")
        saver = read_meta_graph(directory).saver_def
        if self.model.restore_op is not None:
            prefix = str(checkpoint_prefix(directory))
            self.session.run(saver.restore_op_name, {saver.filename_tensor_name: prefix})

    def answer(self, feeds):
        signature = self.model.signatures["serving_default"]
        fetches = {alias: info.name for alias, info in signature.outputs.items()}
        return self.session.run(fetches, {signature.inputs[k].name: v for k, v in feeds.items()})


class _Counter(tf.Module):
    """Reads and writes of one variable, whose order counts, in functions that call each other."""

    def __init__(self) -> None:
        super().__init__()
        self.count = tf.Variable(0.0)

    @tf.function
    def more(self, by):
        self.count.assign_add(by)
        return self.count.read_value(), by * 2.0

    @tf.function
    def twice(self, by):
        first, doubled = self.more(by)
        second, _ = self.more(doubled)
        return first, second

    @tf.function(input_signature=[tf.TensorSpec([], tf.float32, name="by")])
    def __call__(self, by):
        before = self.count.read_value()
        first, second = self.twice(by)
        self.count.assign(self.count * 2.0)
        tf.debugging.assert_less(by, 100.0, message="too much")
        return {
            "before": before,
            "first": first,
            "second": second,
            "after": self.count.read_value(),
        }


def test_effects_keep_their_order_through_nested_calls(tmp_path: Path):
    module = _Counter()
    tf.saved_model.save(module, str(tmp_path), signatures=module.__call__)
    ours, tensorflow = Inlined(tmp_path), Uncut(tmp_path)
    for by in (1.0, 3.0, -2.0):
        feeds = {"by": np.float32(by)}
        assert ours.answer(feeds) == tensorflow.answer("serving_default", feeds)
    with pytest.raises(tf.errors.InvalidArgumentError, match="too much"):
        ours.answer({"by": np.float32(200)})


class _Flow(tf.Module):
    @tf.function
    def step(self, x):
        return x * 2.0 + 1.0

    @tf.function(input_signature=[tf.TensorSpec([], tf.float32, name="x")])
    def __call__(self, x):
        grown = tf.while_loop(lambda y: y < 50.0, lambda y: (self.step(y),), (x,))[0]
        chosen = tf.cond(x > 3.0, lambda: self.step(grown), lambda: grown)
        parts = tf.switch_case(tf.cast(x, tf.int32) % 2, [lambda: x, lambda: self.step(x)])
        return {"grown": grown, "chosen": chosen, "parts": parts}


def test_functions_that_loops_and_branches_run_are_kept(tmp_path: Path):
    module = _Flow()
    tf.saved_model.save(module, str(tmp_path), signatures=module.__call__)
    ours, tensorflow = Inlined(tmp_path), Uncut(tmp_path)
    assert ours.graph_def.library.function
    for x in (1.0, 4.0, 7.0):
        feeds = {"x": np.float32(x)}
        assert ours.answer(feeds) == tensorflow.answer("serving_default", feeds)


def test_no_call_and_no_function_is_left_of_a_plain_model(saved_model):
    _, graph_def = inline(saved_model("gathers"))
    assert not {node.op for node in graph_def.node} & CALLS
    assert not graph_def.library.function


def test_functions_of_tensorflow_1_are_inlined_too(tmp_path: Path):
    def graph():
        @function.Defun(tf.float32, tf.float32, func_name="both")
        def both(x, y):
            return tf.unstack(tf.stack([x, y]) * 2.0, num=2)

        x = v1.placeholder(tf.float32, [None], "x")
        first, second = both(x, x + 1.0)
        return {"serving_default": ({"x": x}, {"difference": second - first, "first": first})}

    export_graph(tmp_path / "m", graph)
    feeds = {"x": np.array([1, 2], np.float32)}
    expected = Uncut(tmp_path / "m").answer("serving_default", feeds)
    ours = Inlined(tmp_path / "m")
    assert "both" not in {node.op for node in ours.graph_def.node}
    for alias, value in ours.answer(feeds).items():
        np.testing.assert_array_equal(value, expected[alias])


class _Compiled(tf.Module):
    def __init__(self) -> None:
        super().__init__()
        self.table = tf.Variable(numbers(90), name="table")

    @tf.function(jit_compile=True)
    def looked_up(self, ids):
        return tf.gather(self.table, ids)

    @tf.function(input_signature=[tf.TensorSpec([None], tf.int64, name="ids")])
    def __call__(self, ids):
        return {"rows": self.looked_up(ids)}


def test_a_function_that_is_compiled_as_one_stays_a_call_and_its_variable_whole(tmp_path: Path):
    module = _Compiled()
    tf.saved_model.save(module, str(tmp_path), signatures=module.__call__)
    model = cut_saved_model(tmp_path, CutRule(threshold=1000))
    assert not model.tables
    assert "passed to a function that XLA compiles (" in model.whole[0].reason


def test_a_graph_with_lowered_control_flow_is_inlined_by_tensorflow(tmp_path: Path):
    def graph():
        @function.Defun(tf.float32, func_name="more")
        def more(x):
            return x + tf.constant(5.0)

        x = v1.placeholder(tf.float32, [], "x")
        v1.disable_control_flow_v2()
        try:
            y = v1.cond(x > 3.0, lambda: more(x), lambda: x)
        finally:
            v1.enable_control_flow_v2()
        return {"serving_default": ({"x": x}, {"y": y})}

    export_graph(tmp_path / "m", graph)
    ours, tensorflow = Inlined(tmp_path / "m"), Uncut(tmp_path / "m")
    for x in (1.0, 4.0):
        feeds = {"x": np.float32(x)}
        assert ours.answer(feeds) == tensorflow.answer("serving_default", feeds)
