"""A SavedModel that multiplies queries with its variables in every way that is cut, and others.

All its variables are small whole numbers: products are exact, and many scores are equal.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf
from hypothesis import strategies as st

#: Every table is at least this large, every other variable smaller.
THRESHOLD = 1000
WIDTH = 6
ITEMS = 57
CLASSES = 83
#: Classes of the table of half-precision numbers.
HALVES = 90

Feeds = dict[str, np.ndarray]


def _whole(seed: int, shape: tuple[int, ...], dtype: Any, name: str) -> tf.Variable:
    values = np.random.default_rng(seed).integers(-2, 3, shape)
    return tf.Variable(tf.cast(values, dtype), name=name)


class Scores(tf.Module):
    """`items` and `wide` are [items, width], the others [width, classes]."""

    def __init__(self) -> None:
        super().__init__()
        self.items = _whole(1, (ITEMS, WIDTH), tf.float32, "items")
        self.kernel = _whole(2, (WIDTH, CLASSES), tf.float32, "kernel")
        self.bias = _whole(3, (CLASSES,), tf.float32, "bias")
        self.half = _whole(4, (WIDTH, HALVES), tf.float16, "half")
        self.brain = _whole(5, (HALVES, WIDTH), tf.bfloat16, "brain")
        self.wide = _whole(6, (ITEMS, WIDTH), tf.float64, "wide")

    @tf.function(
        input_signature=[
            tf.TensorSpec([None, WIDTH], tf.float32, name="x"),
            tf.TensorSpec([None, 2, WIDTH], tf.float32, name="pairs"),
            tf.TensorSpec([WIDTH], tf.float32, name="one"),
        ]
    )
    def __call__(self, x: Any, pairs: Any, one: Any) -> dict[str, Any]:
        items, kernel, bias = self.items, self.kernel, self.bias
        made = {
            "scores": tf.matmul(x, kernel),
            "biased": tf.matmul(x, kernel) + bias,
            "probabilities": tf.nn.softmax(tf.nn.bias_add(tf.matmul(x, kernel), bias)),
            "transposed": tf.matmul(tf.transpose(x), kernel, transpose_a=True),
            "items_first": tf.matmul(items, x, transpose_b=True),
            "classes_first": tf.matmul(kernel, x, transpose_a=True, transpose_b=True),
            "pairs": tf.matmul(pairs, items, transpose_b=True),
            "vector": tf.linalg.matvec(items, one),
            "vectors": tf.linalg.matvec(kernel, x, transpose_a=True),
            "best": tf.argmax(tf.matmul(x, kernel) + bias, -1),
            "best_item": tf.argmax(tf.matmul(x, items, transpose_b=True), 1, tf.int32),
            "best_of_pairs": tf.argmax(tf.matmul(pairs, kernel), 2),
            "likeliest": tf.argmax(tf.nn.softmax(tf.matmul(x, kernel)), -1),
            "half": tf.matmul(tf.cast(x, tf.float16), self.half),
            "einsum": tf.einsum("bpd,nd->bpn", pairs, items),
            "worst": tf.argmin(tf.matmul(x, kernel), -1),
            "product_twice": tf.matmul(tf.matmul(x, items, transpose_b=True), items),
        }
        ranked = {
            "items": lambda: tf.matmul(x, items, transpose_b=True),
            "classes": lambda: tf.matmul(x, kernel),
            "bias": lambda: tf.nn.bias_add(tf.matmul(x, kernel), bias),
            "left_bias": lambda: (
                tf.constant(np.arange(CLASSES) % 5, tf.float32) + tf.matmul(x, kernel)
            ),
            "softmax": lambda: tf.nn.softmax(tf.matmul(x, kernel) + bias),
            "log_softmax": lambda: tf.nn.log_softmax(tf.matmul(x, items, transpose_b=True)),
            "pairs": lambda: tf.matmul(pairs, kernel) + bias,
            "vector": lambda: tf.linalg.matvec(items, one),
            "vectors": lambda: tf.linalg.matvec(items, x),
            "half": lambda: tf.matmul(tf.cast(x, tf.float16), self.half),
            "brain": lambda: tf.matmul(tf.cast(x, tf.bfloat16), self.brain, transpose_b=True),
            "einsum": lambda: tf.einsum("dn,bd->bn", kernel, x) + bias,
            "wide": lambda: tf.matmul(tf.cast(x, tf.float64), self.wide, transpose_b=True),
        }
        for name, scores in ranked.items():
            for k in (1, 5, 40):
                values, indices = tf.math.top_k(scores(), k)
                made[f"top_{k}_{name}"] = tf.cast(values, tf.float64)
                made[f"top_{k}_{name}_at"] = indices
        all_items = tf.math.top_k(tf.matmul(x, items, transpose_b=True), ITEMS)
        chosen = tf.math.top_k(tf.matmul(x, kernel), 3, index_type=tf.int64)
        made["all_items"] = all_items.indices
        made["softmax_of_top"] = tf.nn.softmax(chosen.values)
        made["rows_of_top"] = tf.gather(items, chosen.indices % ITEMS)
        return made


def export(path: Path) -> None:
    """Save the model."""
    module = Scores()
    tf.saved_model.save(module, str(path), signatures=module.__call__)


@st.composite
def feeds(draw: st.DrawFn) -> Feeds:
    """A request of up to 5 queries of whole numbers."""
    batch = draw(st.integers(0, 5))
    rng = np.random.default_rng(draw(st.integers(0, 1 << 30)))
    low = draw(st.sampled_from([0, 1, 3]))

    def drawn(*shape: int) -> np.ndarray:
        return rng.integers(-low, low + 1, shape).astype(np.float32)

    return {"x": drawn(batch, WIDTH), "pairs": drawn(batch, 2, WIDTH), "one": drawn(WIDTH)}
