"""Real SavedModels with loops over time: those that can be stepped, and those that cannot."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import keras
import tensorflow as tf

WIDTH, UNITS, WORDS = 5, 7, 30


def _keras(build: Callable[[Any], Any], *, of_words: bool = False) -> Callable[[Path], None]:
    def export(path: Path) -> None:
        keras.utils.set_random_seed(3)
        if of_words:
            inputs = keras.Input([None], dtype="int64", name="x")
            values = keras.layers.Embedding(WORDS, WIDTH, mask_zero=True)(inputs)
        else:
            inputs = values = keras.Input([None, WIDTH], name="x")
        keras.Model(inputs, build(values)).export(str(path), verbose=False)

    return export


def _function(body: Callable[[Any], Any]) -> Callable[[Path], None]:
    def export(path: Path) -> None:
        spec = tf.TensorSpec([None, None, WIDTH], tf.float32, name="x")
        module = tf.Module()
        function = tf.function(lambda x: {"y": body(x)}, input_signature=[spec])
        tf.saved_model.save(module, str(path), signatures={"serving_default": function})

    return export


def _stacked(x: Any) -> Any:
    once = keras.layers.LSTM(UNITS, return_sequences=True)(x)
    return keras.layers.Dense(2)(keras.layers.GRU(UNITS, return_sequences=True)(once))


def _with_states(x: Any) -> Any:
    return keras.layers.LSTM(UNITS, return_sequences=True, return_state=True)(x)


def _running_means(x: Any) -> Any:
    """A scan by hand: what is written is not the state, and there are two written lists."""
    steps = tf.shape(x)[1]
    items = tf.TensorArray(tf.float32, steps).unstack(tf.transpose(x, [1, 0, 2]))
    sums, squares = tf.TensorArray(tf.float32, steps), tf.TensorArray(tf.float32, steps)

    def body(at: Any, total: Any, sums: Any, squares: Any) -> Any:
        item = items.read(at)
        total = total + item
        return at + 1, total, sums.write(at, total * 0.5), squares.write(at, item * item)

    _, total, sums, squares = tf.while_loop(
        lambda at, *_: at < steps, body, (0, tf.zeros_like(x[:, 0]), sums, squares)
    )
    return tf.transpose(sums.stack() + squares.stack(), [1, 0, 2]) + total[:, None]


def _over(x: Any, next_total: Callable[[Any, Any, Any], Any], more: Any = None) -> Any:
    items = tf.TensorArray(tf.float32, tf.shape(x)[1]).unstack(tf.transpose(x, [1, 0, 2]))
    steps = tf.shape(x)[1]
    more = more or (lambda at, total: at < steps)
    return tf.while_loop(
        more,
        lambda at, total: (at + 1, next_total(total, items.read(at), at)),
        (0, tf.zeros_like(x[:, 0])),
    )[1]


#: By name: how to export it, whether its input is words.
LIFTED: Mapping[str, Callable[[Path], None]] = {
    "lstm": _keras(keras.layers.LSTM(UNITS)),
    "lstm_with_states": _keras(_with_states),
    "gru": _keras(keras.layers.GRU(UNITS)),
    "gru_reset_before": _keras(keras.layers.GRU(UNITS, reset_after=False)),
    "simple": _keras(keras.layers.SimpleRNN(UNITS, return_sequences=True)),
    "backwards": _keras(keras.layers.LSTM(UNITS, go_backwards=True)),
    "both_ways": _keras(keras.layers.Bidirectional(keras.layers.GRU(UNITS))),
    "stacked": _keras(_stacked),
    "masked_words": _keras(keras.layers.LSTM(UNITS), of_words=True),
    "masked_to_zero": _keras(
        keras.layers.GRU(UNITS, return_sequences=True, zero_output_for_mask=True), of_words=True
    ),
    "running_means": _function(_running_means),
}

#: By name: how to export it, and why it stays.
WHOLE: Mapping[str, tuple[Callable[[Path], None], str]] = {
    "mixes_rows": (
        _function(lambda x: _over(x, lambda total, item, _: total + tf.reduce_mean(item, 0))),
        "Mean .* is not known to keep rows apart",
    ),
    "counts": (
        _function(lambda x: _over(x, lambda t, item, at: t + item * tf.cast(at, tf.float32))),
        "its counter .* is used for more than counting",
    ),
    "stops_by_value": (
        _function(
            lambda x: _over(
                x,
                lambda total, item, _: total + item,
                lambda at, total: (at < tf.shape(x)[1]) & (tf.reduce_max(total) < 3.0),
            )
        ),
        "its condition .* is no bound on a counter",
    ),
    "draws": (
        _function(
            lambda x: _over(x, lambda t, item, _: t + item * tf.random.uniform(tf.shape(item)))
        ),
        "RandomUniform .* has an effect",
    ),
}


def export_lowered(path: Path) -> None:
    """A loop of TensorFlow 1's kind, Enter to Exit."""
    v1 = tf.compat.v1
    with tf.Graph().as_default(), v1.Session() as session:
        v1.disable_control_flow_v2()
        try:
            x = v1.placeholder(tf.float32, [None, None, WIDTH], "x")
            y = _over(x, lambda total, item, _: total + item)
        finally:
            v1.enable_control_flow_v2()
        builder = v1.saved_model.Builder(str(path))
        info = v1.saved_model.build_tensor_info
        signature = v1.saved_model.build_signature_def({"x": info(x)}, {"y": info(y)}, "predict")
        builder.add_meta_graph_and_variables(session, ["serve"], {"serving_default": signature})
        builder.save()
