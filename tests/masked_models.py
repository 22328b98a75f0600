"""SavedModels whose pooling is masked or weighted: forms that are pooled, and forms that only look
like it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf

ROWS, LENGTH = 60, 4

#: (rows of the ids, ids, weights) -> one output.
Form = Callable[[Callable[[Any], Any], Any, Any], Any]


def _mask(ids: Any) -> Any:
    return tf.not_equal(ids, 0)


def _ones(ids: Any) -> Any:
    return tf.cast(_mask(ids), tf.float32)[..., None]


def _mean(rows: Any, ids: Any, over: Callable[[Any], Any]) -> Any:
    ones = _ones(ids)
    return tf.reduce_sum(rows * ones, axis=1) / over(tf.reduce_sum(ones, axis=1))


def _where(rows: Any, ids: Any, zeros: Any) -> Any:
    return tf.reduce_sum(tf.where(_mask(ids)[..., None], rows, zeros), axis=1)


def _dropped(look_up: Callable[[Any], Any], ids: Any, _: Any) -> Any:
    kept = tf.where(tf.equal(ids, 0)[..., None], 0.0, look_up(ids))
    return tf.reduce_sum(kept, axis=1, keepdims=True)


def _zeros_like(look_up: Callable[[Any], Any], ids: Any, _: Any) -> Any:
    rows = look_up(ids)
    return _where(rows, ids, tf.zeros_like(rows))


def _masked_and_weighted(look_up: Callable[[Any], Any], ids: Any, weights: Any) -> Any:
    return _where(look_up(ids) * weights[..., None], ids, 0.0)


def _segments(look_up: Callable[[Any], Any], ids: Any, weights: Any) -> Any:
    flat, factors = tf.reshape(ids, [-1]), tf.reshape(weights, [-1, 1])
    rows = tf.where(_mask(flat)[:, None], look_up(flat) * factors, 0.0)
    return tf.math.segment_mean(rows, tf.repeat(tf.range(tf.shape(ids)[0]), LENGTH))


def _position(look_up: Callable[[Any], Any], ids: Any, _: Any) -> Any:
    return tf.reduce_sum(look_up(ids) * tf.constant([[[1.0], [0.5], [0.25], [0.125]]]), axis=1)


def _lengths(look_up: Callable[[Any], Any], ids: Any, weights: Any) -> Any:
    """The first so many ids of each row."""
    mask = tf.sequence_mask(tf.cast(weights[:, 0], tf.int32), LENGTH)[..., None]
    return tf.reduce_mean(tf.where(mask, look_up(ids), [0.0]), axis=-2)


def _branch(look_up: Callable[[Any], Any], ids: Any, weights: Any) -> Any:
    """Where the running graph calls the shards."""
    return tf.cond(
        tf.reduce_sum(weights) > 0,
        lambda: _masked_and_weighted(look_up, ids, weights),
        lambda: _where(look_up(ids), ids, 0.0),
    )


def _one_id_many_weights(look_up: Callable[[Any], Any], ids: Any, weights: Any) -> Any:
    rows = tf.where(weights[..., None] > 0, look_up(ids[:, :1]), 0.0)
    return tf.reduce_sum(rows, axis=1)


POOLED: dict[str, Form] = {
    "sum": lambda of, ids, _: tf.reduce_sum(of(ids) * _ones(ids), axis=1),
    "mean": lambda of, ids, _: _mean(of(ids), ids, lambda n: n),
    "mean_maximum": lambda of, ids, _: _mean(of(ids), ids, lambda n: tf.maximum(n, 1.0)),
    "mean_epsilon": lambda of, ids, _: _mean(of(ids), ids, lambda n: n + 1e-8),
    "mean_no_nan": lambda of, ids, _: tf.math.divide_no_nan(
        tf.reduce_sum(_ones(ids) * of(ids), axis=1), tf.reduce_sum(_ones(ids), axis=1)
    ),
    "weighted": lambda of, ids, w: tf.reduce_sum(of(ids) * w[..., None], axis=1),
    "softmax": lambda of, ids, w: tf.reduce_sum(
        of(ids) * tf.nn.softmax(w, axis=-1)[:, :, tf.newaxis], axis=-2
    ),
    "position": _position,
    "where": lambda of, ids, _: _where(of(ids), ids, 0.0),
    "where_zeros": lambda of, ids, _: _where(of(ids), ids, tf.zeros([1, 1, 1])),
    "zeros_like": _zeros_like,
    "dropped": _dropped,
    "masked_and_weighted": _masked_and_weighted,
    "segments": _segments,
    "lengths": _lengths,
    "one_id_many_weights": _one_id_many_weights,
    "branch": _branch,
}


def _attention(look_up: Callable[[Any], Any], ids: Any, _: Any) -> Any:
    rows = look_up(ids)
    return tf.reduce_sum(rows * tf.reduce_sum(rows, axis=2, keepdims=True), axis=1)


def _masked_by_rows(look_up: Callable[[Any], Any], ids: Any, _: Any) -> Any:
    rows = look_up(ids)
    return tf.reduce_sum(tf.where(rows[..., :1] > 0, rows, 0.0), axis=1)


def _read_beside(look_up: Callable[[Any], Any], ids: Any, _: Any) -> Any:
    rows = look_up(ids)
    return _where(rows, ids, 0.0) + tf.reduce_max(rows, axis=1)


def _weighted_after_the_mask(look_up: Callable[[Any], Any], ids: Any, weights: Any) -> Any:
    """A weight that is no number makes a masked row no number."""
    kept = tf.where(_mask(ids)[..., None], look_up(ids), 0.0)
    return tf.reduce_sum(kept * weights[..., None], axis=1)


def _as_float64(look_up: Callable[[Any], Any], ids: Any, weights: Any) -> Any:
    wide = tf.cast(look_up(ids), tf.float64) * tf.cast(weights, tf.float64)[..., None]
    return tf.cast(tf.reduce_sum(wide, axis=1), tf.float32)


def _zeros_like_used_twice(look_up: Callable[[Any], Any], ids: Any, _: Any) -> Any:
    rows = look_up(ids)
    zeros = tf.zeros_like(rows)
    return _where(rows, ids, zeros) + tf.reduce_sum(zeros, axis=1)


NOT_POOLED: dict[str, Form] = {
    "attention": _attention,
    "masked_by_rows": _masked_by_rows,
    "read_beside": _read_beside,
    "weighted_after_the_mask": _weighted_after_the_mask,
    "as_float64": _as_float64,
    "zeros_like_used_twice": _zeros_like_used_twice,
    "else_ones": lambda of, ids, _: _where(of(ids), ids, 1.0),
    "else_wider": lambda of, ids, _: _where(of(ids[:, :1]), ids[:, :1], tf.zeros([1, LENGTH, 1])),
    "columns": lambda of, ids, _: tf.reduce_sum(of(ids) * _ones(ids), axis=2),
    "over_the_batch": lambda of, ids, _: tf.reduce_sum(of(ids) * _ones(ids), axis=0),
    "each_column": lambda of, ids, w: tf.reduce_sum(of(ids) * tf.abs(w)[:, tf.newaxis, :], axis=1),
    "masked_columns": lambda of, ids, w: tf.reduce_sum(
        tf.where(w[:, tf.newaxis, :] > 0, of(ids), 0.0), axis=1
    ),
    "of_lower_rank": lambda of, ids, w: tf.reduce_sum(
        of(ids) * tf.reduce_sum(w, axis=0)[:, None], axis=1
    ),
    "of_higher_rank": lambda of, ids, w: tf.reduce_sum(of(ids) * w[:, None, :, None], axis=2),
    "maximum": lambda of, ids, _: tf.reduce_max(of(ids) * _ones(ids), axis=1),
}


class _Forms(tf.Module):
    """One form of pooling for each output, over one table, whose `first` rows are all one value.

    It has as many columns as there are ids.
    """

    def __init__(self, forms: dict[str, Form], *first: float) -> None:
        super().__init__()
        values = np.random.default_rng(9).normal(size=(ROWS * 2, LENGTH)).astype(np.float32)
        values[: len(first)] = np.reshape(first, (-1, 1))
        self.table = tf.Variable(values, name="table")
        self.forms = forms

    @tf.function(
        input_signature=[
            tf.TensorSpec([None, LENGTH], tf.int32, name="ids"),
            tf.TensorSpec([None, LENGTH], tf.float32, name="weights"),
        ]
    )
    def __call__(self, ids: Any, weights: Any) -> dict[str, Any]:
        def look_up(of: Any) -> Any:
            return tf.nn.embedding_lookup(self.table, of)

        return {name: form(look_up, ids, weights) for name, form in self.forms.items()}


class _OfWidthOne(tf.Module):
    """Two tables of one column: each could weigh the other's rows."""

    def __init__(self) -> None:
        super().__init__()
        rng = np.random.default_rng(10)
        self.left = tf.Variable(rng.normal(size=(ROWS * 5, 1)).astype(np.float32), name="left")
        self.right = tf.Variable(rng.normal(size=(ROWS * 5, 1)).astype(np.float32), name="right")

    @tf.function(
        input_signature=[
            tf.TensorSpec([None, LENGTH], tf.int32, name="ids"),
            tf.TensorSpec([None, LENGTH], tf.float32, name="weights"),
        ]
    )
    def __call__(self, ids: Any, weights: Any) -> dict[str, Any]:
        left, right = tf.gather(self.left, ids), tf.gather(self.right, ids)
        alone = tf.gather(self.left, ids) * weights[..., None]
        return {
            "both": tf.reduce_sum(left * right, axis=1),
            "alone": tf.reduce_sum(alone, axis=1),
        }


def _keras(pool: Callable[[Any, Any], Any]) -> Callable[[Path], None]:
    def export(path: Path) -> None:
        keras.utils.set_random_seed(5)
        ids = keras.Input((LENGTH,), dtype="int32", name="ids")
        weights = keras.Input((LENGTH,), dtype="float32", name="weights")
        rows = keras.layers.Embedding(ROWS, 8, mask_zero=True)(ids)
        outputs = keras.layers.Concatenate()([pool(rows, ids), weights])
        keras.Model([ids, weights], outputs).export(str(path), verbose=False)

    return export


def _keras_by_hand(rows: Any, ids: Any) -> Any:
    ones = keras.ops.cast(keras.ops.not_equal(ids, 0), "float32")[..., None]
    return keras.ops.sum(rows * ones, axis=1) / keras.ops.maximum(keras.ops.sum(ones, axis=1), 1.0)


def _export(module: tf.Module, path: Path) -> None:
    tf.saved_model.save(module, str(path), signatures=module.__call__)


EXPORTS: dict[str, Callable[[Path], None]] = {
    "pooled": lambda path: _export(_Forms(POOLED), path),
    "pooled_not_finite": lambda path: _export(_Forms(POOLED, np.nan, np.inf), path),
    "not_pooled": lambda path: _export(_Forms(NOT_POOLED), path),
    "not_pooled_not_finite": lambda path: _export(_Forms(NOT_POOLED, np.nan, np.inf), path),
    "width_one": lambda path: _export(_OfWidthOne(), path),
    "keras_average": _keras(lambda rows, _: keras.layers.GlobalAveragePooling1D()(rows)),
    "keras_average_kept": _keras(
        lambda rows, _: keras.layers.Flatten()(
            keras.layers.GlobalAveragePooling1D(keepdims=True)(rows)
        )
    ),
    "keras_by_hand": _keras(_keras_by_hand),
}
