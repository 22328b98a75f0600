"""Real SavedModels that are made of steps: Keras encoders, and a greedy decoder that stops."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tests.region_models import batched

WIDTH, UNITS, VOCABULARY, STOP_TOKEN = 6, 9, 17, 2


def _save(model: keras.Model, path: Path, signatures: dict[str, Any]) -> None:
    module = tf.Module()
    module.kept = [variable.value for variable in model.variables]
    tf.saved_model.save(module, str(path), signatures=signatures)


def export_encoder(path: Path) -> None:
    """A Keras LSTM over [rows, steps, WIDTH], and its cell as the signature `step`."""
    keras.utils.set_random_seed(1)
    layer = keras.layers.LSTM(UNITS, return_sequences=True, return_state=True)
    inputs = keras.Input([None, WIDTH], name="x")
    model = keras.Model(inputs, layer(inputs))

    @tf.function(
        input_signature=[
            tf.TensorSpec([None, WIDTH], tf.float32, name="x"),
            tf.TensorSpec([None, UNITS], tf.float32, name="h"),
            tf.TensorSpec([None, UNITS], tf.float32, name="c"),
        ]
    )
    def step(x: Any, h: Any, c: Any) -> dict[str, Any]:
        output, (new_h, new_c) = layer.cell(x, [h, c])
        return {"output": output, "new_h": new_h, "new_c": new_c}

    @tf.function(input_signature=[tf.TensorSpec([None, None, WIDTH], tf.float32, name="x")])
    def whole(x: Any) -> dict[str, Any]:
        outputs, h, c = model(x)
        return {"outputs": outputs, "h": h, "c": c}

    _save(model, path, {"serving_default": whole, "step": step})


class Decoder(keras.Model):
    """A GRU encoder whose state a greedy decoder starts from; logits are large, so it is sure."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = keras.layers.Embedding(VOCABULARY, WIDTH)
        self.encoder = keras.layers.GRU(UNITS)
        self.cell = keras.layers.GRUCell(UNITS)
        self.logits = keras.layers.Dense(
            VOCABULARY, kernel_initializer=keras.initializers.RandomNormal(stddev=3.0)
        )

    def call(self, source: Any) -> Any:
        state = self.encoder(self.embedding(source))
        return self.next(tf.ones_like(source[:, 0]), state)

    def next(self, token: Any, state: Any) -> tuple[Any, Any]:
        output, (new_state,) = self.cell(self.embedding(token), [state])
        return tf.argmax(self.logits(output), axis=1), new_state


def export_decoder(path: Path, *, whole: bool = True) -> None:
    """Signatures: `encode` (source to state), `next` (one token), and, if `whole`, both in one.

    That is `serving_default`, which decodes one source in a loop of TensorFlow's, until it has the
    stop token. A table that is read there cannot be cut.
    """
    keras.utils.set_random_seed(5)
    model = Decoder()
    model(np.ones((1, 2), np.int64))

    @tf.function(input_signature=[tf.TensorSpec([None, None], tf.int64, name="source")])
    def encode(source: Any) -> dict[str, Any]:
        return {"state": model.encoder(model.embedding(source))}

    @tf.function(
        input_signature=[
            tf.TensorSpec([None], tf.int64, name="token"),
            tf.TensorSpec([None, UNITS], tf.float32, name="state"),
        ]
    )
    def next_token(token: Any, state: Any) -> dict[str, Any]:
        token, state = model.next(token, state)
        return {"next_token": token, "new_state": state}

    @tf.function(
        input_signature=[
            tf.TensorSpec([None, None], tf.int64, name="source"),
            tf.TensorSpec([], tf.int64, name="most"),
        ]
    )
    def greedy(source: Any, most: Any) -> dict[str, Any]:
        state = model.encoder(model.embedding(source))
        token = tf.ones_like(source[:, 0])
        tokens = tf.TensorArray(tf.int64, 0, dynamic_size=True, element_shape=[None])
        at = tf.constant(0, tf.int64)
        while at < most and (at == 0 or token[0] != STOP_TOKEN):
            token, state = model.next(token, state)
            tokens = tokens.write(tf.cast(at, tf.int32), token)
            at += 1
        return {"tokens": tf.transpose(tokens.stack()), "state": state}

    signatures = {"encode": encode, "next": next_token}
    _save(model, path, signatures | ({"serving_default": greedy} if whole else {}))


def checked(array: Any) -> Any:
    """The array, refused in the graph if it has a negative number."""
    return tf.debugging.Assert(tf.reduce_all(array >= 0), [array])


class Fragile(tf.Module):
    """A running sum that refuses negative numbers, for the whole batch."""

    @tf.function(
        input_signature=[
            tf.TensorSpec([None], tf.int64, name="x"),
            tf.TensorSpec([None], tf.int64, name="total"),
            tf.TensorSpec([None], tf.string, name="text"),
        ]
    )
    def step(self, x: Any, total: Any, text: Any) -> dict[str, Any]:
        with tf.control_dependencies([checked(x)]):
            return {
                "sum": total + x,
                "longer": tf.strings.join([text, tf.strings.as_string(x)]),
            }


def export_fragile(path: Path) -> None:
    """The signature `step` of `Fragile`."""
    module = Fragile()
    tf.saved_model.save(module, str(path), signatures={"step": module.step})


def export_halving(path: Path) -> None:
    """The signature `step`: it halves what it gets, in a region."""
    module = tf.Module()
    half = batched(lambda x: x * 0.5)

    @tf.function(input_signature=[tf.TensorSpec([None, WIDTH], tf.float32, name="x")])
    def step(x: Any) -> dict[str, Any]:
        return {"half": tf.ensure_shape(half(x), [None, WIDTH])}

    tf.saved_model.save(module, str(path), signatures={"step": step})
