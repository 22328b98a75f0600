"""SavedModels with regions: BatchFunction, Batch and Unbatch, and plain ones to name regions in."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf

from tests.saved_models_tf1 import export_graph

ROWS = 60
#: Tables have more bytes than this, other variables fewer.
THRESHOLD = 500


def _variable(seed: int, shape: tuple[int, ...], name: str) -> tf.Variable:
    return tf.Variable(np.random.default_rng(seed).normal(size=shape).astype(np.float32), name=name)


def batched(
    function: Any, *, size: int = 8, timeout_micros: int = 0, allowed: list[int] | None = None
) -> Any:
    return tf.nondifferentiable_batch_function(
        2, size, timeout_micros, allowed_batch_sizes=allowed, max_enqueued_batches=100
    )(function)


class Marked(tf.Module):
    """A tower in a BatchFunction that two signatures call; one that looks up; and what follows."""

    def __init__(self) -> None:
        super().__init__()
        self.items = _variable(1, (ROWS, 4), "items")
        self.more = tf.Variable(np.arange(ROWS * 5, dtype=np.int64) % ROWS, name="more")
        self.kernel = _variable(2, (4, 3), "kernel")
        self.tower = batched(self._tower, size=6, allowed=[1, 2, 6])
        self.pooled = batched(self._pooled)
        self.next_ids = batched(self._next_ids)
        self.seen = batched(self._seen, size=32)

    def _tower(self, x: Any) -> Any:
        checked = tf.debugging.assert_less(x, 1e6, message="too large")
        with tf.control_dependencies([checked] if checked is not None else []):
            return tf.nn.relu(tf.matmul(x, self.kernel)), tf.reduce_sum(x, axis=1)

    def _pooled(self, ids: Any) -> Any:
        return tf.reduce_sum(tf.gather(self.items, ids), axis=1)

    def _seen(self, x: Any) -> Any:
        """How many rows the region runs with."""
        rows = tf.shape(x)[0]
        return tf.fill([rows], rows)

    def _next_ids(self, ids: Any) -> Any:
        return (ids * 7 + 1) % ROWS

    @tf.function(input_signature=[tf.TensorSpec([None], tf.int64, name="ids")])
    def gathered(self, ids: Any) -> dict[str, Any]:
        """A lookup, then a region."""
        high, total = self.tower(tf.gather(self.items, ids))
        return {"high": high + 1, "total": total}

    @tf.function(input_signature=[tf.TensorSpec([None, 4], tf.float32, name="x")])
    def dense(self, x: Any) -> dict[str, Any]:
        """The same region, without a lookup."""
        high, total = self.tower(x * 2)
        return {"high": high, "total": total, "x": x}

    @tf.function(input_signature=[tf.TensorSpec([None, 3], tf.int64, name="ids")])
    def looking_up(self, ids: Any) -> dict[str, Any]:
        """A lookup in a region, whose result goes to another region."""
        pooled = self.pooled(ids)
        high, _ = self.tower(pooled)
        return {"pooled": pooled, "high": high}

    @tf.function(input_signature=[tf.TensorSpec([None], tf.int64, name="ids")])
    def before(self, ids: Any) -> dict[str, Any]:
        """A region, then a lookup of what it made."""
        found = tf.gather(self.items, self.next_ids(ids))
        return {"found": found * 2, "linked": tf.gather(self.more, self.next_ids(ids))}

    @tf.function(input_signature=[tf.TensorSpec([None], tf.float32, name="x")])
    def counted(self, x: Any) -> dict[str, Any]:
        return {"rows": self.seen(x)}

    @tf.function(input_signature=[tf.TensorSpec([None], tf.float32, name="x")])
    def counted_too(self, x: Any) -> dict[str, Any]:
        return {"rows": self.seen(x + 1)}


class Captures(tf.Module):
    """A region that captures what differs between requests; and one in a function in a region."""

    def __init__(self) -> None:
        super().__init__()
        self.items = _variable(3, (ROWS, 4), "items")
        self.inner = batched(lambda x: x * 3.0)
        self.half = batched(lambda x, unused: (x * 0.5, tf.stop_gradient(x)))

    @tf.function(
        input_signature=[
            tf.TensorSpec([None, 4], tf.float32, name="x"),
            tf.TensorSpec([], tf.float32, name="scale"),
        ]
    )
    def scaled(self, x: Any, scale: Any) -> dict[str, Any]:
        tower = batched(lambda y: y * scale + tf.gather(self.items, tf.cast(y[:, 0], tf.int64)))
        return {"y": tower(x)}

    @tf.function
    def twice(self, x: Any) -> Any:
        # TensorFlow takes batch functions of one scope's name for one.
        with tf.name_scope("inner"):
            return self.inner(x) + 1.0

    @tf.function(input_signature=[tf.TensorSpec([None, 4], tf.float32, name="x")])
    def nested(self, x: Any) -> dict[str, Any]:
        outer = batched(lambda y: self.twice(y) * 2.0)
        return {"y": outer(x), "inner": self.twice(x)}

    @tf.function(input_signature=[tf.TensorSpec([None, 4], tf.float32, name="x")])
    def halved(self, x: Any) -> dict[str, Any]:
        """A region that does not use all it gets, and gives some of it back as it is."""
        with tf.name_scope("half"):
            half, same = self.half(x, x + 1.0)
        return {"half": half, "same": same}


def marked(path: Path) -> None:
    module = Marked()
    signatures = {
        "serving_default": module.gathered,
        "dense": module.dense,
        "looking_up": module.looking_up,
        "before": module.before,
        "counted": module.counted,
        "counted_too": module.counted_too,
    }
    tf.saved_model.save(module, str(path), signatures=signatures)


def captures(path: Path) -> None:
    module = Captures()
    signatures = {
        "serving_default": module.scaled,
        "nested": module.nested,
        "halved": module.halved,
    }
    tf.saved_model.save(module, str(path), signatures=signatures)


def pairs(path: Path) -> None:
    """Batch and Unbatch around a tower, with two tensors in and two out."""

    def graph() -> Any:
        x = tf.compat.v1.placeholder(tf.float32, [None, 4], "x")
        words = tf.compat.v1.placeholder(tf.string, [None], "words")
        table = tf.compat.v1.get_variable("items", initializer=np.eye(ROWS, 4, dtype=np.float32))
        (bx, bwords), index, number = tf.raw_ops.Batch(
            in_tensors=[x + 1.0, words],
            num_batch_threads=2,
            max_batch_size=16,
            batch_timeout_micros=0,
            grad_timeout_micros=0,
            max_enqueued_batches=100,
        )
        ids = tf.strings.to_hash_bucket_fast(bwords, ROWS)
        rows = tf.gather(table, ids) + bx
        out = [
            tf.raw_ops.Unbatch(
                batched_tensor=t, batch_index=index, id=number, timeout_micros=10_000_000
            )
            for t in (rows, tf.strings.join([bwords, bwords]))
        ]
        return {"serving_default": ({"x": x, "words": words}, {"y": out[0] * 2.0, "w": out[1]})}

    export_graph(path, graph)


class Plain(tf.Module):
    """Nothing marked: ids, a lookup, a tower, with tensors whose names are known."""

    def __init__(self) -> None:
        super().__init__()
        self.items = _variable(4, (ROWS, 4), "items")
        self.kernel = _variable(5, (6, 3), "kernel")

    @tf.function(
        input_signature=[
            tf.TensorSpec([None], tf.int64, name="ids"),
            tf.TensorSpec([None, 2], tf.float32, name="x"),
        ]
    )
    def __call__(self, ids: Any, x: Any) -> dict[str, Any]:
        shifted = tf.identity(tf.math.floormod(ids + 1, ROWS), name="shifted")
        rows = tf.gather(self.items, shifted)
        size = tf.abs(x)
        joined = tf.concat([rows, tf.math.log1p(size, name="log_x")], axis=1, name="joined")
        hidden = tf.nn.relu(tf.matmul(joined, self.kernel), name="hidden")
        scores = tf.math.softmax(hidden, name="scores")
        return {"scores": scores * 10.0, "log_x": tf.reduce_sum(size, axis=1)}


def plain(path: Path) -> None:
    module = Plain()
    tf.saved_model.save(module, str(path), signatures=module.__call__)
