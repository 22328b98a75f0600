"""SavedModels that read tables inside of loops, branches and functions, in either format."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from hypothesis import strategies as st

from tests.saved_models import Feeds, ModelCase, int_array
from tests.saved_models_tf1 import export_graph, numbers

v1 = tf.compat.v1

ROWS, WIDTH, STEPS = 90, 6, 5


def _save(module: tf.Module, path: Path) -> None:
    tf.saved_model.save(module, str(path), signatures=module.__call__)


def _normal(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


class Branches(tf.Module):
    """Each branch reads another table; sparse lookups, a shape, a value read outside."""

    def __init__(self) -> None:
        super().__init__()
        self.left = tf.Variable(numbers(ROWS), name="left")
        self.right = tf.Variable(-numbers(ROWS + 10), name="right")
        self.third = tf.Variable(tf.cast(numbers(ROWS) / 64, tf.bfloat16), name="third")
        self.outside = tf.Variable(numbers(ROWS), name="outside")

    @tf.function(
        input_signature=[
            tf.TensorSpec([None], tf.int64, name="ids"),
            tf.TensorSpec([], tf.int32, name="which"),
        ]
    )
    def __call__(self, ids: Any, which: Any) -> dict[str, Any]:
        value = tf.convert_to_tensor(self.outside)

        def pooled(table: Any, combiner: str) -> Any:
            splits = [0, tf.size(ids, tf.int64)]
            bags = tf.RaggedTensor.from_row_splits(ids, splits, validate=False).to_sparse()
            return tf.nn.embedding_lookup_sparse(table, bags, None, combiner=combiner)

        return {
            "either": tf.cond(
                which > 0, lambda: tf.gather(self.left, ids), lambda: tf.gather(self.right, ids)
            ),
            "nested": tf.cond(
                which > 0,
                lambda: tf.cond(
                    which > 1,
                    lambda: tf.reduce_sum(tf.gather(self.left, ids), axis=0),
                    lambda: tf.gather(self.right, which),
                ),
                lambda: tf.zeros([WIDTH]),
            ),
            "one_of": tf.switch_case(
                which,
                [
                    lambda: tf.cast(tf.gather(self.third, ids), tf.float32),
                    lambda: tf.gather(self.left, ids % tf.shape(self.left, tf.int64)[0]),
                    lambda: pooled(self.right, "mean"),
                    lambda: pooled(self.left, "sum"),
                ],
            ),
            "from_outside": tf.cond(
                which > 1, lambda: tf.gather(value, ids), lambda: tf.zeros([0, WIDTH])
            ),
        }


class ReadOutside(tf.Module):
    """A table that is read before a branch and a loop, and gathered in them; and beside them."""

    def __init__(self) -> None:
        super().__init__()
        self.table = tf.Variable(numbers(ROWS), name="table")

    @tf.function
    def hop(self, at: Any) -> Any:
        return tf.cast(tf.gather(self.table, at)[:, 1], tf.int64) % ROWS

    @tf.function(input_signature=[tf.TensorSpec([None], tf.int64, name="ids")])
    def __call__(self, ids: Any) -> dict[str, Any]:
        value = tf.convert_to_tensor(self.table)
        even = tf.cond(
            tf.size(ids) % 2 == 0, lambda: tf.gather(value, ids), lambda: tf.zeros([0, WIDTH])
        )

        def body(step: Any, at: Any, total: Any) -> tuple[Any, Any, Any]:
            at = tf.cond(step % 2 == 0, lambda: self.hop(at), lambda: (at * 3 + 1) % ROWS)
            return step + 1, at, total + tf.reduce_sum(tf.gather(value, at))

        _, at, total = tf.while_loop(
            lambda step, at, total: tf.logical_and(
                step < tf.size(ids), tf.reduce_max(tf.gather(self.table, at)) < 500.0
            ),
            body,
            (0, ids, 0.0),
        )
        return {"even": even, "at": at, "total": total, "after": tf.gather(self.table, at)}


class Greedy(tf.Module):
    """Greedy decoding: what is decoded is looked up for the next step. One table does both.

    `beams` does so with the three best, `lengths` ends where an end is decoded.
    """

    def __init__(self) -> None:
        super().__init__()
        self.tied = tf.Variable(_normal(21, ROWS, 8), name="tied")
        self.mix = tf.Variable(_normal(22, 8, 8), name="mix")
        self.bias = tf.Variable(_normal(23, ROWS), name="bias")

    def _step(self, state: Any, token: Any) -> tuple[Any, Any]:
        state = tf.tanh(tf.gather(self.tied, token) + state @ self.mix)
        return state, tf.matmul(state, self.tied, transpose_b=True) + self.bias

    @tf.function(input_signature=[tf.TensorSpec([None], tf.int64, name="first")])
    def __call__(self, first: Any) -> dict[str, Any]:
        state = tf.zeros([tf.size(first), 8])

        def greedy(step: Any, state: Any, token: Any, made: Any) -> tuple[Any, ...]:
            state, logits = self._step(state, token)
            token = tf.argmax(logits, axis=-1)
            return step + 1, state, token, made.write(step, token)

        def best(step: Any, state: Any, tokens: Any) -> tuple[Any, ...]:
            state, logits = self._step(state, tokens[:, step % 3])
            return step + 1, state, tf.cast(tf.math.top_k(logits, 3).indices, tf.int64)

        made = tf.TensorArray(tf.int64, STEPS, element_shape=[None])
        going = lambda step, *rest: step < STEPS  # noqa: E731
        _, last, _, made = tf.while_loop(going, greedy, (0, state, first, made))
        tokens = tf.stack([first] * 3, axis=1)
        shapes = (tf.TensorShape([]), tf.TensorShape([None, 8]), tf.TensorShape([None, None]))
        _, _, beams = tf.while_loop(going, best, (0, state, tokens), shape_invariants=shapes)
        return {"tokens": made.stack(), "state": last, "beams": beams}


class Mapped(tf.Module):
    """A loop in a loop, a map, and a chain whose length the data decide (0 steps too)."""

    def __init__(self) -> None:
        super().__init__()
        self.link = tf.Variable((np.arange(200) * 7 + 3) % 200, dtype=tf.int64, name="link")
        self.rows = tf.Variable(numbers(200), name="rows")

    @tf.function(
        input_signature=[
            tf.TensorSpec([None, 2], tf.int64, name="ids"),
            tf.TensorSpec([], tf.int32, name="steps"),
        ]
    )
    def __call__(self, ids: Any, steps: Any) -> dict[str, Any]:
        def chase(at: Any) -> Any:
            return tf.while_loop(
                lambda step, at: step < steps,
                lambda step, at: (step + 1, tf.gather(self.link, at)),
                (0, at),
            )[1]

        def each(pair: Any) -> Any:
            return tf.reduce_sum(tf.gather(self.rows, chase(pair)), axis=0)

        return {
            "mapped": tf.map_fn(each, ids, fn_output_signature=tf.TensorSpec([WIDTH], tf.float32)),
            "chased": chase(ids),
        }


class Cell(keras.layers.Layer):
    """A cell that looks up the id that is its input, in a recurrent layer's loop."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.embedding = keras.layers.Embedding(ROWS, 8)
        self.inner = keras.layers.GRUCell(8)
        self.state_size = 8

    def build(self, shape: Any) -> None:
        self.embedding.build()
        self.inner.build((None, 8))
        self.built = True

    def call(self, inputs: Any, states: Any) -> tuple[Any, Any]:
        rows = self.embedding(keras.ops.cast(inputs[:, 0], "int32"))
        return self.inner(rows, states)


def _keras_cell(path: Path) -> None:
    keras.utils.set_random_seed(31)
    ids = keras.Input((4, 1), dtype="int32", name="ids")
    states = keras.layers.RNN(Cell(), return_sequences=True)(ids)
    keras.Model(ids, keras.layers.Dense(2)(states)).export(str(path), verbose=False)


class Decoder(keras.Model):
    """An LSTM that decodes greedily, step by step, from its own output."""

    def __init__(self) -> None:
        super().__init__()
        keras.utils.set_random_seed(32)
        self.embedding = keras.layers.Embedding(ROWS, 8)
        self.cell = keras.layers.LSTMCell(8)
        self.head = keras.layers.Dense(ROWS)

    def call(self, first: Any) -> Any:
        batch = keras.ops.shape(first)[0]
        zeros = keras.ops.zeros((batch, 8))

        def step(number: Any, token: Any, hidden: Any, carry: Any, made: Any) -> tuple[Any, ...]:
            _, (hidden, carry) = self.cell(self.embedding(token), [hidden, carry])
            token = tf.argmax(self.head(hidden), axis=-1, output_type=tf.int32)
            return number + 1, token, hidden, carry, made.write(number, token)

        made = tf.TensorArray(tf.int32, STEPS, element_shape=[None])
        state = (0, first, zeros, zeros, made)
        done = tf.while_loop(lambda number, *rest: number < STEPS, step, state)
        return keras.ops.transpose(done[-1].stack())


def _keras_decoder(path: Path) -> None:
    model = Decoder()
    model(np.array([1, 2], np.int32))
    signature = [tf.TensorSpec([None], tf.int32, name="ids")]
    model.export(str(path), input_signature=signature, verbose=False)


def flow_of_tensorflow_1(*, lowered: bool, use_resource: bool) -> dict[str, Any]:
    """Two branches, a loop whose ids come round, and one in the other, over three tables."""
    if lowered:
        v1.disable_control_flow_v2()
    try:
        first, second, third = (
            v1.get_variable(name, initializer=numbers(ROWS), use_resource=use_resource)
            for name in ("first", "second", "third")
        )
        ids = v1.placeholder(tf.int64, [None], "ids")
        steps = v1.placeholder(tf.int32, [], "steps")
        branch = v1.cond(
            steps > 1, lambda: tf.gather(first, ids), lambda: tf.gather(second, ids) + 1.0
        )

        def hop(step: Any, at: Any) -> tuple[Any, Any]:
            rows = v1.cond(
                tf.equal(step % 2, 0), lambda: tf.gather(third, at), lambda: tf.gather(first, at)
            )
            return step + 1, tf.cast(rows[:, 1], tf.int64) * 5 % ROWS

        hops = v1.while_loop(lambda step, at: step < steps, hop, (0, ids))[1]
        found = {"branch": branch, "hops": hops, "after": tf.gather(second, hops)}
        return {"serving_default": ({"ids": ids, "steps": steps}, found)}
    finally:
        if lowered:
            v1.enable_control_flow_v2()


@st.composite
def _branch_feeds(draw: st.DrawFn) -> Feeds:
    return {
        "ids": draw(int_array(0, ROWS, (draw(st.integers(1, 5)),), np.int64)),
        "which": np.array(draw(st.integers(0, 3)), np.int32),
    }


def _ids(name: str, dtype: type = np.int64, *inner: int) -> st.SearchStrategy[Feeds]:
    shapes = st.integers(1, 4).map(lambda batch: (batch, *inner))
    return shapes.flatmap(lambda s: int_array(0, ROWS, s, dtype)).map(lambda ids: {name: ids})


@st.composite
def _with_steps(draw: st.DrawFn, *inner: int) -> Feeds:
    return {
        "ids": draw(int_array(0, ROWS, (draw(st.integers(0, 4)), *inner), np.int64)),
        "steps": np.array(draw(st.integers(0, 4)), np.int32),
    }


def _tensorflow_1(name: str, *, lowered: bool, use_resource: bool) -> ModelCase:
    def build() -> dict[str, Any]:
        return flow_of_tensorflow_1(lowered=lowered, use_resource=use_resource)

    return ModelCase(name, lambda path: export_graph(path, build), _with_steps())


def _module(name: str, make: Callable[[], tf.Module], feeds: st.SearchStrategy[Feeds]) -> ModelCase:
    return ModelCase(name, lambda path: _save(make(), path), feeds)


CASES = (
    _module("branches", Branches, _branch_feeds()),
    _module("read_outside", ReadOutside, _ids("ids")),
    _module("greedy", Greedy, _ids("first")),
    _module("mapped", Mapped, _with_steps(2)),
    ModelCase("keras_cell", _keras_cell, _ids("ids", np.int32, 4, 1)),
    ModelCase("keras_decoder", _keras_decoder, _ids("ids", np.int32)),
    _tensorflow_1("tf1_flow_ref", lowered=False, use_resource=False),
    _tensorflow_1("tf1_flow_resource", lowered=False, use_resource=True),
    _tensorflow_1("tf1_lowered_ref", lowered=True, use_resource=False),
    _tensorflow_1("tf1_lowered_resource", lowered=True, use_resource=True),
)
