"""Real SavedModels, made by TensorFlow and Keras, one for each way to read a table."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from hypothesis import strategies as st

#: Every table of these models is at least this large, every other variable smaller.
THRESHOLD = 1000

Feeds = dict[str, np.ndarray]


@dataclass(frozen=True)
class ModelCase:
    """A model to export, and how to draw a valid request for it.

    `feeds` are of the signature serving_default, `others` of further signatures, by name.
    """

    name: str
    export: Callable[[Path], None]
    feeds: st.SearchStrategy[Feeds]
    others: Mapping[str, st.SearchStrategy[Feeds]] = field(default_factory=dict)


def _variable(rng: np.random.Generator, shape: tuple[int, ...], name: str) -> tf.Variable:
    return tf.Variable(rng.normal(size=shape).astype(np.float32), name=name)


class _Gathers(tf.Module):
    """Plain gathers, of several ranks, two into one table, one whose ids come from another."""

    def __init__(self) -> None:
        super().__init__()
        rng = np.random.default_rng(1)
        self.wide = _variable(rng, (90, 12), "wide")
        self.deep = _variable(rng, (70, 3, 2), "deep")
        self.link = tf.Variable(rng.integers(0, 90, 150).astype(np.int64), name="link")
        self.dense = _variable(rng, (12, 4), "dense")

    @tf.function(
        input_signature=[
            tf.TensorSpec([None], tf.int64, name="ids"),
            tf.TensorSpec([None, 3], tf.int32, name="grid"),
            tf.TensorSpec([None], tf.int64, name="chain"),
        ]
    )
    def __call__(self, ids: Any, grid: Any, chain: Any) -> dict[str, Any]:
        rows = tf.nn.embedding_lookup(self.wide, ids)
        return {
            "rows": rows,
            "scores": rows @ self.dense,
            "grid": tf.gather(self.wide, tf.minimum(grid, 89)),
            "deep": tf.gather(self.deep, grid),
            "chained": tf.gather(self.wide, tf.gather(self.link, chain)) * 2.0,
            "echo": tf.cast(ids, tf.float32),
        }


class _Bags(tf.Module):
    """All combiners of embedding_lookup_sparse and its safe form, with and without weights."""

    def __init__(self) -> None:
        super().__init__()
        rng = np.random.default_rng(2)
        self.bags = _variable(rng, (110, 10), "bags")

    @tf.function(
        input_signature=[
            tf.TensorSpec([None, 2], tf.int64, name="indices"),
            tf.TensorSpec([None], tf.int64, name="values"),
            tf.TensorSpec([None], tf.float32, name="weights"),
            tf.TensorSpec([None], tf.int64, name="rows"),
        ]
    )
    def __call__(self, indices: Any, values: Any, weights: Any, rows: Any) -> dict[str, Any]:
        shape = tf.stack([tf.shape(rows, tf.int64)[0], 16])
        ids = tf.SparseTensor(indices, values, shape)
        weighted = tf.SparseTensor(indices, weights, shape)
        made = {}
        for combiner in ("sum", "mean", "sqrtn"):
            for label, sp_weights in (("plain", None), ("weighted", weighted)):
                made[f"{combiner}_{label}"] = tf.nn.embedding_lookup_sparse(
                    self.bags, ids, sp_weights, combiner=combiner
                )
                made[f"safe_{combiner}_{label}"] = tf.nn.safe_embedding_lookup_sparse(
                    self.bags, ids, sp_weights, combiner=combiner
                )
        return made


class _HandWritten(tf.Module):
    """Pooling written by hand: over an axis and over segments, weighted and not."""

    def __init__(self) -> None:
        super().__init__()
        rng = np.random.default_rng(3)
        self.table = _variable(rng, (64, 8), "table")

    @tf.function(
        input_signature=[
            tf.TensorSpec([None, 4], tf.int32, name="ids"),
            tf.TensorSpec([None, 4], tf.float32, name="weights"),
        ]
    )
    def __call__(self, ids: Any, weights: Any) -> dict[str, Any]:
        rows = tf.gather(self.table, ids)
        flat = tf.reshape(ids, [-1])
        segments = tf.repeat(tf.range(tf.shape(ids)[0]), 4)
        return {
            "sum": tf.reduce_sum(tf.gather(self.table, ids), axis=1),
            "mean": tf.reduce_mean(tf.gather(self.table, ids), axis=-2),
            "kept": tf.reduce_mean(tf.gather(self.table, ids), axis=1, keepdims=True),
            "weighted": tf.reduce_sum(
                tf.gather(self.table, ids) * tf.expand_dims(weights, -1), axis=1
            ),
            "segment_sum": tf.math.segment_sum(tf.gather(self.table, flat), segments),
            "segment_mean": tf.math.segment_mean(tf.gather(self.table, flat), segments),
            "used_twice": tf.reduce_sum(rows, axis=1) + tf.reduce_max(rows, axis=1),
            "columns": tf.reduce_sum(tf.gather(self.table, ids), axis=2),
        }


def _save(module: tf.Module, path: Path) -> None:
    tf.saved_model.save(module, str(path), signatures=module.__call__)


def _keras_embedding(path: Path) -> None:
    keras.utils.set_random_seed(4)
    ids = keras.Input((5,), dtype="int32", name="ids")
    extra = keras.Input((3,), name="extra")
    rows = keras.layers.Embedding(60, 8, name="items")(ids)
    pooled = keras.layers.GlobalAveragePooling1D()(rows)
    joined = keras.layers.Concatenate()([pooled, extra])
    keras.Model([ids, extra], keras.layers.Dense(2)(joined)).export(str(path), verbose=False)


def _keras_masked(path: Path) -> None:
    keras.utils.set_random_seed(5)
    ids = keras.Input((4,), dtype="int32", name="ids")
    rows = keras.layers.Embedding(50, 8, mask_zero=True)(ids)
    pooled = keras.layers.GlobalAveragePooling1D()(rows)
    keras.Model(ids, keras.layers.Dense(3)(pooled)).export(str(path), verbose=False)


def _keras_text(path: Path) -> None:
    """String ids by hashing and by a vocabulary, into two tables."""
    keras.utils.set_random_seed(6)
    word = keras.Input((1,), dtype="string", name="word")
    hashed = keras.layers.Embedding(90, 4)(keras.layers.Hashing(num_bins=90)(word))
    looked_up = keras.layers.StringLookup(vocabulary=["a", "b", "c"])(word)
    known = keras.layers.Embedding(70, 4)(looked_up)
    joined = keras.layers.Concatenate()([hashed, known])
    outputs = keras.layers.Dense(2)(keras.layers.Flatten()(joined))
    keras.Model(word, outputs).export(str(path), verbose=False)


def _keras_sequence(path: Path) -> None:
    """An embedding before a while loop."""
    keras.utils.set_random_seed(7)
    ids = keras.Input((6,), dtype="int32", name="ids")
    rows = keras.layers.Embedding(40, 8, mask_zero=True)(ids)
    keras.Model(ids, keras.layers.LSTM(5)(rows)).export(str(path), verbose=False)


class _Ragged(tf.Module):
    """Ragged ids, half-precision rows, and a variable that one use keeps whole."""

    def __init__(self) -> None:
        super().__init__()
        rng = np.random.default_rng(8)
        self.full = _variable(rng, (80, 6), "full")
        self.half = tf.Variable(rng.normal(size=(120, 5)).astype(np.float16), name="half")
        self.wide = tf.Variable(tf.cast(rng.normal(size=(90, 6)), tf.bfloat16), name="wide")
        self.kept = _variable(rng, (80, 6), "kept")

    @tf.function(
        input_signature=[
            tf.TensorSpec([None], tf.int64, name="values"),
            tf.TensorSpec([None], tf.int64, name="splits"),
        ]
    )
    def __call__(self, values: Any, splits: Any) -> dict[str, Any]:
        ids = tf.RaggedTensor.from_row_splits(values, splits)
        rows = tf.nn.embedding_lookup(self.full, ids)
        return {
            "sum": tf.reduce_sum(rows, axis=1),
            "sparse": tf.nn.safe_embedding_lookup_sparse(self.full, ids.to_sparse()),
            "half": tf.nn.embedding_lookup(self.half, values),
            "bfloat16": tf.cast(tf.gather(self.wide, values), tf.float32),
            "kept": tf.gather_nd(self.kept, values[:, None]),
        }


def int_array(low: int, high: int, shape: tuple[int, ...], dtype: type) -> st.SearchStrategy:
    count = int(np.prod(shape))
    values = st.lists(st.integers(low, high - 1), min_size=count, max_size=count)
    return values.map(lambda v: np.array(v, dtype).reshape(shape))


def float_array(shape: tuple[int, ...]) -> st.SearchStrategy:
    count = int(np.prod(shape))
    values = st.lists(st.floats(-4, 4, width=16), min_size=count, max_size=count)
    return values.map(lambda v: np.array(v, np.float32).reshape(shape))


@st.composite
def _gather_feeds(draw: st.DrawFn) -> Feeds:
    batch = draw(st.integers(0, 6))
    return {
        "ids": draw(int_array(0, 90, (batch,), np.int64)),
        "grid": draw(int_array(0, 70, (batch, 3), np.int32)),
        "chain": draw(int_array(0, 150, (batch,), np.int64)),
    }


@st.composite
def _bag_feeds(draw: st.DrawFn) -> Feeds:
    lengths = draw(st.lists(st.integers(0, 5), min_size=1, max_size=6))
    pairs = [(row, place) for row, length in enumerate(lengths) for place in range(length)]
    weights = st.floats(0.125, 4, width=16)
    return {
        "indices": np.array(pairs, np.int64).reshape(-1, 2),
        "values": draw(int_array(0, 110, (len(pairs),), np.int64)),
        "weights": np.array(
            draw(st.lists(weights, min_size=len(pairs), max_size=len(pairs))), np.float32
        ),
        "rows": np.zeros(len(lengths), np.int64),
    }


@st.composite
def _hand_feeds(draw: st.DrawFn) -> Feeds:
    batch = draw(st.integers(1, 5))
    return {
        "ids": draw(int_array(0, 64, (batch, 4), np.int32)),
        "weights": draw(float_array((batch, 4))),
    }


@st.composite
def _keras_feeds(draw: st.DrawFn) -> Feeds:
    batch = draw(st.integers(1, 5))
    return {
        "ids": draw(int_array(-60, 60, (batch, 5), np.int32)),
        "extra": draw(float_array((batch, 3))),
    }


@st.composite
def _masked_feeds(draw: st.DrawFn) -> Feeds:
    ids = draw(int_array(0, 50, (draw(st.integers(1, 5)), 4), np.int32))
    ids[:, 0] = np.maximum(ids[:, 0], 1)
    return {"ids": ids}


@st.composite
def _text_feeds(draw: st.DrawFn) -> Feeds:
    words = draw(st.lists(st.sampled_from([b"a", b"c", b"", b"other"]), min_size=1, max_size=5))
    return {"word": np.array(words, object).reshape(-1, 1)}


@st.composite
def _sequence_feeds(draw: st.DrawFn) -> Feeds:
    return {"ids": draw(int_array(0, 40, (draw(st.integers(1, 4)), 6), np.int32))}


@st.composite
def _ragged_feeds(draw: st.DrawFn) -> Feeds:
    lengths = draw(st.lists(st.integers(0, 4), min_size=1, max_size=5))
    splits = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    return {"values": draw(int_array(0, 80, (int(splits[-1]),), np.int64)), "splits": splits}


CASES = (
    ModelCase("gathers", lambda path: _save(_Gathers(), path), _gather_feeds()),
    ModelCase("bags", lambda path: _save(_Bags(), path), _bag_feeds()),
    ModelCase("hand_written", lambda path: _save(_HandWritten(), path), _hand_feeds()),
    ModelCase("keras_embedding", _keras_embedding, _keras_feeds()),
    ModelCase("keras_masked", _keras_masked, _masked_feeds()),
    ModelCase("keras_text", _keras_text, _text_feeds()),
    ModelCase("keras_sequence", _keras_sequence, _sequence_feeds()),
    ModelCase("ragged", lambda path: _save(_Ragged(), path), _ragged_feeds()),
)
